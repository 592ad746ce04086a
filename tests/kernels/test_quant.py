"""quantize against an oracle in NumPy, in every bit: ties, special rows, static scales, lift."""

from __future__ import annotations

import kernel_checks as checks
import kernel_oracle as oracle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slidesparse.errors import KernelError, PatternError
from slidesparse.kernels import quant as module
from slidesparse.kernels import quantize, reference
from slidesparse.kernels.quant import quantize_op, quantize_rows
from slidesparse.pattern import Pattern
from slidesparse.slide import lift, prune_magnitude, slide

FP8, INT8 = checks.QUANTISED
SIX_EIGHT = Pattern.parse("6:8")
NAN, INF = float("nan"), float("inf")

each_dtype = pytest.mark.parametrize("dtype", checks.QUANTISED, ids=checks.short)
each_pattern = pytest.mark.parametrize("pattern", checks.PATTERNS, ids=str)


def assert_oracle(x, dtype, pattern, scale=None):
    """The kernel and the reference agree with the oracle in every bit."""
    given_scale = None if scale is None else np.float32(scale.item())
    want = oracle.quantized(x.float().numpy(), dtype is INT8, pattern.block, given_scale)
    for q, scales in (
        quantize(x, dtype, pattern, static_scale=scale),
        reference.quantize(x, dtype, pattern, scale),
    ):
        assert q.dtype is dtype
        np.testing.assert_array_equal(scales.numpy(), want[1])
        codes = q.view(torch.uint8).numpy()
        codes = oracle.one_nan(codes) if dtype is FP8 else codes
        np.testing.assert_array_equal(codes, want[0])


def tied(scale, offset=0):
    """float32 values whose quotient by `scale` lies half way between FP8 codes, or next to it."""
    scale = np.float32(scale)
    x = (oracle.FP8_TIES * np.float64(scale)).astype(np.float32)
    if offset:
        x = np.nextafter(x, np.float32(offset) * np.float32(INF))
    return np.concatenate([x, -x])


@each_dtype
@each_pattern
@pytest.mark.parametrize("source", checks.FLOATS, ids=checks.short)
def test_every_bit_is_the_oracle_s(dtype, pattern, source, seed):
    assert_oracle(checks.draw(2, 83, source, seed), dtype, pattern)


@each_dtype
def test_the_reference_is_the_oracle_at_size(dtype, seed):
    """The interpreter is too slow for this; the GPU tests compare the kernel with the reference."""
    x = checks.draw(64, 3588, torch.bfloat16, seed)
    q, scales = reference.quantize(x, dtype, SIX_EIGHT)
    want = oracle.quantized(x.float().numpy(), dtype is INT8, 8)
    np.testing.assert_array_equal(q.view(torch.uint8).numpy(), want[0])
    np.testing.assert_array_equal(scales.numpy(), want[1])


@pytest.mark.parametrize("largest", [448.0, 3.5, 1.2345, 0.01, 7e4])
def test_fp8_ties_go_to_even_under_a_scale_of_the_row(largest):
    """Quotients that fall between two codes, and their neighbours, whatever the scale."""
    scale = np.float32(largest) / np.float32(448)
    rows = [np.append(tied(scale, offset), np.float32(largest)) for offset in (-1, 0, 1)]
    assert_oracle(torch.from_numpy(np.stack(rows)), FP8, SIX_EIGHT)


@pytest.mark.parametrize("scale", [1.0, 0.0371, 3.0])
def test_fp8_ties_go_to_even_under_a_static_scale(scale):
    rows = torch.from_numpy(np.stack([tied(scale, offset) for offset in (-1, 0, 1)]))
    assert_oracle(rows, FP8, Pattern.parse("dense"), torch.tensor([scale]))


def test_every_fp8_code_survives():
    """Each of the 254 finite codes, scaled by one, is itself; both zeros too."""
    finite = [code for code in range(256) if code & 0x7F != oracle.FP8_NAN]
    x = torch.tensor(oracle.FP8_VALUES[finite], dtype=torch.float32)[None]
    for scale in (None, torch.ones(1)):
        q, scales = quantize(x, FP8, static_scale=scale)
        assert scales.item() == 1.0
        assert q.view(torch.uint8)[0].tolist() == finite


@pytest.mark.parametrize("power", [-20, 0, 9])
def test_int8_ties_go_to_even(power):
    halves = torch.arange(-127, 127) + 0.5
    x = torch.cat([halves, torch.tensor([127.0, 126.5])])[None] * 2.0**power
    q, scales = quantize(x, INT8)
    assert scales.item() == 2.0**power
    want = [int(v) for v in np.rint(x[0].numpy() / 2.0**power)]
    assert q[0].tolist() == want
    assert set(want[:-2]) <= set(range(-126, 127, 2))


SPECIAL = {
    "zeros": [0.0, -0.0, 0.0, 0.0],
    "huge": [3e38, -1e38, 1.0, 1e30],
    "largest": [torch.finfo(torch.float32).max, 1e38, -3.4e38, 0.0],
    "tiny": [1e-40, -3e-41, 1e-45, 0.0],
    "small": [1e-37, -5e-38, 1e-38, 2e-39],
    "below the FP8 bound": [4.8e-6, 0.5 * 448 / (448 * 512), 1.9e-3, -1e-3],
    "nan": [1.0, NAN, -2.0, 0.0],
    "inf": [1.0, INF, -2.0, 0.0],
    "minus inf": [-INF, 1.0, 2.0, 0.0],
    "nan and inf": [INF, 1.0, NAN, -INF],
    "mixed": [1e-30, 1e30, -1e10, 1e29],
}


@each_dtype
@pytest.mark.parametrize("text", ["dense", "4:6", "6:8", "16:18"])
def test_special_rows(dtype, text):
    """Beside ordinary rows, whose results must not change."""
    rows = [[*values, *([0.0] * 16)] for values in SPECIAL.values()]
    rows.append([float(i) for i in range(20)])
    with np.errstate(all="ignore"):
        assert_oracle(torch.tensor(rows), dtype, Pattern.parse(text))


@each_dtype
@each_pattern
def test_what_the_docstring_says_of_zeros_nan_and_infinity(dtype, pattern):
    x = torch.ones(4, 21)
    x[0] = 0.0
    x[1, 20] = NAN
    x[2, 0] = -INF
    q, scale = quantize(x, dtype, pattern)
    nan = checks.is_nan(q)
    assert scale.isfinite().tolist() == [True, False, False, True]
    assert scale[1].isnan()
    assert scale[2] == INF
    assert scale[0] > 0
    assert not q[0].float().any()
    if dtype is FP8:
        assert nan[1:3].all(), "padding too"
        assert not nan[[0, 3]].any()
    else:
        assert not q[1:3].any()
    if not pattern.dense:
        padding = torch.from_numpy(pattern.lift_index(21).copy()) < 0
        assert not q[3].float()[padding].any()
    assert (q[3].float()[torch.from_numpy(pattern.lift_index(21).copy()) >= 0] > 0).all()


@each_dtype
@pytest.mark.parametrize("value", [0.02, 1.0, 117.5, 2.0**-126, 1e30])
def test_a_static_scale_saturates(dtype, value, seed):
    """NaN stays NaN in FP8 and is 0 in INT8; infinity saturates; no row spoils its neighbour."""
    x = checks.draw(3, 50, torch.float32, seed) * 40 * value
    x[0, :4] = torch.tensor([NAN, INF, -INF, 0.0])
    x[1, :3] = torch.tensor([3e38, -3e38, 1e-40])
    with np.errstate(all="ignore"):
        assert_oracle(x, dtype, SIX_EIGHT, torch.tensor([value]))


@pytest.mark.parametrize("scale", [0.0371, 3.0, 1.2345e-5, 2.0**-126, 7e30])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16], ids=checks.short)
def test_int8_divides_by_a_static_scale(scale, source):
    """Multiples of half a scale and their neighbours: a product with the inverse misses some."""
    x = (np.arange(-260, 261) * np.float64(0.5) * scale).astype(np.float32)
    rows = np.stack([x, np.nextafter(x, np.float32(INF)), np.nextafter(x, np.float32(-INF))])
    assert_oracle(torch.from_numpy(rows).to(source), INT8, SIX_EIGHT, torch.tensor([scale]))


@each_dtype
@pytest.mark.parametrize("value", [0.0, 1e-40, NAN, INF])
@pytest.mark.parametrize("text", ["dense", "6:8"])
def test_a_static_scale_that_nobody_should_give(dtype, value, text, seed):
    """It is what the formula makes of it; under zero, zeros and padding stay what they are."""
    x = checks.draw(2, 21, torch.float32, seed)
    x[0, 3:7] = torch.tensor([0.0, INF, -INF, NAN])
    pattern, scale = Pattern.parse(text), torch.tensor([value])
    assert_oracle(x, dtype, pattern, scale)
    q, made = quantize(x, dtype, pattern, static_scale=scale)
    np.testing.assert_array_equal(made.numpy(), np.full(2, value, np.float32))
    if np.isnan(value):
        assert checks.is_nan(q).all() if dtype is FP8 else not q.any()
    if value == 0:
        ends = {-448.0, 448.0} if dtype is FP8 else {-128.0, 127.0}
        assert set(q[1].float().tolist()) == (ends if pattern.dense else ends | {0.0})


def test_a_static_scale_may_be_any_one_value_of_a_tensor():
    """Of no dimension, of one or two, and where no address is a multiple of 16."""
    x, scales = torch.tensor([[1.0, 2.0, -3.0]]), torch.tensor([9.0, 0.5, 9.0])
    for scale in (scales[1], scales[1:2], scales[1:2, None]):
        q, made = quantize(x, INT8, static_scale=scale)
        assert q.tolist() == [[2, 4, -6]]
        assert made.tolist() == [0.5]


@each_dtype
@pytest.mark.parametrize("interpreted", [True, False])
def test_rows_without_an_operator_around_them(dtype, interpreted, monkeypatch, seed):
    """Through the kernel and, where there is none, through the reference."""
    monkeypatch.setattr(module, "runs_triton", lambda x: interpreted)
    x = checks.draw(3, 50, torch.bfloat16, seed)
    for scale in (None, torch.tensor([0.02])):
        made = quantize_rows(x, dtype, SIX_EIGHT, scale)
        want = reference.quantize(x, dtype, SIX_EIGHT, scale)
        for a, b in zip(made, want, strict=True):
            checks.assert_same_bits(a, b)
        none = quantize_rows(x[:0], dtype, SIX_EIGHT, scale)
        assert [tuple(each.shape) for each in none] == [(0, made[0].shape[1]), (0,)]


def test_a_static_scale_reaches_the_ends():
    x = torch.tensor([[-INF, -129.0, -128.4, -127.5, 126.5, 127.4, 500.0, NAN]])
    q, scale = quantize(x, INT8, static_scale=torch.ones(1))
    assert q[0].tolist() == [-128, -128, -128, -128, 126, 127, 127, 0]
    assert scale.tolist() == [1.0]
    q, _ = quantize(x * 4, FP8, static_scale=torch.ones(1))
    assert q[0].float()[[0, 1, 6]].tolist() == [-448.0, -448.0, 448.0]
    assert checks.is_nan(q)[0].tolist() == [False] * 7 + [True]


@each_dtype
@each_pattern
def test_the_lift_is_a_gather_of_the_dense_form(dtype, pattern, seed):
    x = checks.draw(2, 61, torch.float16, seed)
    dense, dense_scale = quantize(x, dtype)
    q, scale = quantize(x, dtype, pattern)
    assert torch.equal(scale, dense_scale)
    checks.assert_same_bits(q, lift(dense, pattern))
    want = oracle.lifted(dense.view(torch.uint8).numpy(), pattern.block)
    np.testing.assert_array_equal(q.view(torch.uint8).numpy(), want)


@given(
    pattern=st.sampled_from(checks.PATTERNS),
    m=st.integers(1, 3),
    n=st.integers(1, 5),
    k=st.integers(1, 150),
    source=st.sampled_from(checks.FLOATS),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=70)
def test_slide_times_lift_is_the_dense_product(pattern, m, n, k, source, seed):
    """slide(W) @ lift(x) == W @ x exactly, in INT32, through the kernel."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randint(-128, 128, (n, k), generator=generator).float()
    w = prune_magnitude(w, pattern).to(torch.int8)
    x = torch.randn(m, k, generator=generator).to(source)
    dense, dense_scale = quantize(x, INT8)
    q, scale = quantize(x, INT8, pattern)
    assert torch.equal(scale, dense_scale)
    assert torch.equal(slide(w, pattern).int() @ q.int().T, w.int() @ dense.int().T)


def made(shape, dtype=FP8):
    return torch.empty(shape, dtype=dtype)


X = torch.ones(4, 16)
S = torch.empty(4)
WRONG = {
    "x has 1 dimensions (4,); reshape it to [tokens, width]": lambda: quantize(torch.ones(4)),
    "x has 3 dimensions (1, 4, 16)": lambda: quantize(X[None]),
    "x is torch.int32; use one of bfloat16, float16, float32": lambda: quantize(X.int()),
    "x is torch.float64": lambda: quantize(X.double()),
    "the columns of x are 4 elements apart; rows may be strided, columns may not": (
        lambda: quantize(torch.ones(16, 4).T)
    ),
    "cannot quantise to torch.uint8; use torch.float8_e4m3fn or torch.int8": (
        lambda: quantize(X, torch.uint8)
    ),
    "cannot quantise to torch.float8_e5m2": lambda: quantize(X, torch.float8_e5m2),
    "q is torch.int8, and torch.float8_e4m3fn was asked for": (
        lambda: quantize(X, FP8, out=(made((4, 16), INT8), S))
    ),
    "q has shape (4, 17); [4, 16] is needed": lambda: quantize(X, out=(made((4, 17)), S)),
    "q has shape (4, 16); [4, 32] is needed": (
        lambda: quantize(X, FP8, SIX_EIGHT, out=(made((4, 16)), S))
    ),
    "the columns of q are 4 elements apart, not 1": (lambda: quantize(X, out=(made((16, 4)).T, S))),
    "q starts 0 bytes past a multiple of 2 and its rows are 33 bytes apart; pattern 6:8 needs": (
        lambda: quantize(X, FP8, SIX_EIGHT, out=(made((4, 33))[:, :32], S))
    ),
    "q starts 1 bytes past a multiple of 2 and its rows are 34 bytes apart; pattern 6:8 needs": (
        lambda: quantize(X, FP8, SIX_EIGHT, out=(made((4, 34))[:, 1:33], S))
    ),
    "the output scale has shape (3,); 4 consecutive values are needed": (
        lambda: quantize(X, out=(made((4, 16)), S[:3]))
    ),
    "the output scale is torch.float16; float32 is needed": (
        lambda: quantize(X, out=(made((4, 16)), S.half()))
    ),
    "static_scale has shape (2,); 1 consecutive values are needed": (
        lambda: quantize(X, static_scale=torch.ones(2))
    ),
    "static_scale is torch.float64; float32 is needed": (
        lambda: quantize(X, static_scale=torch.ones(1, dtype=torch.float64))
    ),
    "static_scale has shape (4,); 1 consecutive values": (
        lambda: quantize(X, static_scale=torch.ones(4), out=(made((4, 16)), S))
    ),
    "static_scale is on meta and the rows are on cpu": (
        lambda: quantize_rows(X, FP8, SIX_EIGHT, torch.ones(1, device="meta"))
    ),
    "x has 1 dimensions (16,); reshape": lambda: quantize_rows(X[0], FP8, SIX_EIGHT),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_operands_are_refused_with_the_values(message):
    with pytest.raises(KernelError) as raised:
        WRONG[message]()
    assert message in str(raised.value)


def test_no_columns_are_refused():
    with pytest.raises(KernelError, match=r"rows \(4, 0\) have too few columns"):
        quantize(torch.empty(4, 0))
    with pytest.raises(KernelError, match=r"x \(4, 0\) has no columns"):
        quantize(torch.empty(4, 0), out=(made((4, 0)), S))


@pytest.mark.parametrize("block", [2, 3, 7, -4])
def test_a_block_that_no_pattern_has_is_refused(block):
    with pytest.raises(PatternError, match=r"is not of the \(2N-2\):2N family"):
        quantize_op(X, FP8, block)
