"""Writing the shard of one unit: linears pruned and quantised, everything else as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch

from slidesparse.checkpoint.formats import SCALE, WEIGHT, Form
from slidesparse.checkpoint.layout import Linear, Unit, parts_of, transformed
from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.checkpoint.safetensors_file import torch_dtype
from slidesparse.checkpoint.writer import ShardWriter, TensorSpec
from slidesparse.errors import CheckpointError
from slidesparse.kernels.reference import quantize
from slidesparse.prune.magnitude import prune
from slidesparse.prune.report import LayerReport, Report
from slidesparse.recipe import Recipe
from slidesparse.tensors import TORCH_DTYPES

CHUNK_ELEMENTS = 4 << 20
"""Weights that are worked on at once: some dozen times 16 MB, whatever the layer."""

_QUANTISED = {torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8"}


class Job(NamedTuple):
    """What the writing of every unit needs.

    Args:
        reader: of the source.
        recipe: what to do.
        floats: dtype of weights that were quantised and will not be, as headers spell it.
        device: that prunes and quantises.
    """

    reader: CheckpointReader
    recipe: Recipe
    floats: str
    device: torch.device


def specs_of(job: Job, unit: Unit) -> list[TensorSpec]:
    """The tensors of a unit's shard."""
    made = [spec for linear in _rewritten(job, unit) for spec in _specs(job, linear)]
    for name in _copied(job, unit):
        stored = job.reader.stored(name)
        made.append(TensorSpec(name, stored.dtype, stored.shape))
    return made


def write_unit(
    job: Job, unit: Unit, writer: ShardWriter, pruned: Mapping[str, torch.Tensor], report: Report
) -> None:
    """Fill the shard of one unit.

    Args:
        job: what to do.
        unit: of the source.
        writer: made of `specs_of`.
        pruned: parameters of the unit that were changed in memory, by name, pruned already. A
            linear that is not among them is read, and pruned by magnitude, in pieces.
        report: called once per linear that is pruned here.

    Raises:
        CheckpointError: a weight is damaged, or the disk is full.
    """
    for linear in _rewritten(job, unit):
        name = linear.name + WEIGHT
        if name in pruned:
            for start in range(0, linear.shape[0], _step(linear)):
                _encode(job, linear, pruned[name][start : start + _step(linear)], writer)
        else:
            _stream(job, linear, writer, report)
    for name in _copied(job, unit):
        stored = job.reader.stored(name)
        if name in pruned:
            writer.write(name, pruned[name].to(torch_dtype(stored.dtype)))
        else:
            writer.copy(stored)


def _rewritten(job: Job, unit: Unit) -> Iterator[Linear]:
    """Linears whose weights are not simply copied."""
    for linear in unit.linears:
        if transformed(linear, job.recipe) or linear.form is not Form.PLAIN:
            yield linear


def _copied(job: Job, unit: Unit) -> Iterator[str]:
    parts = {part for linear in _rewritten(job, unit) for part in parts_of(linear)}
    return (name for name in unit.tensors if name not in parts)


def _specs(job: Job, linear: Linear) -> Iterable[TensorSpec]:
    dtype = job.recipe.dtype
    if dtype is not None and transformed(linear, job.recipe):
        stored = _QUANTISED[TORCH_DTYPES[dtype]]
        scale = TensorSpec(linear.name + SCALE, "F32", (linear.shape[0], 1))
        return TensorSpec(linear.name + WEIGHT, stored, linear.shape), scale
    return (TensorSpec(linear.name + WEIGHT, _float_dtype(job, linear), linear.shape),)


def _float_dtype(job: Job, linear: Linear) -> str:
    if linear.form.quantised:
        return job.floats
    plain = linear.form is Form.PLAIN
    return job.reader.stored(linear.name + (WEIGHT if plain else ".compressed")).dtype


def _step(linear: Linear) -> int:
    return max(1, CHUNK_ELEMENTS // linear.shape[1])


def _stream(job: Job, linear: Linear, writer: ShardWriter, report: Report) -> None:
    """Read, prune by magnitude and write a linear in pieces."""
    pattern = job.recipe.pattern_of(linear.name) if linear.chosen else None
    zeros, lost, whole = 0, 0.0, 0.0
    for piece in job.reader.linear_rows(linear.name, _step(linear)):
        rows = piece.to(job.device)
        _check_finite(linear, rows)
        made = rows if pattern is None else prune(rows, pattern)
        _encode(job, linear, made, writer)
        if pattern is not None and not pattern.dense:
            zeros += int((made == 0).sum())
            lost += float((made.float() - rows.float()).square().sum(dtype=torch.float64))
            whole += float(rows.float().square().sum(dtype=torch.float64))
    if pattern is not None and not pattern.dense:
        error = (lost / whole) ** 0.5 if whole else 0.0
        share = zeros / (linear.shape[0] * linear.shape[1])
        report(LayerReport(linear.name, pattern, share, error, "weight"))


def _encode(job: Job, linear: Linear, rows: torch.Tensor, writer: ShardWriter) -> None:
    """Write rows that are pruned, quantised if the recipe says so."""
    dtype = job.recipe.dtype
    if dtype is not None and transformed(linear, job.recipe):
        q, scale = quantize(rows.detach(), TORCH_DTYPES[dtype])
        writer.write(linear.name + WEIGHT, q)
        writer.write(linear.name + SCALE, scale[:, None])
    else:
        writer.write(linear.name + WEIGHT, rows.to(torch_dtype(_float_dtype(job, linear))))


def _check_finite(linear: Linear, rows: torch.Tensor) -> None:
    bad = int((~rows.isfinite()).sum())
    if bad:
        raise CheckpointError(
            f"{linear.name}.weight holds {bad} values that are NaN or Inf; get the checkpoint "
            "again or keep the layer"
        )
