"""Prune the linears of one decoder block, and go on to the next."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import nn

from slidesparse.errors import CheckpointError
from slidesparse.prune.collect import collect_statistics
from slidesparse.prune.inputs import BlockInputs, outputs_of, run_block
from slidesparse.prune.methods import prune_weight
from slidesparse.prune.permute import permute_block
from slidesparse.prune.quantised import quantised
from slidesparse.prune.report import Report, compare
from slidesparse.prune.statistics import InputStatistics
from slidesparse.recipe import Recipe, is_router


def linears_in(block: nn.Module, prefix: str) -> dict[str, nn.Linear]:
    """The linears of a block by full name, routers of mixtures of experts left out."""
    return {
        f"{prefix}.{name}": module
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and not is_router(name)
    }


def chosen_linears(block: nn.Module, prefix: str, recipe: Recipe) -> dict[str, nn.Linear]:
    """The linears of a block that a recipe prunes, by full name."""
    linears = linears_in(block, prefix)
    return {name: it for name, it in linears.items() if not recipe.pattern_of(name).dense}


@torch.no_grad()
def prune_block(
    block: nn.Module,
    prefix: str,
    inputs: BlockInputs,
    recipe: Recipe,
    *,
    quantise: bool = False,
    permute: bool = False,
    report: Report | None = None,
) -> BlockInputs:
    """Prune the linears of a block in place and run it again.

    Statistics come from one run with the weights as they are; the outputs from a run with the
    pruned ones, so that the next block is calibrated on what it will get (as in SparseGPT).

    Args:
        block: a decoder block; its device does the work.
        prefix: its name, "model.layers.3".
        inputs: of this block.
        recipe: patterns, method and what to keep.
        quantise: the outputs are those of the block with weights and activations quantised to
            recipe.dtype. The weights themselves stay pruned and unquantised.
        permute: first spread strong and weak channels over the blocks of 2N, where that is exact.
        report: called once per pruned linear.

    Returns:
        The inputs of the next block.

    Raises:
        CalibrationError: an input is NaN or infinite, or a linear got no token.
        CheckpointError: a weight holds NaN or Inf.
    """
    chosen = chosen_linears(block, prefix, recipe)
    statistics: Mapping[str, InputStatistics] = {}
    if recipe.method.calibrated and chosen:
        statistics = collect_statistics(chosen, recipe.method, lambda: outputs_of(block, inputs))
    if permute:
        statistics = permute_block(block, prefix, recipe, statistics)
    prune_linears(chosen, recipe, statistics, report)
    return advance(block, prefix, inputs, recipe, quantise=quantise)


def prune_plainly(
    block: nn.Module,
    prefix: str,
    recipe: Recipe,
    *,
    permute: bool = False,
    report: Report | None = None,
) -> None:
    """Prune the linears of a block in place by magnitude, without running it.

    Arguments and errors are those of `prune_block`.
    """
    if permute:
        permute_block(block, prefix, recipe, {})
    prune_linears(chosen_linears(block, prefix, recipe), recipe, {}, report)


def advance(
    block: nn.Module,
    prefix: str,
    inputs: BlockInputs,
    recipe: Recipe,
    *,
    quantise: bool = False,
    rounded_weights: bool = False,
) -> BlockInputs:
    """Run a block that is pruned already: the inputs of the next one.

    Args:
        block: a decoder block.
        prefix: its name, "model.layers.3".
        inputs: of this block.
        recipe: dtype, and which linears are not quantised.
        quantise: run it as W8A8 of recipe.dtype.
        rounded_weights: the weights come from a W8A8 checkpoint, so that only the inputs of the
            linears are still to be quantised.
    """
    with ExitStack() as stack:
        if quantise and recipe.dtype is not None:
            linears = linears_in(block, prefix)
            chosen = [linear for name, linear in linears.items() if not recipe.kept(name)]
            stack.enter_context(quantised(chosen, recipe.dtype, weights=not rounded_weights))
        return inputs.after(run_block(block, inputs))


@torch.no_grad()
def prune_linears(
    linears: Mapping[str, nn.Linear],
    recipe: Recipe,
    statistics: Mapping[str, InputStatistics],
    report: Report | None = None,
) -> None:
    """Prune weights in place.

    Args:
        linears: by full name; the recipe has their patterns.
        recipe: patterns and method.
        statistics: by full name; empty for magnitude.
        report: called once per linear.

    Raises:
        CalibrationError: the method needs statistics that are missing or cannot be used.
        CheckpointError: a weight holds NaN or Inf.
    """
    for name, linear in linears.items():
        weight, pattern, known = linear.weight.data, recipe.pattern_of(name), statistics.get(name)
        bad = int((~weight.isfinite()).sum())
        if bad:
            raise CheckpointError(
                f"{name}.weight holds {bad} values that are NaN or Inf; get the checkpoint again "
                "or keep the layer"
            )
        made = prune_weight(weight, pattern, recipe.method, known)
        if report is not None:
            report(compare(name, pattern, weight, made, known))
        weight.copy_(made)
