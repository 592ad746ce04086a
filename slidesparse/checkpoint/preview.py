"""What a conversion would do, before it does anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from slidesparse.checkpoint.config import check_source, float_dtype
from slidesparse.checkpoint.layout import (
    Layout,
    check_recipe,
    needs_text,
    read_layout,
    transformed,
    untouched,
)
from slidesparse.checkpoint.notes import notes_on
from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.checkpoint.weights import Job, specs_of
from slidesparse.pattern import Pattern
from slidesparse.recipe import Recipe


@dataclass(frozen=True)
class Preview:
    """What a conversion would do.

    Args:
        patterns: how many linears get each pattern.
        kept: linears that are neither pruned nor quantised.
        shards: output files of weights.
        bytes: of all of them.
        calibrated: whether calibration text is needed.
        notes: what a user should know.
    """

    patterns: Mapping[Pattern, int]
    kept: tuple[str, ...]
    shards: int
    bytes: int
    calibrated: bool
    notes: tuple[str, ...]


def preview(source: Path | str, recipe: Recipe) -> Preview:
    """Look at a checkpoint and a recipe; writes nothing.

    Raises:
        CheckpointError: the source is damaged or of a form that is not read.
        RecipeError: the recipe does not fit the checkpoint.
    """
    reader = CheckpointReader(source)
    layout = layout_of(reader, recipe)
    return preview_of(job_of(reader, recipe, torch.device("cpu")), layout)


def layout_of(reader: CheckpointReader, recipe: Recipe) -> Layout:
    """The layout of a source that a recipe fits; raises as `preview`."""
    check_source(reader.config)
    layout = read_layout(reader)
    check_recipe(layout, recipe, reader.config)
    return layout


def job_of(reader: CheckpointReader, recipe: Recipe, device: torch.device) -> Job:
    """What the writing of every unit needs."""
    return Job(reader, recipe, float_dtype(reader.config), device)


def preview_of(job: Job, layout: Layout) -> Preview:
    """The preview of a conversion that is set up."""
    recipe = job.recipe
    chosen = [linear for linear in layout.linears if transformed(linear, recipe)]
    return Preview(
        patterns=dict(Counter(recipe.pattern_of(linear.name) for linear in chosen)),
        kept=untouched(layout, recipe),
        shards=len(layout.units),
        bytes=sum(spec.bytes for unit in layout.units for spec in specs_of(job, unit)),
        calibrated=needs_text(layout, recipe),
        notes=notes_on(job.reader, layout, recipe),
    )
