"""dequant_rmsnorm_quantize: scale a GEMM's output back, add the residual, RMSNorm, quantise, lift.

For GEMMs that could not apply row and column scales themselves: one pass instead of two.
"""

from __future__ import annotations

import torch

from slidesparse.errors import KernelError
from slidesparse.kernel_problem import Op
from slidesparse.kernels import reference
from slidesparse.kernels.launch import (
    ACCUMULATORS,
    Scaled,
    check_out_dtype,
    check_residual,
    check_rows,
    config_for,
    empty_quantised,
    fill,
    pattern_of,
    runs_triton,
)
from slidesparse.kernels.rmsnorm_quant import (
    check_norm_operands,
    check_norm_outputs,
    launch_rmsnorm_quantize,
)
from slidesparse.pattern import DENSE, Pattern


def _run(
    a: torch.Tensor,
    scaled: Scaled,
    weight: torch.Tensor,
    eps: float,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    block: int,
    residual: torch.Tensor | None,
    hidden: torch.Tensor,
) -> None:
    pattern = pattern_of(block)
    check_rows(a, "a", ACCUMULATORS)
    scaled.check(a)
    check_norm_operands(a, weight, q.dtype)
    check_norm_outputs(a, q, scale_out, pattern, hidden)
    if residual is not None:
        check_residual(residual, a)
    if a.shape[0] == 0:
        return
    if not runs_triton(a):
        *made, new = reference.dequant_rmsnorm_quantize(
            a,
            scaled.row,
            scaled.column,
            weight,
            eps,
            q.dtype,
            pattern,
            scaled.bias,
            residual,
            hidden.dtype,
        )
        fill(q, scale_out, (made[0], made[1]))
        hidden.copy_(new)
        return
    op = Op.DEQUANT_RMSNORM_QUANTIZE
    config = config_for(op, a, a.shape[1], q.dtype, pattern, residual is not None)
    launch_rmsnorm_quantize(a, weight, eps, q, scale_out, pattern, config, residual, hidden, scaled)


@torch.library.custom_op("slidesparse::dequant_rmsnorm_quantize", mutates_args=())
def dequant_rmsnorm_quantize_op(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    block: int = 1,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`dequant_rmsnorm_quantize` as torch.compile sees it."""
    q, scale_out, hidden = _empty_hidden(a, weight, dtype, block, residual)
    scaled = Scaled(row_scale, column_scale, bias)
    _run(a, scaled, weight, eps, q, scale_out, block, residual, hidden)
    return q, scale_out, hidden


@torch.library.custom_op(
    "slidesparse::dequant_rmsnorm_quantize_out", mutates_args=("q", "scale_out", "hidden")
)
def dequant_rmsnorm_quantize_out(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    hidden: torch.Tensor,
    block: int = 1,
    bias: torch.Tensor | None = None,
    add: bool = False,
) -> None:
    """`dequant_rmsnorm_quantize` into given outputs; `add` takes `hidden` for the residual."""
    scaled = Scaled(row_scale, column_scale, bias)
    residual = hidden if add else None
    _run(a, scaled, weight, eps, q, scale_out, block, residual, hidden)


@dequant_rmsnorm_quantize_out.register_fake
def _(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    q: torch.Tensor,
    scale_out: torch.Tensor,
    hidden: torch.Tensor,
    block: int = 1,
    bias: torch.Tensor | None = None,
    add: bool = False,
) -> None:
    return None


@dequant_rmsnorm_quantize_op.register_fake
def _(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    block: int = 1,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _empty_hidden(a, weight, dtype, block, residual)


def _empty_hidden(
    a: torch.Tensor,
    weight: torch.Tensor,
    dtype: torch.dtype,
    block: int,
    residual: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """New outputs; the hidden state has the residual's dtype, or else the weight's."""
    kept = weight.dtype if residual is None else residual.dtype
    hidden = torch.empty(a.shape, dtype=kept, device=a.device)
    return *empty_quantised(a, a.shape[-1], dtype, block), hidden


def dequant_rmsnorm_quantize(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype = torch.float8_e4m3fn,
    pattern: Pattern = DENSE,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scale a GEMM's output back (+ bias) (+ residual), then as `rmsnorm_quantize`, in one pass.

    h = a * row_scale * column_scale (+ bias) (+ residual), rounded to the residual's dtype,
    or to the weight's where there is none.

    Args:
        a: [M, K] int32, fp32, bf16 or fp16: accumulators or an unscaled product; rows may be
            strided.
        row_scale: [M] or [1] float32.
        column_scale: [K] or [1] float32.
        weight: [K] bf16, fp16 or fp32, of the norm.
        eps: added to the mean square.
        dtype: torch.float8_e4m3fn or torch.int8.
        pattern: whose lift is applied; dense for none.
        bias: [K].
        residual: [M, K].
        out: (q, scale, h) to write to; h may be the residual, which is then updated in place.

    Returns:
        q: [M, K'] of `dtype`; scale: [M] float32; h: [M, K], the new residual.

    Raises:
        KernelError: an operand has the wrong shape, dtype, layout or device.
        DeviceError: the GPU has no FP8.
    """
    block = pattern.block
    if out is None:
        return dequant_rmsnorm_quantize_op(
            a, row_scale, column_scale, weight, eps, dtype, block, bias, residual
        )
    q, scale_out, hidden = out
    check_out_dtype(q, dtype)
    if residual is not None and residual is not hidden:
        if residual.dtype is not hidden.dtype or residual.shape != hidden.shape:
            raise KernelError(
                f"h is {hidden.dtype} {tuple(hidden.shape)} and residual is {residual.dtype} "
                f"{tuple(residual.shape)}; give both one dtype and shape"
            )
        hidden.copy_(residual)
    dequant_rmsnorm_quantize_out(
        a,
        row_scale,
        column_scale,
        weight,
        eps,
        q,
        scale_out,
        hidden,
        block,
        bias,
        residual is not None,
    )
    return out
