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
    check_out_dtype,
    check_q,
    check_quantised,
    check_rows,
    check_scale_out,
    check_vector,
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
from slidesparse.kernels.row import begin, load_chunk, offset, quantize_row, store_row
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
    if STATIC:
        scale = tl.load(static_ptr)
        tl.store(scale_ptr + row, scale)
        store_row(values, scale, tl.div_rn(1.0, scale), q_row, INT8, True, T)
    else:
        quantize_row(values, q_row, scale_ptr + row, INT8, T)


@triton.jit(do_not_specialize=["m"])
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
    scale: torch.Tensor | None,
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
        scale_out if scale is None else scale,
        x.shape[0],
        x.stride(0),
        q.stride(0),
        INT8=q.dtype is torch.int8,
        STATIC=scale is not None,
        WIDE=needs_wide(x, q) if wide is None else wide,
        T=tile_of(x.shape[1], pattern, config.block),
        LOOP=loops(config),
        STAGES=config.stages,
    )


def _run(
    x: torch.Tensor,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    block: int,
    scale: torch.Tensor | None,
) -> None:
    pattern = pattern_of(block)
    check_rows(x, "x", FLOATS)
    check_quantised(q.dtype, x)
    m, k = x.shape
    check_q(q, m, k, pattern, x)
    check_scale_out(scale_out, m, x)
    if scale is not None:
        check_vector(scale, "scale", 1, x)
    if m == 0:
        return
    if not runs_triton(x):
        fill(q, scale_out, reference.quantize(x, q.dtype, pattern, scale))
        return
    config = config_for(Op.QUANTIZE, x, k, q.dtype, pattern)
    launch_quantize(x, q, scale_out, scale, pattern, config)


@torch.library.custom_op("slidesparse::quantize_out", mutates_args=("q", "scale_out"))
def quantize_out(
    x: torch.Tensor,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    block: int = 1,
    scale: torch.Tensor | None = None,
) -> None:
    """`quantize` into given outputs: q [M, K'] (its dtype decides) and scale_out [M] float32."""
    _run(x, q, scale_out, block, scale)


def quantize_rows(
    x: torch.Tensor, dtype: torch.dtype, pattern: Pattern
) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize` for callers that are operators themselves and pay for one dispatch, not two."""
    q, scale_out = empty_quantised(x, x.shape[1], dtype, pattern.block)
    _run(x, q, scale_out, pattern.block, None)
    return q, scale_out


@torch.library.custom_op("slidesparse::quantize", mutates_args=())
def quantize_op(
    x: torch.Tensor,
    dtype: torch.dtype,
    block: int = 1,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize` as torch.compile sees it; block is 2N of the pattern, 1 for dense."""
    q, scale_out = empty_quantised(x, x.shape[-1], dtype, block)
    _run(x, q, scale_out, block, scale)
    return q, scale_out


@quantize_out.register_fake
def _(
    x: torch.Tensor,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    block: int = 1,
    scale: torch.Tensor | None = None,
) -> None:
    return None


@quantize_op.register_fake
def _(
    x: torch.Tensor,
    dtype: torch.dtype,
    block: int = 1,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return empty_quantised(x, x.shape[-1], dtype, block)


def quantize(
    x: torch.Tensor,
    dtype: torch.dtype = torch.float8_e4m3fn,
    pattern: Pattern = DENSE,
    *,
    scale: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each row by its largest magnitude and lift it for `pattern`, in one pass.

    q[i] = round(x[i] / scale[i]), x[i] ~ q[i] * scale[i]. FP8 rounds to nearest even, scale =
    max(absmax / 448, 1 / (448 * 512)). INT8 rounds half to even, scale = max(absmax / 127, 2^-126).
    A row that holds NaN or infinity gets a scale of NaN or infinity and, in FP8, NaN everywhere (in
    padding too), in INT8 zeros: whatever scales it back sees that it is not finite. With a given
    `scale` values saturate (448; -128 and 127), infinity too; NaN stays NaN in FP8, is 0 in INT8.

    Args:
        x: [M, K] bf16, fp16 or fp32; rows may be strided. M = 0 gives empty results.
        dtype: torch.float8_e4m3fn or torch.int8.
        pattern: whose lift is applied (slidesparse.pattern); dense for none.
        scale: [1] float32, at least 2^-126: quantise all rows by it instead.
        out: (q, scale) to write to.

    Returns:
        q: [M, K'] of `dtype`, K' = pattern.expanded_k(K), padding zero; scale: [M] float32.

    Raises:
        KernelError: an operand has the wrong shape, dtype, layout or device.
        DeviceError: the GPU has no FP8.
    """
    if out is None:
        return quantize_op(x, dtype, pattern.block, scale)
    check_out_dtype(out[0], dtype)
    quantize_out(x, out[0], out[1], pattern.block, scale)
    return out
