"""The float32 reference of a problem and the check that every candidate must pass.

INT8 sums are exact: K is split so that every partial sum stays below 2^24, where float32 holds
integers exactly, and the parts are added as integers. FP8 products are exact in float32; only the
order of the additions differs from the candidate's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.search.operands import Operands

EXACT_K = 1024
"""1024 products of two INT8 values, 127 * 128 each at most, sum to less than 2^24."""

BLOCK_ELEMENTS = 1 << 26
"""Elements of the output that one step of the reference or of the check handles."""

KEEP_SHARE = 0.3
"""The reference is kept if it takes at most this share of the memory that is free."""

POISON_INT8 = 101
POISON_INT32 = -(2**31) + 12345


@dataclass(frozen=True)
class Limits:
    """What a correct candidate stays under.

    Args:
        error: |out - ref| / |ref| over the whole output (Frobenius norms).
        worst: largest |out - ref| of one element over the root mean square of the reference.
    """

    error: float
    worst: float


SIGMAS = 6.5
"""A normal output of 1e9 elements holds values up to this many times its rms."""

FP8_STEP_K = 32
"""Products that one FP8 tensor-core instruction adds to the running sum (wgmma m64nNk32)."""

FP8_STEP_ERROR = 2.0**-15
"""Mean error of one such addition with fast accumulation, relative to the sum: Hopper truncates the
sum to about 14 bits. Over K = 18944 that is 1.8 % of the largest sums; measured: 1.3 %."""

# Rounding to the output, relative: half a unit in the last place.
ROUNDING = {DType.BF16: 2.0**-9, DType.FP16: 2.0**-12, DType.FP32: 2.0**-24}
MARGIN = 2.0


def limits_for(problem: GemmProblem) -> Limits:
    """What a correct candidate of a problem stays under, at twice the error that is explained.

    A wrong or unwritten tile shows as worst >= 1, a forgotten last step of K as an error of
    (32 / K)^0.5 or more: both far outside.
    """
    if problem.out is DType.INT32:
        return Limits(0.0, 0.0)
    if problem.out is DType.INT8:
        # One unit of an output whose root mean square is 32, for the rounding of ties.
        return Limits(2e-2, 0.05)
    relative = ROUNDING[problem.out]
    if problem.dtype is DType.FP8:
        steps = problem.k_run / FP8_STEP_K
        # Truncations add up on the largest sums and partly cancel over all of them.
        return Limits(
            MARGIN * (relative + 1.2e-3 * max(1.0, steps / 112) ** 0.5),
            MARGIN * SIGMAS * (relative + steps * FP8_STEP_ERROR),
        )
    return Limits(MARGIN * max(relative, 5e-6), MARGIN * SIGMAS * max(relative, 5e-6))


@dataclass(frozen=True)
class Check:
    """How far an output is from the reference; NaN where something was not written."""

    error: float
    worst: float

    def failure(self, problem: GemmProblem) -> str | None:
        """Say what is wrong, or None. NaN never passes."""
        limits = limits_for(problem)
        if self.error <= limits.error and self.worst <= limits.worst:
            return None
        return (
            f"wrong result: relative error {self.error:.2e} (limit {limits.error:.2e}), worst "
            f"element off by {self.worst:.2e} of the rms (limit {limits.worst:.2e})"
        )


def poison(out: torch.Tensor) -> None:
    """Fill an output with what no correct candidate leaves behind."""
    if out.dtype.is_floating_point:
        out.fill_(float("nan"))
    else:
        out.fill_(POISON_INT8 if out.dtype == torch.int8 else POISON_INT32)


class Reference:
    """The reference output of one problem, computed in row blocks and kept if memory allows."""

    def __init__(self, operands: Operands) -> None:
        """Bind the operands; nothing is computed before the first check."""
        self._operands = operands
        problem = operands.problem
        self._rows = max(1, min(problem.m, BLOCK_ELEMENTS // problem.n))
        self._kept: dict[int, torch.Tensor] = {}
        self._keep = self._fits()
        self._w: torch.Tensor | None = None

    def check(self, out: torch.Tensor) -> Check:
        """Compare an output [>= M, N] with the reference, all of its first M rows."""
        m = self._operands.problem.m
        difference = torch.zeros(3, dtype=torch.float64, device=out.device)
        for start in range(0, m, self._rows):
            ref = self._block(start)
            stop = min(start + self._rows, m)
            delta = (out[start:stop].to(ref.dtype) - ref).float()
            value = ref.float()
            sums = torch.stack(
                [delta.square().sum(dtype=torch.float64), value.square().sum(dtype=torch.float64)]
            )
            difference[:2] += sums
            # amax propagates NaN, maximum as well: an unwritten element cannot hide.
            difference[2] = torch.maximum(difference[2], delta.abs().amax().double())
        wrong, size, worst = difference.tolist()
        count = m * self._operands.problem.n
        rms = max((size / count) ** 0.5, 1e-30)
        return Check(error=(wrong / max(size, 1e-30)) ** 0.5, worst=worst / rms)

    def _block(self, start: int) -> torch.Tensor:
        kept = self._kept.get(start)
        if kept is None:
            kept = self._compute(start)
            if self._keep:
                self._kept[start] = kept
        return kept

    def _compute(self, start: int) -> torch.Tensor:
        operands = self._operands
        problem = operands.problem
        stop = min(start + self._rows, problem.m)
        x = operands.x(0)[start:stop]
        if problem.dtype is DType.INT8:
            total = self._exact_sums(x)
            if problem.out is DType.INT32:
                return total
            product = total.double()
        else:
            product = x.float() @ self._weight().t()
        return self._scaled(product, start, stop)

    def _scaled(self, product: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        operands = self._operands
        problem = operands.problem
        if problem.scales is Scales.ROWCOL:
            product = product * operands.x_scale[start:stop, None] * operands.w_scale[None, :]
        elif problem.scales is Scales.TENSOR:
            product = product * (operands.x_scale * operands.w_scale)
        if operands.bias is not None:
            product = product + operands.bias
        if problem.out is DType.INT8:
            product = product.round().clamp(-128, 127)
        return product.float()

    def _exact_sums(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(
            (x.shape[0], self._operands.problem.n), dtype=torch.int32, device=x.device
        )
        w = self._operands.weight.dense
        for first in range(0, w.shape[1], EXACT_K):
            span = slice(first, first + EXACT_K)
            total += (x[:, span].float() @ w[:, span].float().t()).to(torch.int32)
        return total

    def _weight(self) -> torch.Tensor:
        if self._w is None:
            self._w = self._operands.weight.dense.float()
        return self._w

    def _fits(self) -> bool:
        problem = self._operands.problem
        if self._operands.device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(self._operands.device)
        return problem.m * problem.n * 4 <= free * KEEP_SHARE
