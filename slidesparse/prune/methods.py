"""One door to the three methods."""

from __future__ import annotations

import torch

from slidesparse.errors import CalibrationError
from slidesparse.pattern import Pattern
from slidesparse.prune import magnitude, sparsegpt, wanda
from slidesparse.prune.statistics import InputStatistics
from slidesparse.recipe import Method


def needs_gram(method: Method) -> bool:
    """Whether a method needs X^T X and not only the norms of the channels."""
    return method is Method.SPARSEGPT


def prune_weight(
    w: torch.Tensor,
    pattern: Pattern,
    method: Method,
    statistics: InputStatistics | None = None,
) -> torch.Tensor:
    """Prune one weight to a pattern.

    Args:
        w: [N, K] floating point; left as it is.
        pattern: any of the family; dense returns a copy.
        method: how the weights to drop are chosen.
        statistics: of the layer's inputs; for calibrated methods, of K channels.

    Returns:
        [N, K] of the same dtype, a new tensor that satisfies `pattern`.

    Raises:
        CalibrationError: the method needs statistics and there are none, or they do not fit.
    """
    if pattern.dense or method is Method.MAGNITUDE:
        return magnitude.prune(w, pattern)
    if statistics is None:
        raise CalibrationError(
            f"{method} needs the statistics of the layer's inputs; give calibration text or use "
            "magnitude"
        )
    if statistics.k != w.shape[1]:
        raise CalibrationError(
            f"{statistics.name}: statistics of {statistics.k} channels do not fit a weight with "
            f"K={w.shape[1]}"
        )
    prune = sparsegpt.prune if method is Method.SPARSEGPT else wanda.prune
    return prune(w, pattern, statistics)
