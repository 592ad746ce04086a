"""Trials: prune a model, measure its loss, and give it back as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from slidesparse.accuracy.partial import PartialModel
from slidesparse.prune.model import Progress, prune_model
from slidesparse.recipe import Recipe


class Trials:
    """Losses of one model under different recipes.

    Pruned weights are not quantised here, whatever the recipe says: what differs between recipes is
    the patterns.

    Args:
        model: a transformers causal LM on one device.
        linears: of the model, by full name: all that a recipe may prune.
        calibration: [S, L] int64, text that calibrated methods see.
        held_out: [W, L] int64, text that losses are means over.
    """

    def __init__(
        self,
        model: nn.Module,
        linears: Mapping[str, nn.Linear],
        calibration: torch.Tensor,
        held_out: torch.Tensor,
    ) -> None:
        """Note what there is; nothing runs."""
        self._model, self._linears = model, linears
        self._calibration, self._held_out = calibration, held_out
        self._partial = PartialModel(model)

    def dense_losses(self) -> tuple[float, ...]:
        """Mean negative log-likelihood of each held-out window in nats per token, nothing pruned.

        Raises:
            CalibrationError: it is NaN or infinite.
        """
        return self._partial.losses(self._held_out)

    def losses(self, recipe: Recipe, progress: Progress | None = None) -> tuple[float, ...]:
        """The same with the model pruned by a recipe.

        Raises:
            CalibrationError: inputs or the loss are NaN or infinite.
            RecipeError: the recipe does not fit the model.
        """
        with restored(self._linears):
            prune_model(self._model, recipe, self._calibration, progress)
            return self._partial.losses(self._held_out)


@contextmanager
def restored(linears: Mapping[str, nn.Linear]) -> Iterator[None]:
    """Afterwards, the weights of some linears are what they were before."""
    before = {name: linear.weight.detach().clone() for name, linear in linears.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                linears[name].weight.copy_(weight)
