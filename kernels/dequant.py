"""dequantize: scale a GEMM's output back by row and column (+ bias) (+ residual)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from slidesparse.errors import KernelError
from slidesparse.kernel_problem import Op
from slidesparse.kernels import reference
from slidesparse.kernels.config import Config
from slidesparse.kernels.launch import (
    ACCUMULATORS,
    FLOATS,
    Scaled,
    check_output,
    check_residual,
    check_rows,
    config_for,
    launch,
    needs_wide,
    runs_triton,
)
from slidesparse.kernels.row import begin, narrowed, offset
from slidesparse.pattern import DENSE


# A single row has a row scale of stride 0: the same code has to serve it.
@triton.jit(do_not_specialize=["m", "stride_row_scale"])
def dequantize_kernel(
    a_ptr,
    row_scale_ptr,
    column_scale_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    m,
    stride_a,
    stride_row_scale,
    stride_column_scale,
    stride_residual,
    stride_out,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    WIDE: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program per BLOCK columns of ROWS rows; column scales are read once for all of them."""
    begin(OVERLAP)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = columns < N
    here = (rows < m)[:, None]
    if N % BLOCK != 0:
        here = here & inside
    a = tl.load(a_ptr + offset(rows, stride_a, WIDE)[:, None] + columns, mask=here, other=0)
    row_scale = tl.load(row_scale_ptr + rows * stride_row_scale, mask=rows < m, other=0.0)
    factor = tl.load(column_scale_ptr + columns * stride_column_scale, mask=inside, other=0.0)
    y = a.to(tl.float32) * row_scale[:, None] * factor
    if BIAS:
        y += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        added = residual_ptr + offset(rows, stride_residual, WIDE)[:, None] + columns
        y += tl.load(added, mask=here, other=0.0).to(tl.float32)
    made = narrowed(y, out_ptr.dtype.element_ty)
    tl.store(out_ptr + offset(rows, stride_out, WIDE)[:, None] + columns, made, mask=here)


def launch_dequantize(
    a: torch.Tensor,
    scaled: Scaled,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    config: Config,
    wide: bool | None = None,
) -> None:
    """Start the kernel on checked operands; `wide` overrides what their size asks for."""
    m, n = a.shape
    added = a if residual is None else residual
    launch(
        dequantize_kernel,
        a,
        config,
        (-(-m // config.rows), -(-n // config.block)),
        a,
        scaled.row,
        scaled.column,
        scaled.row if scaled.bias is None else scaled.bias,
        added,
        out,
        m,
        a.stride(0),
        *scaled.strides,
        added.stride(0),
        out.stride(0),
        BIAS=scaled.bias is not None,
        RESIDUAL=residual is not None,
        WIDE=needs_wide(a, added, out) if wide is None else wide,
        N=n,
        BLOCK=config.block,
        ROWS=config.rows,
    )


def _run(a: torch.Tensor, scaled: Scaled, out: torch.Tensor, residual: torch.Tensor | None) -> None:
    check_rows(a, "a", ACCUMULATORS)
    scaled.check(a)
    check_output(out, "out", (a.shape[0], a.shape[1]), a)
    if out.dtype not in FLOATS:
        raise KernelError(f"out is {out.dtype}; use bfloat16, float16 or float32")
    if residual is not None:
        check_residual(residual, a)
    if a.shape[0] == 0:
        return
    if not runs_triton(a):
        made = reference.dequantize(a, scaled.row, scaled.column, out.dtype, scaled.bias, residual)
        out.copy_(made)
        return
    config = config_for(Op.DEQUANTIZE, a, a.shape[1], out.dtype, DENSE, residual is not None)
    launch_dequantize(a, scaled, residual, out, config)


def dequantize_rows(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """`dequantize` for callers that are operators themselves and pay for one dispatch, not two."""
    _run(a, Scaled(row_scale, column_scale, bias), out, None)


@torch.library.custom_op("slidesparse::dequantize_out", mutates_args=("out",))
def dequantize_out(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> None:
    """`dequantize` into a given output, whose dtype decides."""
    _run(a, Scaled(row_scale, column_scale, bias), out, residual)


@torch.library.custom_op("slidesparse::dequantize", mutates_args=())
def dequantize_op(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`dequantize` as torch.compile sees it."""
    out = torch.empty(a.shape, dtype=dtype, device=a.device)
    _run(a, Scaled(row_scale, column_scale, bias), out, residual)
    return out


@dequantize_out.register_fake
def _(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> None:
    return None


@dequantize_op.register_fake
def _(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    return torch.empty(a.shape, dtype=dtype, device=a.device)


def dequantize(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    dtype: torch.dtype = torch.bfloat16,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scale a GEMM's output back: a * row_scale * column_scale (+ bias) (+ residual), rounded once.

    Args:
        a: [M, N] int32, fp32, bf16 or fp16: accumulators or an unscaled product; rows may be
            strided. M = 0 gives an empty result.
        row_scale: [M] or [1] float32.
        column_scale: [N] or [1] float32.
        dtype: of the result: bf16, fp16 or fp32.
        bias: [N].
        residual: [M, N] bf16, fp16 or fp32.
        out: [M, N] to write to; may be the residual.

    Returns:
        [M, N] of `dtype`.

    Raises:
        KernelError: an operand has the wrong shape, dtype, layout or device.
    """
    if out is None:
        return dequantize_op(a, row_scale, column_scale, dtype, bias, residual)
    if out.dtype is not dtype:
        raise KernelError(f"out is {out.dtype}, and {dtype} was asked for")
    dequantize_out(a, row_scale, column_scale, out, bias, residual)
    return out
