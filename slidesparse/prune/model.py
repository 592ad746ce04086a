"""Prune a whole causal LM that is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import nn

from slidesparse.errors import CalibrationError, RecipeError
from slidesparse.prune.blocks import linears_in, prune_block, prune_linears, prune_plainly
from slidesparse.prune.collect import collect_statistics
from slidesparse.prune.inputs import BlockInputs, blocks_of, evaluating, first_inputs
from slidesparse.prune.report import LayerReport, Report
from slidesparse.recipe import HEAD, Recipe

PREFIX = "model.layers"

Progress = Callable[[int, int, str], None]
"""Called with blocks done, blocks in all, and the name of the block that was just finished."""


def linears_of(model: nn.Module, recipe: Recipe | None = None) -> dict[str, nn.Linear]:
    """The linears of a transformers causal LM by full name, in the order they run.

    Args:
        model: a transformers causal LM.
        recipe: leaves out what it keeps, and adds lm_head if it does not keep that. Without one,
            every linear of the decoder blocks.

    Raises:
        ModelError: the model has no known decoder blocks.
        RecipeError: lm_head is not kept although it shares its weight with the embedding.
    """
    found: dict[str, nn.Linear] = {}
    for index, block in enumerate(blocks_of(model)):
        found.update(linears_in(block, f"{PREFIX}.{index}"))
    if recipe is None:
        return found
    found.update(_head_of(model, recipe))
    return {name: linear for name, linear in found.items() if not recipe.kept(name)}


@torch.no_grad()
def prune_model(
    model: nn.Module,
    recipe: Recipe,
    tokens: torch.Tensor | None = None,
    progress: Progress | None = None,
    *,
    quantise: bool = False,
    permute: bool = False,
) -> dict[str, LayerReport]:
    """Prune every linear of a model in place, block after block.

    Args:
        model: a transformers causal LM, on one device.
        recipe: patterns, method and what to keep.
        tokens: [S, L] int64 calibration text; not needed for magnitude.
        progress: called after every block.
        quantise: calibrate each block on outputs of blocks that are quantised to recipe.dtype.
        permute: first spread strong and weak channels over the blocks of 2N, where that is exact.

    Returns:
        What was done to each pruned linear, by name.

    Raises:
        CalibrationError: tokens are missing, or lead to inputs that cannot be used.
        CheckpointError: a weight holds NaN or Inf.
        ModelError: the model cannot be run block by block.
        RecipeError: the recipe names a linear that the model does not have.
    """
    reports: dict[str, LayerReport] = {}

    def report(layer: LayerReport) -> None:
        reports[layer.name] = layer

    blocks = blocks_of(model)
    _check_names(model, recipe)
    inputs = None
    if recipe.method.calibrated:
        if tokens is None:
            raise CalibrationError(
                f"{recipe.method} needs calibration tokens; give text or use magnitude"
            )
        inputs = first_inputs(model, tokens)
    for index, block in enumerate(blocks):
        prefix = f"{PREFIX}.{index}"
        if inputs is None:
            prune_plainly(block, prefix, recipe, permute=permute, report=report)
        else:
            inputs = prune_block(
                block, prefix, inputs, recipe, quantise=quantise, permute=permute, report=report
            )
        if progress is not None:
            progress(index + 1, len(blocks), prefix)
    prune_head(model, inputs, recipe, report)
    return reports


@torch.no_grad()
def prune_head(
    model: nn.Module, inputs: BlockInputs | None, recipe: Recipe, report: Report | None = None
) -> None:
    """Prune lm_head in place unless the recipe keeps it.

    Args:
        model: whose final norm and lm_head are in memory.
        inputs: what the last block's `prune_block` returned; None for magnitude.
        recipe: patterns, method and what to keep.
        report: called if it was pruned.
    """
    head = {
        name: linear
        for name, linear in _head_of(model, recipe).items()
        if not recipe.pattern_of(name).dense
    }
    if not head:
        return
    statistics = {}
    if recipe.method.calibrated and inputs is not None:
        linear, norm = head[HEAD], cast(nn.Module, cast(nn.Module, model.model).norm)
        hidden = inputs.hidden

        def passes() -> Iterator[object]:
            with evaluating(model):
                for it in hidden:
                    yield linear(norm(it.to(linear.weight.device)))

        statistics = collect_statistics(head, recipe.method, passes)
    prune_linears(head, recipe, statistics, report)


def _head_of(model: nn.Module, recipe: Recipe) -> dict[str, nn.Linear]:
    head = getattr(model, HEAD, None)
    if recipe.kept(HEAD) or not isinstance(head, nn.Linear):
        return {}
    check_untied(model)
    return {HEAD: head}


def check_untied(model: nn.Module) -> None:
    """Make sure that lm_head has a weight of its own.

    Raises:
        RecipeError: it is that of the embedding.
    """
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    config = getattr(model, "config", None)
    # A streamed model holds the one weight twice: there only the config knows.
    tied = getattr(config, "tie_word_embeddings", False)
    if tied or cast(nn.Linear, getattr(model, HEAD)).weight is embedding.weight:
        raise RecipeError(
            f"{HEAD} shares its weight with the embedding, which pruning would damage; keep {HEAD}"
        )


def _check_names(model: nn.Module, recipe: Recipe) -> None:
    unknown = sorted(recipe.layers.keys() - linears_of(model).keys() - {HEAD})
    if unknown:
        raise RecipeError(
            f"the recipe names {len(unknown)} linears that {type(model).__name__} does not have, "
            f"{unknown[0]} first; make the recipe for this model"
        )
