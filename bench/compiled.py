"""What torch.compile makes of the references: written so that Inductor can fuse all of it.

The lift picks columns before the quantisation, so that no lifted or quantised row lies in memory
between the steps. One function per (operation, K, pattern) is compiled for every M.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from slidesparse.bench.alternatives import Alternative, Outputs
from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.kernels.case import EPS, Case, Operands
from slidesparse.kernels.reference import FP8_SMALLEST_SCALE, INT8_SMALLEST_SCALE
from slidesparse.tensors import TORCH_DTYPES

NAME = "torch.compile"
HOW = "dynamic M"


class Compiled:
    """The compiled reference of an operation at one K and pattern.

    Args:
        problem: any M of it.
        device: of the operands.
        backend: of torch.compile; None runs the function as it is.
    """

    def __init__(
        self, problem: KernelProblem, device: torch.device, backend: str | None = "inductor"
    ) -> None:
        """Prepare the function; it is compiled at its first call."""
        self._function: Callable[..., Outputs] = plain(problem, device)
        if backend is not None:
            # Compiled code of earlier problems would count against the limit of recompilations.
            torch.compiler.reset()
            self._function = torch.compile(self._function, fullgraph=True, backend=backend)

    def of(self, case: Case) -> Alternative:
        """The alternative to the kernel of `case`."""
        # New outputs are kept until the same set comes again: each set has memory of its own.
        held: dict[int, Outputs] = {}
        for it in case.sets:
            _mark(it, case)

        def run(index: int) -> Outputs:
            place = index % len(case.sets)
            it = case.sets[place]
            scaled = case.scaled
            held[place] = self._function(it.x, it.residual, case.weight, scaled.row, scaled.column)
            return held[place]

        return Alternative(NAME, HOW, run)


def _mark(it: Operands, case: Case) -> None:
    """Tell Dynamo that M varies and K does not; M = 1 it specialises by itself."""
    if case.problem.m == 1:
        return
    for tensor in (it.x, it.residual, case.scaled.row):
        if tensor is not None:
            torch._dynamo.mark_dynamic(tensor, 0)


def plain(problem: KernelProblem, device: torch.device) -> Callable[..., Outputs]:
    """The reference as a function of (x, residual, norm weight, row scale, column scale)."""
    quantize = _quantize(problem, device)
    op, kept = problem.op, torch.bfloat16

    def rows(x: Any, row: Any, column: Any) -> Any:
        y = x.float()
        return y * row[:, None] * column if op.dequantizes else y

    def norm(y: Any, weight: Any) -> Any:
        inverse = torch.rsqrt(y.square().mean(dim=1, keepdim=True) + EPS)
        return y * weight.float() * inverse

    def run(x: Any, residual: Any, weight: Any, row: Any, column: Any) -> Outputs:
        y = rows(x, row, column)
        if residual is not None:
            y = y + residual.float()
        if op is Op.DEQUANTIZE:
            return (y.to(kept),)
        if op in (Op.SILU_MUL_QUANTIZE, Op.DEQUANT_SILU_MUL_QUANTIZE):
            gate, up = y.chunk(2, dim=1)
            return quantize(torch.nn.functional.silu(gate) * up)
        if op is Op.QUANTIZE:
            return quantize(y)
        if residual is None and op is Op.RMSNORM_QUANTIZE:
            return quantize(norm(y, weight))
        hidden = y.to(kept if op.dequantizes else x.dtype)
        return *quantize(norm(hidden.float(), weight)), hidden

    return run


def _quantize(problem: KernelProblem, device: torch.device) -> Callable[[Any], Outputs]:
    """Quantise float32 rows and lift them."""
    if not problem.op.quantizes:
        return lambda x: (x,)
    dtype = TORCH_DTYPES[problem.out]
    found = torch.tensor(problem.pattern.lift_index(problem.k), device=device)
    index, inside = found.clamp_min(0), found >= 0
    lifted, padded = not problem.pattern.dense, not bool(inside.all())

    def lift(x: Any) -> Any:
        if not lifted:
            return x
        picked = x[:, index]
        return torch.where(inside, picked, 0.0) if padded else picked

    def fp8(x: Any) -> Outputs:
        scale = (x.abs().amax(dim=1) / 448.0).clamp_min(FP8_SMALLEST_SCALE)
        return (lift(x) / scale[:, None]).clamp(-448.0, 448.0).to(dtype), scale

    def int8(x: Any) -> Outputs:
        scale = (x.abs().amax(dim=1) / 127.0).clamp_min(INT8_SMALLEST_SCALE)
        return (lift(x) / scale[:, None]).round().clamp(-128.0, 127.0).to(dtype), scale

    return fp8 if dtype is torch.float8_e4m3fn else int8
