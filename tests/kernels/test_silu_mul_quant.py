"""silu_mul_quantize: as near the truth as plain torch, special rows, wrong operands."""

from __future__ import annotations

import kernel_checks as checks
import kernel_oracle as oracle
import numpy as np
import pytest
import torch

from slidesparse.errors import KernelError
from slidesparse.kernels import reference, silu_mul_quantize
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
    "the output scale has shape (2,)": lambda: silu_mul_quantize(X, out=(Q, S[:2])),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_operands_are_refused_with_the_values(message):
    with pytest.raises(KernelError) as raised:
        WRONG[message]()
    assert message in str(raised.value)
