"""silu_mul_quantize: SiLU(gate) * up, quantised and lifted without the product in memory.

The kernel can scale a GEMM's output back on the way in: see dequant_silu_mul_quant.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from slidesparse.errors import KernelError
from slidesparse.kernel_problem import Op
from slidesparse.kernels import reference
from slidesparse.kernels.config import Config, tile_of
from slidesparse.kernels.launch import (
    FLOATS,
    Scaled,
    check_made,
    check_out_dtype,
    check_quantised,
    check_rows,
    check_static_scale,
    config_for,
    empty_quantised,
    fill,
    launch,
    loops,
    needs_wide,
    pattern_of,
    programs,
    runs_triton,
)
from slidesparse.kernels.row import begin, load_chunk, load_scaled, offset, quantize_row, sigmoid
from slidesparse.pattern import DENSE, Pattern


@triton.jit
def _row(
    row,
    tensors,
    strides,
    INT8: tl.constexpr,
    STATIC: tl.constexpr,
    DEQUANT: tl.constexpr,
    BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    T: tl.constexpr,
):
    x_ptr, q_ptr, scale_ptr, static_ptr, row_scale_ptr, column_scale_ptr, bias_ptr = tensors
    stride_x, stride_q, stride_row_scale, stride_column_scale = strides
    gate_row = x_ptr + offset(row, stride_x, WIDE)
    up_row = gate_row + T.k
    factor = tl.load(row_scale_ptr + row * stride_row_scale) if DEQUANT else 1.0
    values = ()
    for chunk in tl.static_range(T.chunks):
        if DEQUANT:
            gate = load_scaled(
                gate_row, factor, column_scale_ptr, stride_column_scale, bias_ptr, BIAS, chunk, T
            )
            up = load_scaled(
                up_row,
                factor,
                column_scale_ptr + T.k * stride_column_scale,
                stride_column_scale,
                bias_ptr + T.k,
                BIAS,
                chunk,
                T,
            )
        else:
            gate = load_chunk(gate_row, chunk, T).to(tl.float32)
            up = load_chunk(up_row, chunk, T).to(tl.float32)
        values = values + (gate * sigmoid(gate) * up,)  # type: ignore[assignment]  # noqa: RUF005
    q_row = q_ptr + offset(row, stride_q, WIDE)
    quantize_row(values, q_row, scale_ptr + row, static_ptr, INT8, STATIC, T)


# A single row has a row scale of stride 0, and a given scale may lie anywhere in a tensor of them:
# the same code has to serve them.
@triton.jit(
    do_not_specialize=["m", "stride_row_scale"], do_not_specialize_on_alignment=["static_ptr"]
)
def silu_mul_quantize_kernel(
    x_ptr,
    q_ptr,
    scale_ptr,
    static_ptr,
    row_scale_ptr,
    column_scale_ptr,
    bias_ptr,
    m,
    stride_x,
    stride_q,
    stride_row_scale,
    stride_column_scale,
    INT8: tl.constexpr,
    STATIC: tl.constexpr,
    DEQUANT: tl.constexpr,
    BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    T: tl.constexpr,
    LOOP: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program per row, or a loop over its share of the rows."""
    begin(OVERLAP)
    tensors = (x_ptr, q_ptr, scale_ptr, static_ptr, row_scale_ptr, column_scale_ptr, bias_ptr)
    strides = (stride_x, stride_q, stride_row_scale, stride_column_scale)
    if LOOP:
        for row in tl.range(tl.program_id(0), m, tl.num_programs(0), num_stages=STAGES):
            _row(row, tensors, strides, INT8, STATIC, DEQUANT, BIAS, WIDE, T)
    else:
        _row(tl.program_id(0), tensors, strides, INT8, STATIC, DEQUANT, BIAS, WIDE, T)


def launch_silu_mul_quantize(
    x: torch.Tensor,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    pattern: Pattern,
    config: Config,
    scaled: Scaled | None = None,
    wide: bool | None = None,
    static_scale: torch.Tensor | None = None,
) -> None:
    """Start the kernel on checked operands; `wide` overrides what their size asks for."""
    launch(
        silu_mul_quantize_kernel,
        x,
        config,
        (programs(x, config),),
        x,
        q.view(torch.int8),
        scale_out,
        scale_out if static_scale is None else static_scale,
        scale_out if scaled is None else scaled.row,
        scale_out if scaled is None else scaled.column,
        x if scaled is None or scaled.bias is None else scaled.bias,
        x.shape[0],
        x.stride(0),
        q.stride(0),
        *((0, 0) if scaled is None else scaled.strides),
        INT8=q.dtype is torch.int8,
        STATIC=static_scale is not None,
        DEQUANT=scaled is not None,
        BIAS=scaled is not None and scaled.bias is not None,
        WIDE=needs_wide(x, q) if wide is None else wide,
        T=tile_of(x.shape[1] // 2, pattern, config.block),
        LOOP=loops(config),
        STAGES=config.stages,
    )


def check_halves(
    x: torch.Tensor, name: str, dtypes: tuple[torch.dtype, ...], dtype: torch.dtype
) -> None:
    """Refuse rows [M, 2F] that are not of `dtypes` or cannot become `dtype`.

    Raises:
        KernelError: names the tensor, what it is and what is needed.
        DeviceError: the GPU has no FP8.
    """
    check_rows(x, name, dtypes)
    if x.shape[1] % 2:
        raise KernelError(f"{name} has {x.shape[1]} columns; gate and up need an even number")
    check_quantised(dtype, x)


def _run(
    x: torch.Tensor,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    pattern: Pattern,
    static_scale: torch.Tensor | None,
) -> None:
    """Run on checked operands."""
    if x.shape[0] == 0:
        return
    if not runs_triton(x):
        fill(q, scale_out, reference.silu_mul_quantize(x, q.dtype, pattern, static_scale))
        return
    config = config_for(Op.SILU_MUL_QUANTIZE, x, x.shape[1] // 2, q.dtype, pattern)
    launch_silu_mul_quantize(x, q, scale_out, pattern, config, static_scale=static_scale)


def silu_mul_quantize_rows(
    gate_up: torch.Tensor,
    dtype: torch.dtype,
    pattern: Pattern,
    static_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`silu_mul_quantize` for callers that are operators themselves; see `quantize_rows`."""
    q, scale_out = empty_quantised(gate_up, gate_up.shape[-1] // 2, dtype, pattern.block)
    check_halves(gate_up, "gate_up", FLOATS, dtype)
    check_static_scale(static_scale, gate_up)
    _run(gate_up, q, scale_out, pattern, static_scale)
    return q, scale_out


@torch.library.custom_op("slidesparse::silu_mul_quantize_out", mutates_args=("q", "scale_out"))
def silu_mul_quantize_out(
    gate_up: torch.Tensor,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> None:
    """`silu_mul_quantize` into given outputs: q [M, K'] and scale_out [M] float32."""
    pattern = pattern_of(block)
    check_halves(gate_up, "gate_up", FLOATS, q.dtype)
    check_static_scale(static_scale, gate_up)
    check_made(q, scale_out, gate_up.shape[1] // 2, pattern, gate_up)
    _run(gate_up, q, scale_out, pattern, static_scale)


@torch.library.custom_op("slidesparse::silu_mul_quantize", mutates_args=())
def silu_mul_quantize_op(
    gate_up: torch.Tensor,
    dtype: torch.dtype,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`silu_mul_quantize` as torch.compile sees it; block is 2N of the pattern, 1 for dense."""
    return silu_mul_quantize_rows(gate_up, dtype, pattern_of(block), static_scale)


@silu_mul_quantize_out.register_fake
def _(
    gate_up: torch.Tensor,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> None:
    return None


@silu_mul_quantize_op.register_fake
def _(
    gate_up: torch.Tensor,
    dtype: torch.dtype,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return empty_quantised(gate_up, gate_up.shape[-1] // 2, dtype, block)


def silu_mul_quantize(
    gate_up: torch.Tensor,
    dtype: torch.dtype = torch.float8_e4m3fn,
    pattern: Pattern = DENSE,
    *,
    static_scale: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """SiLU(gate) * up in float32, quantised per row and lifted for `pattern`, in one pass.

    Args:
        gate_up: [M, 2F] bf16, fp16 or fp32, gate in the first F columns; rows may be strided. M = 0
            gives empty results.
        dtype: torch.float8_e4m3fn or torch.int8.
        pattern: whose lift is applied; dense for none.
        static_scale: one float32 to quantise all rows by, or None for the rows' own.
        out: (q, scale) to write to.

    Returns:
        q: [M, K'] of `dtype`, K' = pattern.expanded_k(F); scale: [M] float32. Rounding,
        saturation, zeros, NaN and infinity as `slidesparse.kernels.quantize` says.

    Raises:
        KernelError: an operand has the wrong shape, dtype, layout or device.
        DeviceError: the GPU has no FP8.
    """
    if out is None:
        return silu_mul_quantize_op(gate_up, dtype, pattern.block, static_scale)
    check_out_dtype(out[0], dtype)
    silu_mul_quantize_out(gate_up, out[0], out[1], pattern.block, static_scale)
    return out
