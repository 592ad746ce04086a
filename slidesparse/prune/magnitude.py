"""Magnitude pruning: drop the smallest |w| of every block. Needs no calibration."""

from __future__ import annotations

import torch

from slidesparse.pattern import Pattern
from slidesparse.slide import prune_magnitude


def prune(w: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Zero the two smallest magnitudes of every block of 2N weights.

    Args:
        w: [N, K] floating point.
        pattern: any of the family.

    Returns:
        [N, K] of the same dtype, a new tensor that satisfies `pattern`.
    """
    return w.detach().clone() if pattern.dense else prune_magnitude(w.detach(), pattern)
