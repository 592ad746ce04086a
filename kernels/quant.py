"""quantize: rows of activations to FP8 or INT8 with one scale per row, lifted on the way."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from slidesparse.kernel_problem import Op
from slidesparse.kernels import reference
from slidesparse.kernels.config import Config, tile_of
from slidesparse.kernels.launch import (
    FLOATS,
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
from slidesparse.kernels.row import begin, load_chunk, offset, quantize_row
from slidesparse.pattern import DENSE, Pattern


@triton.jit
def _row(
    row,
    tensors,
    strides,
    INT8: tl.constexpr,
    STATIC: tl.constexpr,
    WIDE: tl.constexpr,
    T: tl.constexpr,
):
    x_ptr, q_ptr, scale_ptr, static_ptr = tensors
    stride_x, stride_q = strides
    x_row = x_ptr + offset(row, stride_x, WIDE)
    q_row = q_ptr + offset(row, stride_q, WIDE)
    values = ()
    for chunk in tl.static_range(T.chunks):
        values = values + (load_chunk(x_row, chunk, T),)  # type: ignore[assignment]  # noqa: RUF005
    quantize_row(values, q_row, scale_ptr + row, static_ptr, INT8, STATIC, T)


# A given scale may lie anywhere in a tensor of them: the same code has to serve it.
@triton.jit(do_not_specialize=["m"], do_not_specialize_on_alignment=["static_ptr"])
def quantize_kernel(
    x_ptr,
    q_ptr,
    scale_ptr,
    static_ptr,
    m,
    stride_x,
    stride_q,
    INT8: tl.constexpr,
    STATIC: tl.constexpr,
    WIDE: tl.constexpr,
    T: tl.constexpr,
    LOOP: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program per row, or a loop over its share of the rows."""
    begin(OVERLAP)
    tensors = (x_ptr, q_ptr, scale_ptr, static_ptr)
    strides = (stride_x, stride_q)
    if LOOP:
        for row in tl.range(tl.program_id(0), m, tl.num_programs(0), num_stages=STAGES):
            _row(row, tensors, strides, INT8, STATIC, WIDE, T)
    else:
        _row(tl.program_id(0), tensors, strides, INT8, STATIC, WIDE, T)


def launch_quantize(
    x: torch.Tensor,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    static_scale: torch.Tensor | None,
    pattern: Pattern,
    config: Config,
    wide: bool | None = None,
) -> None:
    """Start the kernel on checked operands; `wide` overrides what their size asks for."""
    launch(
        quantize_kernel,
        x,
        config,
        (programs(x, config),),
        x,
        q.view(torch.int8),
        scale_out,
        scale_out if static_scale is None else static_scale,
        x.shape[0],
        x.stride(0),
        q.stride(0),
        INT8=q.dtype is torch.int8,
        STATIC=static_scale is not None,
        WIDE=needs_wide(x, q) if wide is None else wide,
        T=tile_of(x.shape[1], pattern, config.block),
        LOOP=loops(config),
        STAGES=config.stages,
    )


def _check(x: torch.Tensor, dtype: torch.dtype, static_scale: torch.Tensor | None) -> None:
    check_rows(x, "x", FLOATS)
    check_quantised(dtype, x)
    check_static_scale(static_scale, x)


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
        fill(q, scale_out, reference.quantize(x, q.dtype, pattern, static_scale))
        return
    config = config_for(Op.QUANTIZE, x, x.shape[1], q.dtype, pattern)
    launch_quantize(x, q, scale_out, static_scale, pattern, config)


def quantize_rows(
    x: torch.Tensor,
    dtype: torch.dtype,
    pattern: Pattern,
    static_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize` for callers that are operators themselves and pay for one dispatch, not two."""
    q, scale_out = empty_quantised(x, x.shape[-1], dtype, pattern.block)
    _check(x, dtype, static_scale)
    _run(x, q, scale_out, pattern, static_scale)
    return q, scale_out


@torch.library.custom_op("slidesparse::quantize_out", mutates_args=("q", "scale_out"))
def quantize_out(
    x: torch.Tensor,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> None:
    """`quantize` into given outputs: q [M, K'] (its dtype decides) and scale_out [M] float32."""
    pattern = pattern_of(block)
    _check(x, q.dtype, static_scale)
    check_made(q, scale_out, x.shape[1], pattern, x)
    _run(x, q, scale_out, pattern, static_scale)


@torch.library.custom_op("slidesparse::quantize", mutates_args=())
def quantize_op(
    x: torch.Tensor,
    dtype: torch.dtype,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize` as torch.compile sees it; block is 2N of the pattern, 1 for dense."""
    return quantize_rows(x, dtype, pattern_of(block), static_scale)


@quantize_out.register_fake
def _(
    x: torch.Tensor,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> None:
    return None


@quantize_op.register_fake
def _(
    x: torch.Tensor,
    dtype: torch.dtype,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return empty_quantised(x, x.shape[-1], dtype, block)


def quantize(
    x: torch.Tensor,
    dtype: torch.dtype = torch.float8_e4m3fn,
    pattern: Pattern = DENSE,
    *,
    static_scale: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each row by its largest magnitude and lift it for `pattern`, in one pass.

    q[i] = round(x[i] / scale[i]), x[i] ~ q[i] * scale[i]. FP8 rounds to nearest even, scale =
    max(absmax / 448, 1 / (448 * 512)). INT8 rounds half to even, scale = max(absmax / 127, 2^-126).
    A row that holds NaN or infinity gets a scale of NaN or infinity and, in FP8, NaN everywhere (in
    padding too), in INT8 zeros: whatever scales it back sees that it is not finite.

    With a `static_scale` every row is quantised by it, to the bytes of vLLM's static quantisation:
    FP8 is x * (1 / static_scale), saturating at -448 and 448, INT8 is x / static_scale, saturating
    at -128 and 127. Infinity saturates; NaN is 0 in INT8 and stays NaN in FP8, where vLLM makes 448
    of it. A scale of zero saturates all but zeros and tiny values, NaN acts as NaN in every value.

    Args:
        x: [M, K] bf16, fp16 or fp32; rows may be strided. M = 0 gives empty results.
        dtype: torch.float8_e4m3fn or torch.int8.
        pattern: whose lift is applied (slidesparse.pattern); dense for none.
        static_scale: one float32 on the device of x, or None for the rows' own.
        out: (q, scale) to write to.

    Returns:
        q: [M, K'] of `dtype`, K' = pattern.expanded_k(K), padding zero; scale: [M] float32, all
        `static_scale` where there is one.

    Raises:
        KernelError: an operand has the wrong shape, dtype, layout or device.
        DeviceError: the GPU has no FP8.
    """
    if out is None:
        return quantize_op(x, dtype, pattern.block, static_scale)
    check_out_dtype(out[0], dtype)
    quantize_out(x, out[0], out[1], pattern.block, static_scale)
    return out
