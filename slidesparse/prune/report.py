"""What pruning did to one linear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from slidesparse.pattern import Pattern
from slidesparse.prune.statistics import InputStatistics


@dataclass(frozen=True)
class LayerReport:
    """What pruning did to one linear.

    Args:
        name: of the linear.
        pattern: it was pruned to.
        zeros: the fraction of its weights that is zero now.
        error: relative, |change| / |before| in the Frobenius norm of what `measure` names.
        measure: "output" (W X, from the Gram matrix), "scaled weight" (W times the norms of its
            input channels) or "weight" (W itself, without calibration).
    """

    name: str
    pattern: Pattern
    zeros: float
    error: float
    measure: str


Report = Callable[[LayerReport], None]
"""Called once per pruned linear."""


def compare(
    name: str,
    pattern: Pattern,
    before: torch.Tensor,
    after: torch.Tensor,
    statistics: InputStatistics | None = None,
) -> LayerReport:
    """Report on a weight [N, K] before and after pruning, by what is known of its inputs."""
    dense = before.detach().float()
    change = after.detach().float() - dense
    if statistics is None:
        measure, lost, whole = "weight", change.square().sum(), dense.square().sum()
    elif statistics.has_gram:
        gram = statistics.hessian.to(dense.device)
        measure, lost, whole = "output", _energy(change, gram), _energy(dense, gram)
    else:
        norms = statistics.norms.to(dense.device)
        measure = "scaled weight"
        lost, whole = (change * norms).square().sum(), (dense * norms).square().sum()
    error = float((lost.clamp_min(0) / whole).sqrt()) if whole > 0 else 0.0
    zeros = float((after == 0).sum()) / max(1, after.numel())
    return LayerReport(name, pattern, zeros, error, measure)


def _energy(w: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """|W X|^2 = trace(W G W^T) of w [N, K] and G = X X^T [K, K]."""
    return ((w @ gram) * w).sum()
