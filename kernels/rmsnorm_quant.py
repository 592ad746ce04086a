"""rmsnorm_quantize: (residual +) RMSNorm, quantised and lifted in one pass over the row.

The kernel can scale a GEMM's output back on the way in: see dequant_rmsnorm_quant.
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
    check_output,
    check_quantised,
    check_residual,
    check_rows,
    check_static_scale,
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
from slidesparse.kernels.row import (
    begin,
    chunk_columns,
    given_scale,
    largest_magnitude,
    load_chunk,
    load_scaled,
    narrowed,
    offset,
    row_scale,
    store_row,
)
from slidesparse.pattern import DENSE, Pattern


@triton.jit
def _row(
    row,
    tensors,
    scalings,
    strides,
    eps,
    INT8: tl.constexpr,
    STATIC: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DEQUANT: tl.constexpr,
    BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    T: tl.constexpr,
):
    x_ptr, residual_ptr, weight_ptr, hidden_ptr, q_ptr, scale_ptr, static_ptr = tensors
    row_scale_ptr, column_scale_ptr, bias_ptr, stride_row_scale, stride_column_scale = scalings
    stride_x, stride_residual, stride_hidden, stride_q = strides
    x_row = x_ptr + offset(row, stride_x, WIDE)
    residual_row = residual_ptr + offset(row, stride_residual, WIDE)
    hidden_row = hidden_ptr + offset(row, stride_hidden, WIDE)
    q_row = q_ptr + offset(row, stride_q, WIDE)
    factor = tl.load(row_scale_ptr + row * stride_row_scale) if DEQUANT else 1.0
    weighted = ()
    squares = tl.zeros([T.block], tl.float32)
    for chunk in tl.static_range(T.chunks):
        if DEQUANT:
            x = load_scaled(
                x_row, factor, column_scale_ptr, stride_column_scale, bias_ptr, BIAS, chunk, T
            )
        else:
            x = load_chunk(x_row, chunk, T).to(tl.float32)
        if RESIDUAL:
            x += load_chunk(residual_row, chunk, T).to(tl.float32)
        if RESIDUAL or DEQUANT:
            hidden = narrowed(x, hidden_ptr.dtype.element_ty)
            columns, inside = chunk_columns(chunk, T)
            tl.store(hidden_row + columns, hidden, mask=inside)
            x = hidden.to(tl.float32)
        squares += x * x
        x *= load_chunk(weight_ptr, chunk, T).to(tl.float32)
        weighted = weighted + (x,)  # type: ignore[assignment]  # noqa: RUF005
    inverse_rms = tl.rsqrt(tl.sum(squares, axis=0) / T.k + eps)
    if STATIC:
        scale, inverse = given_scale(static_ptr)
    else:
        scale, inverse = row_scale(largest_magnitude(weighted, T) * inverse_rms, INT8)
    tl.store(scale_ptr + row, scale)
    values = ()
    for chunk in tl.static_range(T.chunks):
        values = values + (weighted[chunk] * inverse_rms,)  # type: ignore[assignment]  # noqa: RUF005
    store_row(values, scale, inverse, q_row, INT8, STATIC, T)


# A single row has a row scale of stride 0, and a given scale may lie anywhere in a tensor of them:
# the same code has to serve them.
@triton.jit(
    do_not_specialize=["m", "stride_row_scale"], do_not_specialize_on_alignment=["static_ptr"]
)
def rmsnorm_quantize_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    hidden_ptr,
    q_ptr,
    scale_ptr,
    static_ptr,
    row_scale_ptr,
    column_scale_ptr,
    bias_ptr,
    m,
    stride_x,
    stride_residual,
    stride_hidden,
    stride_q,
    stride_row_scale,
    stride_column_scale,
    eps,
    INT8: tl.constexpr,
    STATIC: tl.constexpr,
    RESIDUAL: tl.constexpr,
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
    tensors = (x_ptr, residual_ptr, weight_ptr, hidden_ptr, q_ptr, scale_ptr, static_ptr)
    scalings = (row_scale_ptr, column_scale_ptr, bias_ptr, stride_row_scale, stride_column_scale)
    strides = (stride_x, stride_residual, stride_hidden, stride_q)
    if LOOP:
        for row in tl.range(tl.program_id(0), m, tl.num_programs(0), num_stages=STAGES):
            _row(
                row, tensors, scalings, strides, eps, INT8, STATIC, RESIDUAL, DEQUANT, BIAS, WIDE, T
            )
    else:
        row = tl.program_id(0)
        _row(row, tensors, scalings, strides, eps, INT8, STATIC, RESIDUAL, DEQUANT, BIAS, WIDE, T)


def launch_rmsnorm_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    pattern: Pattern,
    config: Config,
    residual: torch.Tensor | None = None,
    hidden: torch.Tensor | None = None,
    scaled: Scaled | None = None,
    wide: bool | None = None,
    static_scale: torch.Tensor | None = None,
) -> None:
    """Start the kernel on checked operands.

    `hidden` is the new residual, may be the old one; `wide` overrides what their size asks for.
    """
    store = x if hidden is None else hidden
    add = x if residual is None else residual
    launch(
        rmsnorm_quantize_kernel,
        x,
        config,
        (programs(x, config),),
        x,
        add,
        weight,
        store,
        q.view(torch.int8),
        scale_out,
        scale_out if static_scale is None else static_scale,
        scale_out if scaled is None else scaled.row,
        scale_out if scaled is None else scaled.column,
        weight if scaled is None or scaled.bias is None else scaled.bias,
        x.shape[0],
        x.stride(0),
        add.stride(0),
        store.stride(0),
        q.stride(0),
        *((0, 0) if scaled is None else scaled.strides),
        eps,
        INT8=q.dtype is torch.int8,
        STATIC=static_scale is not None,
        RESIDUAL=residual is not None,
        DEQUANT=scaled is not None,
        BIAS=scaled is not None and scaled.bias is not None,
        WIDE=needs_wide(x, add, store, q) if wide is None else wide,
        T=tile_of(x.shape[1], pattern, config.block),
        LOOP=loops(config),
        STAGES=config.stages,
    )


def check_norm_operands(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse a weight that does not fit the rows `x` [M, K], and what they cannot become.

    Raises:
        KernelError: names the tensor, what it is and what is needed.
        DeviceError: the GPU has no FP8.
    """
    check_quantised(dtype, x)
    check_vector(weight, "weight", x.shape[1], x, FLOATS)


def check_norm_outputs(
    x: torch.Tensor,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    pattern: Pattern,
    hidden: torch.Tensor | None,
) -> None:
    """Refuse outputs that do not fit the rows `x` [M, K].

    Raises:
        KernelError: names the tensor, what it is and what is needed.
    """
    check_made(q, scale_out, x.shape[1], pattern, x)
    if hidden is not None:
        check_rows(hidden, "the new residual", FLOATS)
        check_output(hidden, "the new residual", (x.shape[0], x.shape[1]), x)


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    dtype: torch.dtype,
    residual: torch.Tensor | None,
    static_scale: torch.Tensor | None,
) -> None:
    check_rows(x, "x", FLOATS)
    if residual is not None:
        check_residual(residual, x)
        if residual.dtype is not x.dtype:
            raise KernelError(
                f"residual is {residual.dtype} and x is {x.dtype}; give both one dtype"
            )
    check_norm_operands(x, weight, dtype)
    check_static_scale(static_scale, x)


def _run(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    pattern: Pattern,
    residual: torch.Tensor | None,
    hidden: torch.Tensor | None,
    static_scale: torch.Tensor | None,
) -> None:
    """Run on checked operands."""
    if x.shape[0] == 0:
        return
    if not runs_triton(x):
        *made, new = reference.rmsnorm_quantize(
            x, weight, eps, q.dtype, pattern, residual, static_scale
        )
        fill(q, scale_out, (made[0], made[1]))
        if hidden is not None:
            hidden.copy_(new)
        return
    op = Op.RMSNORM_QUANTIZE
    config = config_for(op, x, x.shape[1], q.dtype, pattern, residual is not None)
    launch_rmsnorm_quantize(
        x,
        weight,
        eps,
        q,
        scale_out,
        pattern,
        config,
        residual,
        hidden,
        static_scale=static_scale,
    )


def rmsnorm_quantize_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    pattern: Pattern,
    residual: torch.Tensor | None = None,
    static_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`rmsnorm_quantize` for callers that are operators themselves; see `quantize_rows`.

    Returns:
        q and scale; the new residual, or None where there was none.
    """
    q, scale_out = empty_quantised(x, x.shape[-1], dtype, pattern.block)
    _check(x, weight, dtype, residual, static_scale)
    hidden = None
    if residual is not None:
        hidden = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _run(x, weight, eps, q, scale_out, pattern, residual, hidden, static_scale)
    return q, scale_out, hidden


@torch.library.custom_op("slidesparse::rmsnorm_quantize_out", mutates_args=("q", "scale_out"))
def rmsnorm_quantize_out(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> None:
    """`rmsnorm_quantize` without a residual into given outputs."""
    pattern = pattern_of(block)
    _check(x, weight, q.dtype, None, static_scale)
    check_norm_outputs(x, q, scale_out, pattern, None)
    _run(x, weight, eps, q, scale_out, pattern, None, None, static_scale)


# An op of its own: torch 2.11 fails on a mutated argument that is left out.
@torch.library.custom_op(
    "slidesparse::add_rmsnorm_quantize_out", mutates_args=("residual", "q", "scale_out")
)
def add_rmsnorm_quantize_out(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> None:
    """`rmsnorm_quantize` into given outputs; the residual is updated in place."""
    pattern = pattern_of(block)
    _check(x, weight, q.dtype, residual, static_scale)
    check_norm_outputs(x, q, scale_out, pattern, residual)
    _run(x, weight, eps, q, scale_out, pattern, residual, residual, static_scale)


@torch.library.custom_op("slidesparse::rmsnorm_quantize", mutates_args=())
def rmsnorm_quantize_op(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rmsnorm_quantize` without a residual: q and scale."""
    pattern = pattern_of(block)
    q, scale_out, _ = rmsnorm_quantize_rows(x, weight, eps, dtype, pattern, None, static_scale)
    return q, scale_out


@torch.library.custom_op("slidesparse::add_rmsnorm_quantize", mutates_args=())
def add_rmsnorm_quantize_op(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`rmsnorm_quantize` with a residual: q, scale and the new residual."""
    pattern = pattern_of(block)
    made = rmsnorm_quantize_rows(x, weight, eps, dtype, pattern, residual, static_scale)
    q, scale_out, hidden = made
    assert hidden is not None
    return q, scale_out, hidden


@rmsnorm_quantize_out.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> None:
    return None


@add_rmsnorm_quantize_out.register_fake
def _(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> None:
    return None


@rmsnorm_quantize_op.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return empty_quantised(x, x.shape[-1], dtype, block)


@add_rmsnorm_quantize_op.register_fake
def _(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    block: int = 1,
    static_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return *empty_quantised(x, x.shape[-1], dtype, block), x.new_empty(x.shape)


def rmsnorm_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype = torch.float8_e4m3fn,
    pattern: Pattern = DENSE,
    *,
    residual: torch.Tensor | None = None,
    static_scale: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(Add a residual,) RMSNorm, quantise each row and lift it for `pattern`, in one pass.

    h = x + residual, rounded to their dtype; y = h * weight / sqrt(mean(h^2) + eps) in float32, not
    rounded before it is quantised as `slidesparse.kernels.quantize` says.

    Args:
        x: [M, K] bf16, fp16 or fp32; rows may be strided. M = 0 gives empty results.
        weight: [K] of any of these dtypes.
        eps: added to the mean square.
        dtype: torch.float8_e4m3fn or torch.int8.
        pattern: whose lift is applied; dense for none.
        residual: [M, K] in the dtype of x.
        static_scale: one float32 to quantise all rows by, or None for the rows' own.
        out: (q, scale) to write to; the residual is then updated in place.

    Returns:
        q: [M, K'] of `dtype`; scale: [M] float32; h: [M, K], the new residual (x without one).

    Raises:
        KernelError: an operand has the wrong shape, dtype, layout or device.
        DeviceError: the GPU has no FP8.
    """
    block = pattern.block
    if out is not None:
        check_out_dtype(out[0], dtype)
        if residual is None:
            rmsnorm_quantize_out(x, weight, eps, *out, block, static_scale)
            return *out, x
        add_rmsnorm_quantize_out(x, residual, weight, eps, *out, block, static_scale)
        return *out, residual
    if residual is None:
        return *rmsnorm_quantize_op(x, weight, eps, dtype, block, static_scale), x
    return add_rmsnorm_quantize_op(x, residual, weight, eps, dtype, block, static_scale)
