"""silu_mul_quantize on the GPU: as near the truth as plain torch; extreme gates; special rows."""

from __future__ import annotations

import kernel_checks as checks
import kernel_oracle as oracle
import numpy as np
import pytest
import torch

from slidesparse.kernels import reference, silu_mul_quantize
from slidesparse.kernels.silu_mul_quant import silu_mul_quantize_rows
from slidesparse.pattern import DENSE, Pattern

CUDA = "cuda:0"
FP8, INT8 = checks.QUANTISED
SIX_EIGHT = Pattern.parse("6:8")
each_dtype = pytest.mark.parametrize("dtype", checks.QUANTISED, ids=checks.short)


@each_dtype
@pytest.mark.parametrize("source", checks.FLOATS, ids=checks.short)
def test_as_near_the_truth_as_plain_torch(dtype, source, seed):
    x = checks.draw(129, 7168, source, seed, CUDA)
    truth = oracle.silu_mul(x.cpu().double().numpy())
    plain = torch.nn.functional.silu(x[:, :3584]) * x[:, 3584:]
    checks.assert_as_good_as_torch(
        checks.undone(*silu_mul_quantize(x, dtype)),
        checks.undone(*reference.quantize(plain, dtype)),
        truth,
    )


def test_the_sigmoid_is_accurate_from_end_to_end():
    """One row per gate: its scale is SiLU(gate) * up / 127. Far out the exponent's own rounding
    shows: half a unit of 85 * log2(e) is 4e-6."""
    gate = torch.linspace(-85, 85, 3401, device=CUDA)[:, None]
    x = torch.cat([gate, torch.full_like(gate, 1e3)], dim=1)
    _, scale = silu_mul_quantize(x, INT8)
    truth = np.abs(oracle.silu_mul(x.cpu().double().numpy())[:, 0]) / 127
    got, near = scale.cpu().double().numpy(), np.abs(gate[:, 0].cpu().numpy()) <= 4
    np.testing.assert_allclose(got, truth, rtol=1e-5, atol=2.0**-125)
    np.testing.assert_allclose(got[near], truth[near], rtol=1e-6, atol=2.0**-125)


@each_dtype
def test_extreme_gates(dtype):
    gates = torch.tensor([-1e38, -200.0, -88.0, -20.0, 0.0, 1e-30, 20.0, 88.0, 1e30])
    x = torch.cat([gates[:, None].expand(9, 8), torch.linspace(-2, 2, 8).expand(9, 8)], dim=1)
    got = silu_mul_quantize(x.to(CUDA), dtype)
    want = reference.silu_mul_quantize(x.to(CUDA), dtype)
    assert got[1].isfinite().all()
    # A gate of -88 leaves 1e-37: the fast exponential may take what is below for zero.
    ordinary = [3, 4, 5, 6, 7, 8]
    checks.assert_close_scales(got[1][ordinary], want[1][ordinary])
    checks.assert_close_codes(got[0][ordinary], want[0][ordinary])
    assert (got[1][:3] <= 1.1 * want[1][:3]).all()


@each_dtype
@pytest.mark.parametrize("pattern", [DENSE, SIX_EIGHT], ids=str)
def test_special_rows_beside_ordinary_ones(dtype, pattern):
    x = torch.ones(6, 42, device=CUDA)
    x[0] = 0.0
    x[1, 20] = float("nan")
    x[2, 41] = float("inf")
    x[3] = 1e38
    x[4, 0] = -float("inf")
    q, scale = silu_mul_quantize(x, dtype, pattern)
    want = reference.silu_mul_quantize(x, dtype, pattern)
    checks.assert_close_codes(q, want[0])
    checks.assert_close_scales(scale, want[1])
    assert scale.isfinite().tolist() == [True, False, False, False, False, True]


@each_dtype
@pytest.mark.parametrize("value", [0.5, 0.001])
def test_a_static_scale_saturates_the_truth(dtype, value, seed):
    """Every row has the scale that was given, and values beyond it are the largest."""
    x = checks.draw(129, 7168, torch.bfloat16, seed, CUDA)
    given = torch.full((1,), value, device=CUDA)
    q, scale = silu_mul_quantize(x, dtype, SIX_EIGHT, static_scale=given)
    truth = oracle.silu_mul(x.cpu().double().numpy()).astype(np.float32)
    codes, scales = oracle.quantized(truth, dtype is INT8, 8, np.float32(given.item()))
    checks.assert_close_codes(q.cpu(), torch.from_numpy(codes).view(dtype))
    np.testing.assert_array_equal(scale.cpu().numpy(), scales)
    top = 448.0 if dtype is FP8 else 127.0
    assert (float((q.float().abs() >= top).float().mean()) > 0.05) == (value < 0.5)


@each_dtype
def test_rows_without_an_operator_around_them(dtype, seed):
    """What the operator gives, to the bit: it is these and a dispatch."""
    x = checks.draw(129, 7168, torch.bfloat16, seed, CUDA)
    for given in (None, torch.full((1,), 0.02, device=CUDA)):
        made = silu_mul_quantize_rows(x, dtype, SIX_EIGHT, given)
        want = silu_mul_quantize(x, dtype, SIX_EIGHT, static_scale=given)
        for a, b in zip(made, want, strict=True):
            checks.assert_same_bits(a, b)
