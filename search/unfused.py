"""Row and column scales for libraries that do not fuse them: a pass over the output follows.

The library leaves raw sums (INT32) or the unscaled product (BF16) in scratch memory, and
slidesparse.kernels.dequantize scales it; both are timed, as one candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.tensors import TORCH_DTYPES
from slidesparse.timing import Runner

if TYPE_CHECKING:
    import torch

    from slidesparse.search.operands import Operands

SCALED_OUTPUTS = (DType.BF16, DType.FP16, DType.FP32)
"""What the pass that follows can write."""

SCRATCH_ALIGNMENT = 256


def raw_product(problem: GemmProblem) -> GemmProblem:
    """The product that the library computes for `problem` before anything is scaled."""
    if problem.dtype is DType.INT8:
        return replace(problem, out=DType.INT32, scales=Scales.NONE, bias=False)
    return replace(problem, out=DType.BF16, scales=Scales.TENSOR, bias=False)


def scratch(
    problem: GemmProblem, operands: Operands, workspace: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for the raw product [m_run, N], and the library's own workspace behind it."""
    raw = raw_product(problem)
    size = operands.m_run * problem.n * raw.out.bytes
    size = -(-size // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT
    memory = operands.workspace(size + workspace)
    product = memory[: operands.m_run * problem.n * raw.out.bytes].view(TORCH_DTYPES[raw.out])
    return product.view(operands.m_run, problem.n), memory[size : size + max(workspace, 1)]


def scaled_after(
    launch: Callable[[int, int], None],
    problem: GemmProblem,
    operands: Operands,
    product: torch.Tensor,
    workspace: int = 0,
) -> Runner:
    """Run `launch`, which leaves the raw product in `product`, then scale it into the output."""
    from slidesparse.kernels import dequantize

    x_scale = operands.x_scale.expand(problem.m).contiguous()
    w_scale = operands.w_scale.expand(problem.n).contiguous()
    rows, dtype = product[: problem.m], TORCH_DTYPES[problem.out]

    def both(index: int, stream: int) -> None:
        launch(index, stream)
        out = operands.out(index)[: problem.m]
        dequantize(rows, x_scale, w_scale, dtype, bias=operands.bias, out=out)

    return Runner(both, product.numel() * product.element_size() + workspace)
