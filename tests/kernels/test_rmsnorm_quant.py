"""rmsnorm_quantize: as near the truth as plain torch, the residual to the bit, special rows."""

from __future__ import annotations

import kernel_checks as checks
import kernel_oracle as oracle
import numpy as np
import pytest
import torch
from kernel_variants import BY_NAME

from slidesparse.errors import KernelError
from slidesparse.kernels import reference, rmsnorm_quantize
from slidesparse.kernels import rmsnorm_quant as module
from slidesparse.kernels.rmsnorm_quant import rmsnorm_quantize_rows
from slidesparse.pattern import DENSE, Pattern

FP8, INT8 = checks.QUANTISED
SIX_EIGHT = Pattern.parse("6:8")
EPS = checks.EPS
each_dtype = pytest.mark.parametrize("dtype", checks.QUANTISED, ids=checks.short)
each_source = pytest.mark.parametrize("source", checks.FLOATS, ids=checks.short)


@each_dtype
@each_source
def test_as_near_the_truth_as_plain_torch(dtype, source, seed):
    t = BY_NAME["rmsnorm"].draw(6, 300, source, seed)
    x, weight = t["x"], t["weight"]
    truth = oracle.rmsnorm(x.double().numpy(), weight.double().numpy(), EPS)
    plain = torch.nn.functional.rms_norm(x, (300,), weight, EPS)
    q, scale, hidden = rmsnorm_quantize(x, weight, EPS, dtype)
    assert hidden is x
    checks.assert_as_good_as_torch(
        checks.undone(q, scale), checks.undone(*reference.quantize(plain, dtype)), truth
    )


@each_dtype
@each_source
def test_the_codes_are_those_of_the_truth(dtype, source, seed):
    """Float64 truth through the oracle of quantize: only a sum's last place may decide."""
    t = BY_NAME["rmsnorm"].draw(3, 83, source, seed)
    truth = oracle.rmsnorm(t["x"].double().numpy(), t["weight"].double().numpy(), EPS)
    codes, scales = oracle.quantized(truth.astype(np.float32), dtype is INT8, 8)
    q, scale, _ = rmsnorm_quantize(t["x"], t["weight"], EPS, dtype, SIX_EIGHT)
    checks.assert_close_codes(q, torch.from_numpy(codes).view(dtype))
    checks.assert_close_scales(scale, torch.from_numpy(scales))


@each_source
def test_the_residual_is_the_rounded_sum_to_the_bit(source, seed):
    t = BY_NAME["add_rmsnorm"].draw(5, 130, source, seed)
    _, _, hidden = rmsnorm_quantize(t["x"], t["weight"], EPS, residual=t["residual"])
    checks.assert_same_bits(hidden, (t["x"].float() + t["residual"].float()).to(source))


def test_with_out_the_residual_is_updated_in_place(seed):
    t = BY_NAME["add_rmsnorm"].draw(3, 64, torch.bfloat16, seed)
    before = t["residual"].clone()
    out = (torch.empty(3, 64, dtype=FP8), torch.empty(3))
    q, scale, hidden = rmsnorm_quantize(t["x"], t["weight"], EPS, residual=t["residual"], out=out)
    assert (q is out[0], scale is out[1], hidden is t["residual"]) == (True, True, True)
    checks.assert_same_bits(hidden, t["x"] + before)
    again = rmsnorm_quantize(t["x"], t["weight"], EPS, residual=before)
    for a, b in zip(again, (q, scale, hidden), strict=True):
        checks.assert_same_bits(a, b)


@each_dtype
@pytest.mark.parametrize("kept", checks.FLOATS, ids=checks.short)
def test_the_weight_may_have_another_dtype(dtype, kept, seed):
    t = BY_NAME["rmsnorm"].draw(2, 70, torch.bfloat16, seed)
    weight = t["weight"].to(kept)
    got = rmsnorm_quantize(t["x"], weight, EPS, dtype)
    want = reference.rmsnorm_quantize(t["x"], weight, EPS, dtype)
    checks.assert_close_codes(got[0], want[0])


@each_dtype
@pytest.mark.parametrize("pattern", [DENSE, SIX_EIGHT], ids=str)
def test_special_rows_beside_ordinary_ones(dtype, pattern):
    x = torch.ones(6, 21)
    x[0] = 0.0
    x[1, 20] = float("nan")
    x[2, 0] = float("inf")
    x[3] = 1e38  # Its square overflows: plain float32 gives zeros here too.
    x[4] = 1e-40
    q, scale, _ = rmsnorm_quantize(x, torch.ones(21), EPS, dtype, pattern)
    want = reference.rmsnorm_quantize(x, torch.ones(21), EPS, dtype, pattern)
    checks.assert_close_codes(q, want[0])
    checks.assert_close_scales(scale, want[1])
    assert scale.isnan().tolist() == [False, True, True, False, False, False]
    assert not q.float()[[0, 3]].any()
    if dtype is FP8:
        assert checks.is_nan(q)[1:3].all()
    else:
        assert not q[1:3].any()
    one = rmsnorm_quantize(torch.ones(1, 21), torch.ones(21), EPS, dtype, pattern)
    assert torch.equal(q[5].view(torch.uint8), one[0][0].view(torch.uint8))


@each_dtype
@pytest.mark.parametrize("value", [0.5, 0.001, 1e-5])
def test_a_static_scale_saturates_the_truth(dtype, value, seed):
    """Of most values in range, of some and of none; every row has the scale that was given."""
    t = BY_NAME["rmsnorm"].draw(3, 83, torch.float32, seed)
    truth = oracle.rmsnorm(t["x"].double().numpy(), t["weight"].double().numpy(), EPS)
    given = torch.tensor([value])
    codes, scales = oracle.quantized(
        truth.astype(np.float32), dtype is INT8, 8, np.float32(given.item())
    )
    q, scale, _ = rmsnorm_quantize(t["x"], t["weight"], EPS, dtype, SIX_EIGHT, static_scale=given)
    checks.assert_close_codes(q, torch.from_numpy(codes).view(dtype))
    np.testing.assert_array_equal(scale.numpy(), scales)
    top = 448.0 if dtype is FP8 else 127.0
    share = float((q.float().abs() >= top).float().mean())
    assert share == 0 if value == 0.5 else share > 0.1


@each_dtype
@pytest.mark.parametrize("value", [0.02, 0.0, float("nan")])
def test_special_rows_under_a_static_scale(dtype, value):
    """A row with NaN is NaN in FP8 and zero in INT8; no row spoils its neighbour."""
    x = torch.ones(4, 21)
    x[1, 20] = float("nan")
    x[2, 0] = float("inf")
    x[3] = 0.0
    scale = torch.tensor([value])
    q, made, _ = rmsnorm_quantize(x, torch.ones(21), EPS, dtype, static_scale=scale)
    want = reference.rmsnorm_quantize(x, torch.ones(21), EPS, dtype, static_scale=scale)
    checks.assert_close_codes(q, want[0])
    np.testing.assert_array_equal(made.numpy(), np.full(4, value, np.float32))
    if dtype is FP8:
        assert checks.is_nan(q)[1].all()
        assert checks.is_nan(q)[2, 0]
        assert checks.is_nan(q)[0].any() == bool(np.isnan(value))
    else:
        assert not q[1].any()
        assert q[0].any() != bool(np.isnan(value))


@each_dtype
@pytest.mark.parametrize("interpreted", [True, False])
def test_rows_without_an_operator_around_them(dtype, interpreted, monkeypatch, seed):
    """Through the kernel and, where there is none, through the reference."""
    monkeypatch.setattr(module, "runs_triton", lambda x: interpreted)
    t = BY_NAME["add_rmsnorm"].draw(3, 50, torch.bfloat16, seed)
    x, weight, before = t["x"], t["weight"], t["residual"].clone()
    for residual in (None, t["residual"]):
        for scale in (None, torch.tensor([0.02])):
            made = rmsnorm_quantize_rows(x, weight, EPS, dtype, SIX_EIGHT, residual, scale)
            want = reference.rmsnorm_quantize(x, weight, EPS, dtype, SIX_EIGHT, residual, scale)
            checks.assert_close_codes(made[0], want[0])
            checks.assert_close_scales(made[1], want[1])
            if residual is None:
                assert made[2] is None
            else:
                checks.assert_same_bits(made[2], want[2])
    assert torch.equal(t["residual"], before)
    none = rmsnorm_quantize_rows(x[:0], weight, EPS, dtype, SIX_EIGHT, before[:0])
    assert [tuple(each.shape) for each in none] == [(0, made[0].shape[1]), (0,), (0, 50)]


def test_eps_counts():
    x = torch.full((1, 16), 1e-3)
    scales = [rmsnorm_quantize(x, torch.ones(16), eps, INT8)[1].item() for eps in (0.0, 1.0)]
    assert scales[0] == pytest.approx(1 / 127, rel=1e-5)
    assert scales[1] == pytest.approx(1e-3 / 127, rel=1e-5)


X, W, S = torch.ones(4, 16), torch.ones(16), torch.empty(4)
Q = torch.empty(4, 16, dtype=FP8)
WRONG = {
    "x has 3 dimensions": lambda: rmsnorm_quantize(X[None], W, EPS),
    "x is torch.int32; use one of": lambda: rmsnorm_quantize(X.int(), W, EPS),
    "weight has shape (15,); 16 consecutive values are needed": (
        lambda: rmsnorm_quantize(X, W[:15], EPS)
    ),
    "weight has strides (2,); call .contiguous()": (
        lambda: rmsnorm_quantize(X, torch.ones(32)[::2], EPS)
    ),
    "residual has shape (3, 16); [4, 16] is needed": (
        lambda: rmsnorm_quantize(X, W, EPS, residual=X[:3])
    ),
    "residual is torch.bfloat16 and x is torch.float32; give both one dtype": (
        lambda: rmsnorm_quantize(X, W, EPS, residual=X.bfloat16())
    ),
    "residual is torch.int8; use one of": lambda: rmsnorm_quantize(X, W, EPS, residual=X.char()),
    "the columns of residual are 4 elements apart": (
        lambda: rmsnorm_quantize(X, W, EPS, residual=torch.ones(16, 4).T)
    ),
    "cannot quantise to torch.uint8": lambda: rmsnorm_quantize(X, W, EPS, torch.uint8),
    "q is torch.float8_e4m3fn, and torch.int8 was asked for": (
        lambda: rmsnorm_quantize(X, W, EPS, INT8, out=(Q, S))
    ),
    "q has shape (4, 16); [4, 32] is needed": (
        lambda: rmsnorm_quantize(X, W, EPS, FP8, SIX_EIGHT, out=(Q, S))
    ),
    "pattern 6:8 needs multiples of 2": (
        lambda: rmsnorm_quantize(
            X, W, EPS, FP8, SIX_EIGHT, out=(torch.empty(4, 33, dtype=FP8)[:, :32], S)
        )
    ),
    "static_scale has shape (4,); 1 consecutive values are needed": (
        lambda: rmsnorm_quantize(X, W, EPS, static_scale=torch.ones(4))
    ),
    "static_scale is torch.bfloat16; float32 is needed": (
        lambda: rmsnorm_quantize(X, W, EPS, residual=X, static_scale=torch.ones(1).bfloat16())
    ),
    "static_scale has shape (0,); 1 consecutive": (
        lambda: rmsnorm_quantize(X, W, EPS, static_scale=torch.empty(0), out=(Q, S))
    ),
    "static_scale has shape (3,); 1 consecutive": (
        lambda: rmsnorm_quantize(
            X, W, EPS, residual=X.clone(), static_scale=torch.ones(3), out=(Q, S)
        )
    ),
    "static_scale is on meta and the rows are on cpu": (
        lambda: rmsnorm_quantize_rows(X, W, EPS, FP8, DENSE, None, torch.ones(1, device="meta"))
    ),
    "the output scale has shape (5,); 4 consecutive": (
        lambda: rmsnorm_quantize(X, W, EPS, out=(Q, torch.empty(5)))
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_operands_are_refused_with_the_values(message):
    with pytest.raises(KernelError) as raised:
        WRONG[message]()
    assert message in str(raised.value)
