"""rmsnorm_quantize on the GPU: as near the truth as plain torch; special rows."""

from __future__ import annotations

import kernel_checks as checks
import kernel_oracle as oracle
import numpy as np
import pytest
import torch
from kernel_variants import BY_NAME

from slidesparse.kernels import reference, rmsnorm_quantize
from slidesparse.kernels.rmsnorm_quant import rmsnorm_quantize_rows
from slidesparse.pattern import DENSE, Pattern

CUDA = "cuda:0"
FP8, INT8 = checks.QUANTISED
SIX_EIGHT = Pattern.parse("6:8")
EPS = checks.EPS
each_dtype = pytest.mark.parametrize("dtype", checks.QUANTISED, ids=checks.short)


@each_dtype
@pytest.mark.parametrize("source", checks.FLOATS, ids=checks.short)
def test_as_near_the_truth_as_plain_torch(dtype, source, seed):
    t = BY_NAME["add_rmsnorm"].draw(129, 3584, source, seed, CUDA)
    q, scale, hidden = rmsnorm_quantize(t["x"], t["weight"], EPS, dtype, residual=t["residual"])
    checks.assert_same_bits(hidden, t["x"] + t["residual"])
    truth = oracle.rmsnorm(hidden.cpu().double().numpy(), t["weight"].cpu().double().numpy(), EPS)
    plain = torch.nn.functional.rms_norm(hidden, (3584,), t["weight"], EPS)
    checks.assert_as_good_as_torch(
        checks.undone(q, scale), checks.undone(*reference.quantize(plain, dtype)), truth
    )


@each_dtype
@pytest.mark.parametrize("pattern", [DENSE, SIX_EIGHT], ids=str)
def test_special_rows_beside_ordinary_ones(dtype, pattern):
    x = torch.ones(6, 21, device=CUDA)
    x[0] = 0.0
    x[1, 20] = float("nan")
    x[2, 0] = float("inf")
    x[3] = 1e38
    x[4] = 1e-40
    weight = torch.ones(21, device=CUDA)
    q, scale, _ = rmsnorm_quantize(x, weight, EPS, dtype, pattern)
    want = reference.rmsnorm_quantize(x, weight, EPS, dtype, pattern)
    checks.assert_close_codes(q, want[0])
    checks.assert_close_scales(scale, want[1])
    assert scale.isnan().tolist() == [False, True, True, False, False, False]
    if dtype is FP8:
        assert checks.is_nan(q)[1:3].all()
    else:
        assert not q[1:3].any()


def test_the_residual_is_updated_in_place(seed):
    t = BY_NAME["add_rmsnorm"].draw(129, 3584, torch.bfloat16, seed, CUDA)
    before = t["residual"].clone()
    want = rmsnorm_quantize(t["x"], t["weight"], EPS, FP8, residual=before)
    out = (torch.empty_like(want[0]), torch.empty_like(want[1]))
    rmsnorm_quantize(t["x"], t["weight"], EPS, FP8, residual=t["residual"], out=out)
    for a, b in zip((*out, t["residual"]), want, strict=True):
        checks.assert_same_bits(a, b)


@each_dtype
@pytest.mark.parametrize("value", [0.5, 0.001])
def test_a_static_scale_saturates_the_truth(dtype, value, seed):
    """Every row has the scale that was given, and values beyond it are the largest."""
    t = BY_NAME["add_rmsnorm"].draw(129, 3584, torch.bfloat16, seed, CUDA)
    given = torch.full((1,), value, device=CUDA)
    q, scale, hidden = rmsnorm_quantize(
        t["x"], t["weight"], EPS, dtype, SIX_EIGHT, residual=t["residual"], static_scale=given
    )
    checks.assert_same_bits(hidden, t["x"] + t["residual"])
    truth = oracle.rmsnorm(hidden.cpu().double().numpy(), t["weight"].cpu().double().numpy(), EPS)
    codes, scales = oracle.quantized(
        truth.astype(np.float32), dtype is INT8, 8, np.float32(given.item())
    )
    checks.assert_close_codes(q.cpu(), torch.from_numpy(codes).view(dtype))
    np.testing.assert_array_equal(scale.cpu().numpy(), scales)
    top = 448.0 if dtype is FP8 else 127.0
    assert (float((q.float().abs() >= top).float().mean()) > 0.1) == (value < 0.5)


@each_dtype
@pytest.mark.parametrize("residual", [False, True])
def test_rows_without_an_operator_around_them(dtype, residual, seed):
    """What the operators give, to the bit: they are these and a dispatch."""
    t = BY_NAME["add_rmsnorm"].draw(129, 3584, torch.bfloat16, seed, CUDA)
    added = t["residual"] if residual else None
    for given in (None, torch.full((1,), 0.02, device=CUDA)):
        made = rmsnorm_quantize_rows(t["x"], t["weight"], EPS, dtype, SIX_EIGHT, added, given)
        want = rmsnorm_quantize(
            t["x"], t["weight"], EPS, dtype, SIX_EIGHT, residual=added, static_scale=given
        )
        assert (made[2] is None) == (added is None)
        for a, b in zip(made[: 2 + residual], want, strict=False):
            checks.assert_same_bits(a, b)
