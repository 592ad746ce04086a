"""What a checkpoint holds and where its conversion goes: linears, decoder blocks, output shards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from slidesparse.checkpoint.formats import (
    BITMASK,
    COMPRESSED,
    STORAGE_PARTS,
    WEIGHT,
    Form,
    refuse_unread,
)
from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.errors import CheckpointError, RecipeError
from slidesparse.recipe import HEAD, Recipe, is_router

REST = "rest"
"""The name of the unit that holds everything outside the decoder blocks."""

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Linears that serving engines join into one, which is quantised as a whole or not at all."""

_BLOCK = re.compile(r"((?:.*\.)?layers\.(\d+))\.(.+)")
_OTHER_TOWERS = ("vision", "visual", "audio", "encoder")


@dataclass(frozen=True)
class Linear:
    """One linear of a checkpoint.

    Args:
        name: of the module, "model.layers.0.mlp.up_proj".
        shape: of its weight, (N, K).
        form: how it is stored.
        chosen: whether recipes apply to it; others are carried over.
    """

    name: str
    shape: tuple[int, int]
    form: Form
    chosen: bool


@dataclass(frozen=True)
class Unit:
    """A decoder block, or all that is outside: one output shard, converted or not.

    Args:
        name: "model.layers.3", or REST.
        tensors: of the source that belong to it.
        linears: among them.
    """

    name: str
    tensors: tuple[str, ...]
    linears: tuple[Linear, ...]


@dataclass(frozen=True)
class Layout:
    """The units of a checkpoint, decoder blocks in their order, the rest last.

    Args:
        units: at least one decoder block among them.
        fused: names of tensors with three dimensions that hold many experts' weights each.
    """

    units: tuple[Unit, ...]
    fused: tuple[str, ...]

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linears of all units."""
        return tuple(linear for unit in self.units for linear in unit.linears)


def block_of(name: str) -> str | None:
    """The decoder block that a tensor or module belongs to, "model.layers.3", or None."""
    match = _BLOCK.fullmatch(name)
    if match is None or any(tower in match[1] for tower in _OTHER_TOWERS):
        return None
    return match[1]


def read_layout(reader: CheckpointReader) -> Layout:
    """Sort the tensors of a checkpoint into units.

    Raises:
        CheckpointError: there are no decoder blocks, or a weight has a form that is not read.
    """
    refuse_unread(reader.names())
    blocks: dict[str, list[str]] = {}
    for name in reader.names():
        blocks.setdefault(block_of(name) or REST, []).append(name)
    rest = blocks.pop(REST, [])
    if not blocks:
        raise CheckpointError(
            f"{reader.path} has no decoder blocks named ...layers.N...; only causal LMs of the "
            "Llama, Mistral, Qwen, Gemma or SmolLM kind are converted"
        )
    units = [
        Unit(name, tuple(blocks[name]), tuple(_linears(reader, blocks[name])))
        for name in sorted(blocks, key=_in_order)
    ]
    units.append(Unit(REST, tuple(rest), tuple(_linears(reader, rest))))
    return Layout(tuple(units), tuple(_fused(reader)))


def check_recipe(layout: Layout, recipe: Recipe, config: dict[str, Any]) -> None:
    """Refuse a recipe that names linears that are not there, or a head that cannot be pruned.

    Raises:
        RecipeError: names the first linear, or the head.
    """
    known = {linear.name for linear in layout.linears if linear.chosen}
    unknown = sorted(set(recipe.layers) - known)
    if unknown:
        raise RecipeError(
            f"the recipe names {len(unknown)} linears that the checkpoint does not have, "
            f"{unknown[0]} first; make the recipe for this model"
        )
    tied = bool(config.get("tie_word_embeddings")) or HEAD not in known
    if tied and not recipe.kept(HEAD):
        raise RecipeError(
            f"{HEAD} shares its weight with the embedding, which pruning would damage; keep {HEAD}"
        )


def parts_of(linear: Linear) -> set[str]:
    """The names that a linear's weight may be stored under, in whatever form."""
    return {linear.name + part for part in (WEIGHT, *STORAGE_PARTS)}


def transformed(linear: Linear, recipe: Recipe) -> bool:
    """Whether a conversion prunes or quantises a linear."""
    if not linear.chosen or recipe.kept(linear.name):
        return False
    return recipe.dtype is not None or not recipe.pattern_of(linear.name).dense


def needs_text(layout: Layout, recipe: Recipe) -> bool:
    """Whether a conversion looks at calibration text: dense patterns are never calibrated."""
    pruned = any(
        linear.chosen and not recipe.pattern_of(linear.name).dense for linear in layout.linears
    )
    return recipe.method.calibrated and pruned


def untouched(layout: Layout, recipe: Recipe) -> tuple[str, ...]:
    """Linears that stay unquantised, as the ignore list of a quantised checkpoint names them."""
    names = {
        linear.name
        for linear in layout.linears
        if not transformed(linear, recipe) and "embed" not in linear.name.rpartition(".")[2]
    }
    # A head that is tied to the embedding is not stored, and still is a linear.
    if recipe.kept(HEAD):
        names.add(HEAD)
    names |= {_experts(name) for name in layout.fused}
    return tuple(sorted(names))


def _linears(reader: CheckpointReader, names: Iterable[str]) -> Iterator[Linear]:
    for name in names:
        for part in (WEIGHT, COMPRESSED):
            base = name.removesuffix(part)
            packed = part == COMPRESSED and base + BITMASK in reader
            if base == name or (part == COMPRESSED and not packed):
                continue
            shape = reader.shape(base)
            if len(shape) == 2:
                if min(shape) <= 0:
                    raise CheckpointError(
                        f"{base} has shape {list(shape)}; a linear's weight has at least one row "
                        "and one column: get the checkpoint again"
                    )
                chosen = _chosen(base)
                form = reader.form(base)
                yield Linear(base, (shape[0], shape[1]), form, chosen)


def _chosen(name: str) -> bool:
    last = name.rpartition(".")[2]
    inside = block_of(name) is not None and not is_router(name) and "embed" not in last
    return inside or name == HEAD


def _fused(reader: CheckpointReader) -> Iterator[str]:
    for name in reader.names():
        if ".experts." in name and len(reader.stored(name).shape) == 3:
            yield name


def _experts(name: str) -> str:
    """The module of all experts that a fused tensor belongs to."""
    return name[: name.index(".experts.") + len(".experts")]


def _in_order(name: str) -> tuple[str, int]:
    prefix, _, number = name.rpartition(".")
    return prefix, int(number)
