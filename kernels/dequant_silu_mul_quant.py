"""dequant_silu_mul_quantize: scale a GEMM's output back, SiLU(gate) * up, quantise, lift.

For GEMMs that could not apply row and column scales themselves: one pass instead of two.
"""

from __future__ import annotations

import torch

from slidesparse.kernel_problem import Op
from slidesparse.kernels import reference
from slidesparse.kernels.launch import (
    ACCUMULATORS,
    Scaled,
    check_made,
    check_out_dtype,
    config_for,
    empty_quantised,
    fill,
    pattern_of,
    runs_triton,
)
from slidesparse.kernels.silu_mul_quant import check_halves, launch_silu_mul_quantize
from slidesparse.pattern import DENSE, Pattern


def _run(
    a: torch.Tensor, scaled: Scaled, q: torch.Tensor, scale_out: torch.Tensor, block: int
) -> None:
    pattern = pattern_of(block)
    check_halves(a, "a", ACCUMULATORS, q.dtype)
    check_made(q, scale_out, a.shape[1] // 2, pattern, a)
    scaled.check(a)
    if a.shape[0] == 0:
        return
    if not runs_triton(a):
        made = reference.dequant_silu_mul_quantize(
            a, scaled.row, scaled.column, q.dtype, pattern, scaled.bias
        )
        fill(q, scale_out, made)
        return
    config = config_for(Op.DEQUANT_SILU_MUL_QUANTIZE, a, a.shape[1] // 2, q.dtype, pattern)
    launch_silu_mul_quantize(a, q, scale_out, pattern, config, scaled)


@torch.library.custom_op(
    "slidesparse::dequant_silu_mul_quantize_out", mutates_args=("q", "scale_out")
)
def dequant_silu_mul_quantize_out(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    block: int = 1,
    bias: torch.Tensor | None = None,
) -> None:
    """`dequant_silu_mul_quantize` into given outputs: q [M, K'] and scale_out [M] float32."""
    _run(a, Scaled(row_scale, column_scale, bias), q, scale_out, block)


@torch.library.custom_op("slidesparse::dequant_silu_mul_quantize", mutates_args=())
def dequant_silu_mul_quantize_op(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    dtype: torch.dtype,
    block: int = 1,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`dequant_silu_mul_quantize` as torch.compile sees it."""
    q, scale_out = empty_quantised(a, a.shape[-1] // 2, dtype, block)
    _run(a, Scaled(row_scale, column_scale, bias), q, scale_out, block)
    return q, scale_out


@dequant_silu_mul_quantize_out.register_fake
def _(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    block: int = 1,
    bias: torch.Tensor | None = None,
) -> None:
    return None


@dequant_silu_mul_quantize_op.register_fake
def _(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    dtype: torch.dtype,
    block: int = 1,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return empty_quantised(a, a.shape[-1] // 2, dtype, block)


def dequant_silu_mul_quantize(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    dtype: torch.dtype = torch.float8_e4m3fn,
    pattern: Pattern = DENSE,
    *,
    bias: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale a GEMM's output back (+ bias), then as `silu_mul_quantize`, in one pass.

    Args:
        a: [M, 2F] int32, fp32, bf16 or fp16: accumulators or an unscaled product, gate in the first
            F columns; rows may be strided.
        row_scale: [M] or [1] float32.
        column_scale: [2F] or [1] float32.
        dtype: torch.float8_e4m3fn or torch.int8.
        pattern: whose lift is applied; dense for none.
        bias: [2F].
        out: (q, scale) to write to.

    Returns:
        q: [M, K'] of `dtype`, K' = pattern.expanded_k(F); scale: [M] float32.

    Raises:
        KernelError: an operand has the wrong shape, dtype, layout or device.
        DeviceError: the GPU has no FP8.
    """
    if out is None:
        return dequant_silu_mul_quantize_op(a, row_scale, column_scale, dtype, pattern.block, bias)
    check_out_dtype(out[0], dtype)
    dequant_silu_mul_quantize_out(a, row_scale, column_scale, *out, pattern.block, bias)
    return out
