"""What the row kernels have to compute, written from the formulas in NumPy: no slidesparse here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Bytes = npt.NDArray[np.uint8]

FP8_NAN = 0x7F
FP8_LARGEST_CODE = 0x7E
FP8_SMALLEST_SCALE = np.float32(1 / (448 * 512))
INT8_SMALLEST_SCALE = np.float32(2.0**-126)


def fp8_value(code: int) -> float:
    """What one of the 256 codes of E4M3 stands for (OCP 8-bit floating point, table 1)."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


FP8_VALUES = np.array([fp8_value(code) for code in range(256)])
"""By code; the codes 0 to 0x7E are in ascending order."""

FP8_TIES = (FP8_VALUES[:FP8_LARGEST_CODE] + FP8_VALUES[1 : FP8_LARGEST_CODE + 1]) / 2
"""Half way between neighbouring codes; float32 holds all of them."""


def nearest_fp8(x: Floats) -> Bytes:
    """The codes nearest to x, ties to the even one, saturating; found among all the values."""
    magnitude = np.abs(x.astype(np.float64))
    code = np.searchsorted(FP8_TIES, magnitude, side="left")
    tie = FP8_TIES[np.minimum(code, len(FP8_TIES) - 1)] == magnitude
    code = code + (tie & (code % 2 == 1))
    code = np.where(np.isnan(magnitude), FP8_NAN, code)
    return (code | np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)


def lifted(q: Bytes, block: int, padding: npt.NDArray[np.uint8] | int = 0) -> Bytes:
    """lifted[4(N-1)b + 4w + j] = x[2Nb + 2w + j], K' a multiple of 32, `padding` where x ends."""
    if block == 1:
        return q
    m, k = q.shape
    windows = block // 2 - 1
    blocks = (k + block - 1) // block
    width = (blocks * 4 * windows + 31) // 32 * 32
    out = np.empty((m, width), np.uint8)
    out[:] = np.asarray(padding, np.uint8).reshape(-1, 1)
    for b in range(blocks):
        for w in range(windows):
            for j in range(4):
                source = block * b + 2 * w + j
                if source < k:
                    out[:, 4 * windows * b + 4 * w + j] = q[:, source]
    return out


@np.errstate(all="ignore")
def quantized(
    x: npt.NDArray[np.float32], int8: bool, block: int, scale: np.float32 | None = None
) -> tuple[Bytes, npt.NDArray[np.float32]]:
    """Rows [M, K] as the bytes [M, K'] and scales [M] that quantize documents; one NaN is 0x7F."""
    assert x.dtype == np.float32
    if scale is not None:
        return lifted(*_by_given(x, int8, block, scale)), np.full(x.shape[0], scale, np.float32)
    scales, inverse = _scales(x, int8)
    if int8:
        codes = np.where(np.isfinite(scales)[:, None], np.rint(x * inverse[:, None]), 0.0)
        return lifted(codes.astype(np.int8).view(np.uint8), block), scales
    codes = nearest_fp8(x / scales[:, None])
    finite = np.isfinite(scales)
    codes[~finite] = FP8_NAN
    return lifted(one_nan(codes), block, np.where(finite, 0, FP8_NAN)), scales


def _by_given(
    x: npt.NDArray[np.float32], int8: bool, block: int, scale: np.float32
) -> tuple[Bytes, int, int]:
    """The codes, the block and the padding of rows under a given scale, as vLLM has them."""
    if int8:
        codes = np.nan_to_num(np.clip(np.rint(x / scale), -128, 127), nan=0.0)
        return codes.astype(np.int8).view(np.uint8), block, 0
    inverse = np.minimum(np.float32(1) / scale, np.finfo(np.float32).max)
    return one_nan(nearest_fp8(x * inverse)), block, FP8_NAN if np.isnan(scale) else 0


def one_nan(codes: Bytes) -> Bytes:
    """FP8 codes with a single NaN: the sign of one says nothing."""
    return np.where((codes & 0x7F) == FP8_NAN, np.uint8(FP8_NAN), codes)


def _scales(
    x: npt.NDArray[np.float32], int8: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    one = np.float32(1)
    largest = np.abs(x).max(axis=1)
    if not int8:
        scales = np.maximum(largest / np.float32(448), FP8_SMALLEST_SCALE)
        return scales, one / scales
    scales = largest / np.float32(127)
    tiny = scales < INT8_SMALLEST_SCALE
    inverse = np.where(tiny, one / INT8_SMALLEST_SCALE, np.float32(127) / largest)
    return np.where(tiny, INT8_SMALLEST_SCALE, scales), inverse


def rmsnorm(x: Floats, weight: Floats, eps: float) -> npt.NDArray[np.float64]:
    """x * weight / sqrt(mean(x^2) + eps) of rows [M, K], in float64."""
    x = x.astype(np.float64)
    return x * weight.astype(np.float64) / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps)


def silu_mul(gate_up: Floats) -> npt.NDArray[np.float64]:
    """SiLU(gate) * up of rows [M, 2F], in float64."""
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=1)
    return gate / (1 + np.exp(-gate)) * up


def dequantized(
    a: Floats,
    row: Floats,
    column: Floats,
    bias: Floats | None = None,
    residual: Floats | None = None,
) -> npt.NDArray[np.float64]:
    """a * row * column (+ bias) (+ residual), in float64."""
    y = a.astype(np.float64) * row.astype(np.float64).reshape(-1, 1) * column.astype(np.float64)
    for added in (bias, residual):
        if added is not None:
            y = y + added.astype(np.float64)
    return y
