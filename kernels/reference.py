"""What each kernel computes, in plain torch: obviously right, for tests, tuning and the CPU."""

from __future__ import annotations

import torch

from slidesparse.pattern import DENSE, Pattern
from slidesparse.slide import lift

FP8_SMALLEST_SCALE = 1.0 / (448.0 * 512.0)
INT8_SMALLEST_SCALE = 2.0**-126
LARGEST_INVERSE = torch.finfo(torch.float32).max
FP8_NAN = 0x7F


def quantize(
    x: torch.Tensor,
    dtype: torch.dtype,
    pattern: Pattern = DENSE,
    static_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise rows x [M, K] and lift them; see slidesparse.kernels.quant.quantize.

    Returns:
        q: [M, K'] of `dtype`; scale: [M] float32.
    """
    x = x.float()
    if static_scale is None:
        q, scales = _by_largest(x, x.abs().amax(dim=1), dtype)
        sound = scales.isfinite()
    else:
        scales = static_scale.reshape(1).expand(x.shape[0]).clone()
        q = _by_given(x, static_scale.reshape(1), dtype)
        sound = ~scales.isnan()
    q = q.to(dtype)
    lifted = q if pattern.dense else lift(q, pattern)
    if dtype is torch.float8_e4m3fn:
        # The padding of a row that has no sound scale is NaN like the rest of it.
        bits = torch.where(sound[:, None], lifted.view(torch.uint8), FP8_NAN)
        lifted = bits.to(torch.uint8).view(dtype)
    return lifted, scales


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of rows x [M, K] with weight [K], in float32: x * weight / sqrt(mean(x^2) + eps)."""
    x = x.float()
    inverse = torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)
    return x * weight.float() * inverse


def rmsnorm_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    pattern: Pattern = DENSE,
    residual: torch.Tensor | None = None,
    static_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(Add the residual,) RMSNorm, quantise, lift.

    Returns:
        q: [M, K']; scale: [M]; the new residual: [M, K] in the dtype of x.
    """
    if residual is not None:
        x = (x.float() + residual.float()).to(x.dtype)
    return *quantize(rmsnorm(x, weight, eps), dtype, pattern, static_scale), x


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """SiLU(gate) * up of rows [M, 2F], gate first, in float32: [M, F]."""
    gate, up = gate_up.float().chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up


def silu_mul_quantize(
    gate_up: torch.Tensor,
    dtype: torch.dtype,
    pattern: Pattern = DENSE,
    static_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """SiLU(gate) * up, quantise, lift: q [M, K'] and scale [M]."""
    return quantize(silu_mul(gate_up), dtype, pattern, static_scale)


def dequantize(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scale rows a [M, N] back by row and column scales (+ bias [N]) (+ residual [M, N])."""
    y = a.float() * row_scale.reshape(-1, 1) * column_scale.reshape(1, -1)
    if bias is not None:
        y = y + bias.float()
    if residual is not None:
        y = y + residual.float()
    return y.to(out_dtype)


def dequant_rmsnorm_quantize(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    pattern: Pattern = DENSE,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    hidden_dtype: torch.dtype = torch.bfloat16,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Dequantise (+ bias) (+ residual) to `hidden_dtype`, then as rmsnorm_quantize."""
    x = dequantize(a, row_scale, column_scale, hidden_dtype, bias, residual)
    return rmsnorm_quantize(x, weight, eps, dtype, pattern)


def dequant_silu_mul_quantize(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    dtype: torch.dtype,
    pattern: Pattern = DENSE,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dequantise (+ bias) in float32, then as silu_mul_quantize."""
    y = dequantize(a, row_scale, column_scale, torch.float32, bias)
    return silu_mul_quantize(y, dtype, pattern)


def pack24(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compress a 2:4 matrix; see slidesparse.kernels.pack.pack24.

    Returns:
        values: [N, K/2] of the dtype of w; metadata: [N, K/8] uint8.
    """
    rows, k = w.shape
    bits = w.view(torch.uint8).reshape(rows, k // 4, 4)
    # Non-zeros first; among zeros the last position first. Two are kept, in order.
    last_first = torch.arange(3, -1, -1, device=w.device)
    order = torch.argsort(_zero(w).long() * (4 + last_first), dim=2, stable=True)
    kept = order[:, :, :2].sort(dim=2).values
    values = torch.gather(bits, 2, kept).reshape(rows, k // 2).view(w.dtype)
    nibbles = (kept[:, :, 0] | (kept[:, :, 1] << 2)).to(torch.uint8).reshape(rows, k // 8, 2)
    return values, nibbles[:, :, 0] | (nibbles[:, :, 1] << 4)


def unpack24(values: torch.Tensor, metadata: torch.Tensor) -> torch.Tensor:
    """The 2:4 matrix [N, K] that values [N, K/2] and metadata [N, K/8] stand for."""
    rows, half = values.shape
    nibbles = torch.stack((metadata & 0xF, metadata >> 4), dim=2).reshape(rows, half // 2)
    positions = torch.stack((nibbles & 3, nibbles >> 2), dim=2).long()
    groups = torch.zeros((rows, half // 2, 4), dtype=torch.uint8, device=values.device)
    groups.scatter_(2, positions, values.view(torch.uint8).reshape(rows, half // 2, 2))
    return groups.reshape(rows, 2 * half).view(values.dtype)


def occupied(w: torch.Tensor) -> torch.Tensor:
    """How many non-zeros each group of four of w [N, K] holds: [N, K/4]."""
    return (~_zero(w)).sum(dim=2)


def _zero(w: torch.Tensor) -> torch.Tensor:
    """Which values of w [N, K] are zero, by groups of four; FP8 has two zeros."""
    bits = w.view(torch.uint8).reshape(w.shape[0], w.shape[1] // 4, 4)
    return (bits & 0x7F) == 0 if w.dtype is torch.float8_e4m3fn else bits == 0


def _by_given(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype is torch.int8:
        return (x / scale).round().clamp(-128, 127).nan_to_num(0.0)
    inverse = torch.ones_like(scale) / scale
    inverse = torch.where(inverse > LARGEST_INVERSE, LARGEST_INVERSE, inverse)
    return (x * inverse).clamp(-448.0, 448.0)


def _by_largest(
    x: torch.Tensor, largest: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    # Divisors are tensors: torch turns a division by a number, and of a number, into a
    # multiplication with a rounded reciprocal.
    if dtype is torch.int8:
        top = torch.full_like(largest, 127.0)
        scale = largest / top
        tiny = scale < INT8_SMALLEST_SCALE
        inverse = torch.where(tiny, 1.0 / INT8_SMALLEST_SCALE, top / largest)
        scale = torch.where(tiny, INT8_SMALLEST_SCALE, scale)
        q = (x * inverse[:, None]).round()
        return torch.where(scale[:, None].isfinite(), q, 0.0), scale
    scale = largest / torch.full_like(largest, 448.0)
    scale = torch.where(scale < FP8_SMALLEST_SCALE, FP8_SMALLEST_SCALE, scale)
    return x / scale[:, None], scale
