"""Wanda: drop the smallest |w| times the norm of its input channel (arXiv 2306.11695)."""

from __future__ import annotations

import torch

from slidesparse.pattern import Pattern
from slidesparse.prune.statistics import InputStatistics
from slidesparse.slide import dropped


def scores(w: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """|w_ij| * ||X_j|| for w [N, K] and norms [K]: [N, K] float32."""
    return w.detach().float().abs().mul_(norms)


def prune(w: torch.Tensor, pattern: Pattern, statistics: InputStatistics) -> torch.Tensor:
    """Zero the two lowest scores of every block of 2N weights.

    Args:
        w: [N, K] floating point.
        pattern: any of the family.
        statistics: of the layer's inputs.

    Returns:
        [N, K] of the same dtype, a new tensor that satisfies `pattern`.

    Raises:
        CalibrationError: the statistics hold no token, or NaN or Inf.
    """
    norms = statistics.norms.to(w.device)
    return w.detach().masked_fill(dropped(scores(w, norms), pattern), 0)
