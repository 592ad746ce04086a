"""silu_mul_quantize: as near the truth as plain torch, special rows, wrong operands."""

from __future__ import annotations

import kernel_checks as checks
import kernel_oracle as oracle
import numpy as np
import pytest
import torch

from slidesparse.errors import KernelError
from slidesparse.kernels import reference, silu_mul_quantize
from slidesparse.kernels import silu_mul_quant as module
from slidesparse.kernels.silu_mul_quant import silu_mul_quantize_rows
from slidesparse.pattern import DENSE, Pattern

FP8, INT8 = checks.QUANTISED
SIX_EIGHT = Pattern.parse("6:8")
each_dtype = pytest.mark.parametrize("dtype", checks.QUANTISED, ids=checks.short)
each_source = pytest.mark.parametrize("source", checks.FLOATS, ids=checks.short)


@each_dtype
@each_source
def test_as_near_the_truth_as_plain_torch(dtype, source, seed):
    x = checks.draw(6, 600, source, seed)
    truth = oracle.silu_mul(x.double().numpy())
    plain = torch.nn.functional.silu(x[:, :300]) * x[:, 300:]
    checks.assert_as_good_as_torch(
        checks.undone(*silu_mul_quantize(x, dtype)),
        checks.undone(*reference.quantize(plain, dtype)),
        truth,
    )


@each_dtype
@each_source
def test_the_codes_are_those_of_the_truth(dtype, source, seed):
    x = checks.draw(3, 166, source, seed)
    truth = oracle.silu_mul(x.double().numpy()).astype(np.float32)
    codes, scales = oracle.quantized(truth, dtype is INT8, 8)
    q, scale = silu_mul_quantize(x, dtype, SIX_EIGHT)
    checks.assert_close_codes(q, torch.from_numpy(codes).view(dtype))
    checks.assert_close_scales(scale, torch.from_numpy(scales))


def test_gate_comes_first():
    """SiLU(0) is 0 whatever `up` is; SiLU(20) * up is 20 times it."""
    x = torch.tensor([[0.0, 20.0, 3.0, 2.0]])
    q, scale = silu_mul_quantize(x, INT8)
    assert q.tolist() == [[0, 127]]
    assert scale.item() == pytest.approx(40 / 127, rel=1e-5)


@each_dtype
@pytest.mark.parametrize("gate", [-1e38, -200.0, -88.0, -20.0, 0.0, 1e-30, 20.0, 88.0, 1e30])
def test_extreme_gates(dtype, gate):
    """Neither the exponential's overflow nor its underflow shows."""
    x = torch.cat([torch.full((1, 8), gate), torch.linspace(-2, 2, 8)[None]], dim=1)
    got = silu_mul_quantize(x, dtype)
    want = reference.silu_mul_quantize(x, dtype)
    assert got[1].isfinite().all()
    checks.assert_close_scales(got[1], want[1])
    checks.assert_close_codes(got[0], want[0])


@each_dtype
@pytest.mark.parametrize("pattern", [DENSE, SIX_EIGHT], ids=str)
def test_special_rows_beside_ordinary_ones(dtype, pattern):
    x = torch.ones(6, 42)
    x[0] = 0.0
    x[1, 20] = float("nan")
    x[2, 41] = float("inf")
    x[3] = 1e38  # The product overflows.
    x[4, 0] = -float("inf")
    q, scale = silu_mul_quantize(x, dtype, pattern)
    want = reference.silu_mul_quantize(x, dtype, pattern)
    checks.assert_close_codes(q, want[0])
    checks.assert_close_scales(scale, want[1])
    assert scale.isfinite().tolist() == [True, False, False, False, False, True]
    assert not q[0].float().any()
    if dtype is FP8:
        assert checks.is_nan(q)[1:5].all()
    else:
        assert not q[1:5].any()


@each_dtype
@pytest.mark.parametrize("value", [0.5, 0.001, 1e-5])
def test_a_static_scale_saturates_the_truth(dtype, value, seed):
    """Of most values in range, of some and of none; every row has the scale that was given."""
    x = checks.draw(3, 166, torch.float32, seed)
    truth = oracle.silu_mul(x.double().numpy()).astype(np.float32)
    given = torch.tensor([value])
    codes, scales = oracle.quantized(truth, dtype is INT8, 8, np.float32(given.item()))
    q, scale = silu_mul_quantize(x, dtype, SIX_EIGHT, static_scale=given)
    checks.assert_close_codes(q, torch.from_numpy(codes).view(dtype))
    np.testing.assert_array_equal(scale.numpy(), scales)
    top = 448.0 if dtype is FP8 else 127.0
    share = float((q.float().abs() >= top).float().mean())
    assert share == 0 if value == 0.5 else share > 0.05


@each_dtype
@pytest.mark.parametrize("value", [0.02, 0.0, float("nan")])
@pytest.mark.parametrize("pattern", [DENSE, SIX_EIGHT], ids=str)
def test_special_rows_under_a_static_scale(dtype, value, pattern):
    """One value that is NaN spoils no other; what overflows saturates."""
    x = torch.ones(4, 42)
    x[0] = 0.0
    x[1, 20] = float("nan")
    x[2, 41] = float("inf")
    scale = torch.tensor([value])
    q, made = silu_mul_quantize(x, dtype, pattern, static_scale=scale)
    want = reference.silu_mul_quantize(x, dtype, pattern, scale)
    checks.assert_close_codes(q, want[0])
    np.testing.assert_array_equal(made.numpy(), np.full(4, value, np.float32))
    if not np.isnan(value) and pattern.dense:
        top = 448.0 if dtype is FP8 else 127.0
        assert not q[0].float().any()
        assert q[2, 20].float() == top
        assert checks.is_nan(q)[1].tolist() == [False] * 20 + [dtype is FP8]


@each_dtype
@pytest.mark.parametrize("interpreted", [True, False])
def test_rows_without_an_operator_around_them(dtype, interpreted, monkeypatch, seed):
    """Through the kernel and, where there is none, through the reference."""
    monkeypatch.setattr(module, "runs_triton", lambda x: interpreted)
    x = checks.draw(3, 100, torch.bfloat16, seed)
    for scale in (None, torch.tensor([0.02])):
        made = silu_mul_quantize_rows(x, dtype, SIX_EIGHT, scale)
        want = reference.silu_mul_quantize(x, dtype, SIX_EIGHT, scale)
        checks.assert_close_codes(made[0], want[0])
        checks.assert_close_scales(made[1], want[1])
    none = silu_mul_quantize_rows(x[:0], dtype, SIX_EIGHT)
    assert [tuple(each.shape) for each in none] == [(0, made[0].shape[1]), (0,)]


X, S = torch.ones(4, 32), torch.empty(4)
Q = torch.empty(4, 16, dtype=FP8)
WRONG = {
    "gate_up has 1 dimensions": lambda: silu_mul_quantize(torch.ones(32)),
    "gate_up is torch.int32; use one of bfloat16": lambda: silu_mul_quantize(X.int()),
    "gate_up has 31 columns; gate and up need an even number": (
        lambda: silu_mul_quantize(X[:, :31])
    ),
    "the columns of gate_up are 2 elements apart": lambda: silu_mul_quantize(X[:, ::2]),
    "cannot quantise to torch.float16": lambda: silu_mul_quantize(X, torch.float16),
    "q is torch.float8_e4m3fn, and torch.int8 was asked for": (
        lambda: silu_mul_quantize(X, INT8, out=(Q, S))
    ),
    "q has shape (4, 16); [4, 32] is needed": (
        lambda: silu_mul_quantize(X, FP8, SIX_EIGHT, out=(Q, S))
    ),
    "pattern 6:8 needs multiples of 2": (
        lambda: silu_mul_quantize(X, FP8, SIX_EIGHT, out=(torch.empty(4, 33, dtype=FP8)[:, :32], S))
    ),
    "static_scale has shape (2,); 1 consecutive values are needed": (
        lambda: silu_mul_quantize(X, static_scale=torch.ones(2))
    ),
    "static_scale is torch.float64; float32 is needed": (
        lambda: silu_mul_quantize(X, static_scale=torch.ones(1).double(), out=(Q, S))
    ),
    "static_scale is on meta and the rows are on cpu": (
        lambda: silu_mul_quantize_rows(X, FP8, DENSE, torch.ones(1, device="meta"))
    ),
    "gate_up has 3 dimensions (1, 4, 32)": lambda: silu_mul_quantize_rows(X[None], FP8, DENSE),
    "the output scale has shape (2,)": lambda: silu_mul_quantize(X, out=(Q, S[:2])),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_operands_are_refused_with_the_values(message):
    with pytest.raises(KernelError) as raised:
        WRONG[message]()
    assert message in str(raised.value)
