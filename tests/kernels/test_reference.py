"""The references that everything else is measured by, against NumPy and float64."""

from __future__ import annotations

import kernel_checks as checks
import kernel_oracle as oracle
import numpy as np
import pytest
import torch

from slidesparse.kernels import reference
from slidesparse.pattern import Pattern

FP8, INT8 = checks.QUANTISED


def test_the_oracle_knows_every_fp8_value():
    """The table from the bit formula is torch's."""
    every = torch.arange(256, dtype=torch.uint8).view(FP8).double().numpy()
    np.testing.assert_array_equal(oracle.FP8_VALUES, every)
    assert (np.diff(oracle.FP8_VALUES[: oracle.FP8_LARGEST_CODE + 1]) > 0).all()
    assert oracle.FP8_VALUES[oracle.FP8_LARGEST_CODE] == 448


def test_torch_rounds_to_fp8_as_the_oracle_does():
    """At every tie, beside it, and in between; beyond 448 torch's own conversion gives NaN."""
    x = oracle.FP8_TIES.astype(np.float32)
    up, down = np.float32(np.inf), np.float32(-np.inf)
    x = np.concatenate([x, np.nextafter(x, up), np.nextafter(x, down), oracle.FP8_VALUES[:127]])
    x = np.concatenate([x, -x]).astype(np.float32)
    got = torch.from_numpy(x).to(FP8).view(torch.uint8).numpy()
    np.testing.assert_array_equal(got, oracle.nearest_fp8(x))


@pytest.mark.parametrize("pattern", checks.PATTERNS, ids=str)
@pytest.mark.parametrize("k", [1, 7, 63, 64, 100])
def test_the_lift_by_loops_is_the_index_of_the_pattern(pattern, k):
    x = np.arange(1, k + 1, dtype=np.uint8)[None]
    index = pattern.lift_index(k)
    want = np.where(index >= 0, x[0][np.maximum(index, 0)], 0)
    np.testing.assert_array_equal(oracle.lifted(x, pattern.block)[0], want)


@pytest.mark.parametrize("source", checks.FLOATS, ids=checks.short)
def test_norm_and_activation_are_the_truth_in_float32(source, seed):
    x = checks.draw(5, 200, source, seed)
    weight = checks.draw(1, 200, source, seed + 1)[0]
    truth = oracle.rmsnorm(x.double().numpy(), weight.double().numpy(), 1e-6)
    np.testing.assert_allclose(reference.rmsnorm(x, weight, 1e-6), truth, rtol=2e-6)
    truth = oracle.silu_mul(x.double().numpy())
    np.testing.assert_allclose(reference.silu_mul(x), truth, rtol=2e-6, atol=1e-30)


def test_dequantize_is_the_truth_in_float32(seed):
    a = checks.draw(4, 50, torch.int32, seed)
    row, column = checks.positive(4, seed), checks.positive(50, seed)
    bias, residual = checks.positive(50, seed + 1), checks.draw(4, 50, torch.float32, seed)
    got = reference.dequantize(a, row, column, torch.float32, bias, residual)
    parts = (tensor.numpy() for tensor in (a, row, column, bias, residual))
    np.testing.assert_allclose(got, oracle.dequantized(*parts), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", checks.QUANTISED, ids=checks.short)
def test_a_quantised_row_scales_back_to_itself(dtype, seed):
    """Within half a step of each value: 2^-4 of it in FP8, half a scale in INT8."""
    x = checks.draw(6, 500, torch.float32, seed)
    q, scale = reference.quantize(x, dtype)
    error = np.abs(checks.undone(q, scale) - x.double().numpy())
    step = scale.double().numpy()[:, None]
    if dtype is INT8:
        assert (error <= 0.5001 * step).all()
    else:
        assert (error <= np.maximum(np.abs(x.double().numpy()) / 16, 2.0**-10 * step)).all()


def test_occupied_counts_by_groups():
    w = torch.tensor([[1, 0, 2, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 3, 0, 0]], dtype=torch.int8)
    assert reference.occupied(w).tolist() == [[2, 0], [4, 1]]
    w = torch.tensor([[0x80, 0x38, 0, 0]], dtype=torch.uint8).view(FP8)
    assert reference.occupied(w).tolist() == [[1]]


def test_unpack_puts_the_values_where_they_were():
    w = torch.zeros(1, 32, dtype=torch.int8)
    w[0, [1, 2, 4, 31]] = torch.tensor([3, -4, 5, 6], dtype=torch.int8)
    assert torch.equal(reference.unpack24(*reference.pack24(w)), w)


@pytest.mark.parametrize("text", ["dense", "6:8"])
def test_no_rows(text):
    q, scale = reference.quantize(torch.empty(0, 40), FP8, Pattern.parse(text))
    assert q.shape == (0, Pattern.parse(text).expanded_k(40))
    assert scale.shape == (0,)
