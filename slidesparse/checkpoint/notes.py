"""What a user should know of a conversion before it starts."""

from __future__ import annotations

from collections.abc import Iterator

from slidesparse.checkpoint.layout import FUSED, Layout, block_of, transformed
from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.recipe import HEAD, Recipe


def notes_on(reader: CheckpointReader, layout: Layout, recipe: Recipe) -> tuple[str, ...]:
    """One line for each thing that a recipe does to a checkpoint and might surprise."""
    return (
        *_fused_experts(layout),
        *_kept_nothing(layout, recipe),
        *_static_inputs(reader, recipe),
        *_split_groups(layout, recipe),
        *_requantised(layout),
    )


def _fused_experts(layout: Layout) -> Iterator[str]:
    if layout.fused:
        yield (
            f"{len(layout.fused)} tensors hold many experts each ({layout.fused[0]} first): they "
            "are left as they are"
        )


def _kept_nothing(layout: Layout, recipe: Recipe) -> Iterator[str]:
    """A misspelt name keeps nothing; a head that is tied to the embedding is not stored."""
    names = [linear.name for linear in layout.linears if linear.chosen]
    for keep in recipe.keep:
        only = Recipe(keep=(keep,))
        if keep != HEAD and not any(map(only.kept, names)):
            yield (
                f"keep names {keep}, which matches no linear that is converted; a whole block is "
                "model.layers.0.*"
            )


def _static_inputs(reader: CheckpointReader, recipe: Recipe) -> Iterator[str]:
    static = [name for name in reader.names() if name.endswith(".input_scale")]
    if static and recipe.dtype is not None:
        yield (
            f"the source has {len(static)} fixed scales of activations; the converted checkpoint "
            "finds a scale per token when it runs"
        )


def _split_groups(layout: Layout, recipe: Recipe) -> Iterator[str]:
    if recipe.dtype is None:
        return
    groups: dict[tuple[str, tuple[str, ...]], set[bool]] = {}
    for linear in layout.linears:
        parent, _, last = linear.name.rpartition(".")
        for names in FUSED:
            if last in names and block_of(parent):
                groups.setdefault((parent, names), set()).add(transformed(linear, recipe))
    split = [group for group, states in groups.items() if len(states) == 2]
    if split:
        parent, joined = split[0]
        yield (
            f"in {len(split)} places, {parent} first, some of {', '.join(joined)} are kept and "
            "some quantised; vLLM joins them and cannot load that: keep all or none"
        )


def _requantised(layout: Layout) -> Iterator[str]:
    count = sum(linear.form.quantised for linear in layout.linears)
    if count:
        yield (
            f"{count} linears of the source are quantised already; they are dequantised first, so "
            "that their rounding adds to the new one: a BF16 source gives better weights"
        )
