"""What the row kernels share on the device: loading, absmax, rounding, lifting and storing a row.

A program owns whole rows. A row is read once, in chunks that stay in registers while its largest
magnitude is found; then each chunk is rounded and stored, lifted where the pattern asks for it. A
chunk covers whole 2N blocks, so the lift never looks outside it: output pair o of a chunk is input
pair g + g // (N-1) + o % 2 with g = o // 2, which is the rule of slidesparse.pattern for pairs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from slidesparse.kernels import reference

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether Triton's interpreter runs the kernels: it truncates where the hardware rounds."""

ROUND_SHIFTER = tl.constexpr(12582912.0)
"""1.5 * 2^23: adding it leaves the nearest integer, ties to even, in the low bits of a float32."""

FP8_TOP = tl.constexpr(448.0)
INT8_TOP = tl.constexpr(127.0)

BEYOND_INT8 = tl.constexpr(1024.0)
"""Saturates, and is far from whatever overflows."""

FP8_SMALLEST_SCALE = tl.constexpr(reference.FP8_SMALLEST_SCALE)
"""The bound that vLLM sets too: a row without values of note keeps a scale that divides well."""

INT8_SMALLEST_SCALE = tl.constexpr(reference.INT8_SMALLEST_SCALE)
"""The smallest normal float32: its inverse is finite."""

LARGEST_INVERSE = tl.constexpr(reference.LARGEST_INVERSE)
"""Of a given scale, which may be zero: an infinite one would turn the zeros of a row into NaN."""


@triton.jit
def begin(OVERLAP: tl.constexpr):
    """Wait for the kernel before this one, and let the one after it come up; for overlap only."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def offset(row, stride, WIDE: tl.constexpr):
    """Elements before a row: in 64 bits, since rows x stride passes 2^31 at M = 65536."""
    if WIDE:
        return row * tl.cast(stride, tl.int64)
    else:
        return row * stride


@triton.jit
def chunk_columns(CHUNK: tl.constexpr, T: tl.constexpr):
    """The columns of a chunk, and which of them it covers and the row has."""
    lane = tl.arange(0, T.block)
    columns = CHUNK * T.span + lane
    inside = columns < T.k
    if T.span != T.block:
        inside = (lane < T.span) & inside
    return columns, inside


@triton.jit
def load_chunk(row, CHUNK: tl.constexpr, T: tl.constexpr):
    """A chunk of a row; columns that it does not cover or the row does not have are zero."""
    columns, inside = chunk_columns(CHUNK, T)
    if T.span == T.block and (CHUNK + 1) * T.block <= T.k:
        return tl.load(row + columns)
    else:
        return tl.load(row + columns, mask=inside, other=0)


@triton.jit
def load_scaled(
    row,
    row_factor,
    column_scale_ptr,
    stride_column_scale,
    bias_ptr,
    BIAS: tl.constexpr,
    CHUNK: tl.constexpr,
    T: tl.constexpr,
):
    """A chunk of a GEMM's unscaled output, scaled back (+ bias): float32."""
    columns, inside = chunk_columns(CHUNK, T)
    factor = tl.load(column_scale_ptr + columns * stride_column_scale, mask=inside, other=0.0)
    x = load_chunk(row, CHUNK, T).to(tl.float32) * row_factor * factor
    if BIAS:
        x += load_chunk(bias_ptr, CHUNK, T).to(tl.float32)
    return x


@triton.jit
def magnitude_bits(x):
    """The magnitude of float32 values as integers of the same order; NaN is above infinity."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def row_scale(largest, INT8: tl.constexpr):
    """The scale of a row from its largest magnitude, and the factor that undoes it."""
    # Comparisons let NaN through, which a maximum would drop.
    if INT8:
        scale = tl.div_rn(largest, INT8_TOP)
        inverse = tl.div_rn(INT8_TOP, largest)
        tiny = scale < INT8_SMALLEST_SCALE
        scale = tl.where(tiny, INT8_SMALLEST_SCALE, scale)
        inverse = tl.where(tiny, 1.0 / INT8_SMALLEST_SCALE, inverse)
    else:
        scale = tl.div_rn(largest, FP8_TOP)
        scale = tl.where(scale < FP8_SMALLEST_SCALE, FP8_SMALLEST_SCALE, scale)
        inverse = tl.div_rn(1.0, scale)
    return scale, inverse


@triton.jit
def given_scale(static_ptr):
    """A scale that was given, and the factor that undoes it."""
    scale = tl.load(static_ptr)
    inverse = tl.div_rn(1.0, scale)
    # A comparison, not a minimum, which would drop NaN.
    return scale, tl.where(inverse > LARGEST_INVERSE, LARGEST_INVERSE, inverse)


@triton.jit
def multiply_add(x, y, z):
    """Multiply and add float32 values, rounding once: x * y + z."""
    if INTERPRETED:
        # Its own rounds twice, which moves quotients that lie between two codes.
        return (x.to(tl.float64) * y.to(tl.float64) + z.to(tl.float64)).to(tl.float32)
    else:
        return tl.fma(x, y, z)


@triton.jit
def corrected(y, x, scale, inverse):
    """The rounded quotient x / scale of float32 values from y, which is off in the last place.

    Markstein: two multiply-adds instead of a division.
    """
    # With these signs the correction of -0 is -0: Triton's -x is 0 - x, which has no -0.
    return multiply_add(multiply_add(y, scale, -x), -inverse, y)


@triton.jit
def rounded(x, scale, inverse, INT8: tl.constexpr, STATIC: tl.constexpr):
    """float32 values as the bytes of their quantised form.

    STATIC is for a scale that was given, beyond which values may lie: they saturate. FP8 multiplies
    and INT8 divides then, which is the other way round than with the row's own: so does vLLM.
    """
    y = x * inverse
    # With an else each: Triton compiles what follows a return, FP8 for GPUs that lack it too.
    if INT8:
        if STATIC:
            # Of a product that overflowed the correction would be NaN; this one still saturates.
            y = tl.minimum(tl.maximum(y, -BEYOND_INT8), BEYOND_INT8)
            return int8_byte(corrected(y, x, scale, inverse))
        else:
            byte = (y + ROUND_SHIFTER).to(tl.int32, bitcast=True).to(tl.int8)
            # Only NaN differs from itself; infinity less itself is NaN.
            kept = scale - scale
            return tl.where(kept == kept, byte, 0)
    elif STATIC:
        return fp8_byte(y)
    else:
        return fp8_byte(corrected(y, x, scale, inverse))


@triton.jit
def int8_byte(y):
    """float32 values as the bytes of INT8, nearest, ties to even; saturates, and NaN is 0."""
    if INTERPRETED:
        y = tl.minimum(tl.maximum(tl.where(y == y, y, 0.0), -128.0), 127.0)
        return (y + ROUND_SHIFTER).to(tl.int32, bitcast=True).to(tl.int8)
    # One instruction, for which Triton has no word, does all of that.
    byte = tl.inline_asm_elementwise(
        "cvt.rni.sat.s8.f32 $0, $1;",
        constraints="=r,f",
        args=[y],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )
    return byte.to(tl.int8)


@triton.jit
def fp8_byte(y):
    """float32 values as the bytes of E4M3, nearest, ties to even; saturates, and NaN stays."""
    if INTERPRETED:
        bits = y.to(tl.int32, bitcast=True)
        exponent = tl.maximum(((bits >> 23) & 0xFF) - 127, -6)
        step = ((exponent + 124) << 23).to(tl.float32, bitcast=True)
        steps = (tl.abs(y) / step + ROUND_SHIFTER).to(tl.int32, bitcast=True) & 0xFFFF
        code = tl.where(y == y, tl.minimum((exponent + 6) * 8 + steps, 0x7E), 0x7F)
        return (code | ((bits >> 24) & 0x80)).to(tl.int8)
    else:
        return y.to(tl.float8e4nv).to(tl.int8, bitcast=True)


@triton.jit
def narrowed(x, DTYPE: tl.constexpr):
    """float32 values in a narrower type, nearest, ties to even."""
    if INTERPRETED and DTYPE is tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) of float32 values: within 1e-6 for |x| <= 4, within 5e-6 anywhere."""
    if INTERPRETED:
        return 1.0 / (1.0 + tl.exp(-x))
    # tl.exp and a division guard against denormal results, which 1 + exp(-x) cannot be: ten
    # instructions an element, on a kernel that has about twenty to stay at memory speed.
    return tl.inline_asm_elementwise(
        """
        {
            .reg .f32 e;
            mul.f32 e, $1, 0fBFB8AA3B;
            ex2.approx.ftz.f32 e, e;
            add.f32 e, e, 0f3F800000;
            rcp.approx.ftz.f32 $0, e;
        }
        """,
        constraints="=f,f",
        args=[x],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def largest_magnitude(values, T: tl.constexpr):
    """The largest magnitude of a row of float32 chunks; NaN if one of its values is."""
    bits = magnitude_bits(values[0].to(tl.float32))
    for chunk in tl.static_range(1, T.chunks):
        bits = tl.maximum(bits, magnitude_bits(values[chunk].to(tl.float32)))
    return tl.max(bits, axis=0).to(tl.float32, bitcast=True)


@triton.jit
def store_row(
    values, scale, inverse, q_row, INT8: tl.constexpr, STATIC: tl.constexpr, T: tl.constexpr
):
    """Round the chunks of a row and store them, lifted where the pattern asks for it."""
    for chunk in tl.static_range(T.chunks):
        byte = rounded(values[chunk].to(tl.float32), scale, inverse, INT8, STATIC)
        if T.windows <= 1:
            columns = chunk * T.block + tl.arange(0, T.block)
            if (chunk + 1) * T.block <= T.k_out:
                tl.store(q_row + columns, byte)
            else:
                tl.store(q_row + columns, byte, mask=columns < T.k_out)
        else:
            low, high = tl.split(tl.reshape(byte, [T.block // 2, 2]))
            pairs = (low.to(tl.int16) & 0xFF) | (high.to(tl.int16) << 8)
            out = tl.arange(0, T.made_block)
            window = out // 2
            source = window + window // T.windows + out % 2
            lifted = tl.gather(pairs, tl.minimum(source, T.block // 2 - 1), axis=0)
            columns = chunk * T.made + out
            inside = (out < T.made) & (columns < T.k_out // 2)
            tl.store(q_row.to(tl.pointer_type(tl.int16)) + columns, lifted, mask=inside)


@triton.jit
def quantize_row(
    values, q_row, scale_ptr, static_ptr, INT8: tl.constexpr, STATIC: tl.constexpr, T: tl.constexpr
):
    """Quantise a row by its own largest magnitude or by the scale given; lift it and store both."""
    if STATIC:
        scale, inverse = given_scale(static_ptr)
    else:
        scale, inverse = row_scale(largest_magnitude(values, T), INT8)
    tl.store(scale_ptr, scale)
    store_row(values, scale, inverse, q_row, INT8, STATIC, T)
