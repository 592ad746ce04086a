"""SparseGPT: drop what costs least by second order and let the rest of the row make up for it.

Columns are visited from left to right. Zeroing weight q of a row changes the row's output error
least when the columns right of it move by -w_q / U_qq * U_q, where U is the upper Cholesky factor
of the inverse Hessian (arXiv 2301.00774; each step is the solution of Optimal Brain Surgeon).
"""

from __future__ import annotations

import torch

from slidesparse.errors import CalibrationError
from slidesparse.pattern import Pattern
from slidesparse.prune.statistics import InputStatistics
from slidesparse.slide import dropped

DAMPENING = 0.01
"""Added to the diagonal of the Hessian, as a fraction of its mean: the paper's value."""

ATTEMPTS = 4
"""How often dampening is raised tenfold before a Hessian is given up: up to 10 times the mean."""

CHUNK = 128
"""Columns whose updates are gathered before the columns right of them follow, roughly."""


def prune(w: torch.Tensor, pattern: Pattern, statistics: InputStatistics) -> torch.Tensor:
    """Zero two weights of every block of 2N and update the others of the row.

    Args:
        w: [N, K] floating point. Computed in float32.
        pattern: any of the family; dense returns a copy.
        statistics: of the layer's inputs, with the Gram matrix.

    Returns:
        [N, K] of the same dtype, a new tensor that satisfies `pattern`. Channels that no
        calibration token used become zero.

    Raises:
        CalibrationError: the statistics hold no token, NaN or Inf, or no Gram matrix, or the
            Hessian stays singular, or the update overflows the dtype of w.
    """
    if pattern.dense:
        return w.detach().clone()
    hessian = statistics.hessian.to(w.device)
    dead = hessian.diagonal() == 0
    factor = _inverse_factor(hessian, dead, statistics.name)
    work = w.detach().to(torch.float32, copy=True)
    work[:, dead] = 0
    width = max(1, round(CHUNK / pattern.block)) * pattern.block
    for start in range(0, work.shape[1], width):
        end = min(start + width, work.shape[1])
        errors = _prune_chunk(work[:, start:end], factor[start:end, start:end], pattern)
        work[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1)
    made = work.to(w.dtype)
    if not made.isfinite().all():
        raise CalibrationError(
            f"the updated weights of {statistics.name} do not fit {w.dtype}; use wanda, keep the "
            "layer, or start from a bfloat16 checkpoint"
        )
    return made


def _inverse_factor(hessian: torch.Tensor, dead: torch.Tensor, name: str) -> torch.Tensor:
    """The upper Cholesky factor U of the dampened inverse: U^T U = H^-1."""
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    for attempt in range(ATTEMPTS):
        damped = hessian.clone()
        damped.diagonal().add_(mean * DAMPENING * 10**attempt)
        # A channel without input has no say in the error; one keeps its row solvable.
        damped.diagonal().masked_fill_(dead, 1.0)
        upper = _inverse_factor_of(damped)
        if upper is not None:
            return upper
    raise CalibrationError(
        f"the Hessian of {name} is singular even with {DAMPENING * 10 ** (ATTEMPTS - 1):g} of its "
        "mean diagonal added; use more calibration text, wanda, or keep the layer"
    )


def _inverse_factor_of(hessian: torch.Tensor) -> torch.Tensor | None:
    """U of one Hessian, or None if float32 cannot tell it from a singular one."""
    upper: torch.Tensor
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if failed:
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if failed or not upper.isfinite().all() else upper


def _prune_chunk(work: torch.Tensor, factor: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Prune columns work [N, C] in place; returns the scaled errors [N, C] that move the rest."""
    errors = torch.zeros_like(work)
    diagonal = factor.diagonal()
    for start in range(0, work.shape[1], pattern.block):
        block = slice(start, start + pattern.block)
        mask = dropped(work[:, block].square() / diagonal[block].square(), pattern)
        for offset in range(mask.shape[1]):
            column = start + offset
            errors[:, column] = (work[:, column] / diagonal[column]) * mask[:, offset]
            work[:, column:].addr_(errors[:, column], factor[column, column:], alpha=-1)
        # What the subtraction left there is zero up to rounding.
        work[:, block].masked_fill_(mask, 0)
    return errors
