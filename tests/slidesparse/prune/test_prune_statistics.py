"""Sums over tokens equal those of all tokens at once, and unusable inputs are named."""

import pytest
import torch

from slidesparse.errors import CalibrationError
from slidesparse.prune.statistics import InputStatistics


def test_parts_add_up_to_the_whole(seed):
    x = torch.randn(1, 129, 37, dtype=torch.float64)
    whole = x.reshape(-1, 37)
    statistics = InputStatistics(37, gram=True)
    for part in (x[:, :1], x[:, 1:8], x[0, 8:]):
        statistics.update(part)
    assert statistics.tokens == 129
    torch.testing.assert_close(statistics.norms.double(), whole.norm(dim=0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(statistics.hessian.double(), whole.t() @ whole, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_float32_whatever_the_input(dtype):
    """4,096 times 1 is past where bfloat16 stops counting."""
    statistics = InputStatistics(3, gram=True)
    statistics.update(torch.ones(4096, 3, dtype=dtype))
    assert statistics.norms.tolist() == [64.0] * 3
    assert statistics.hessian.tolist() == [[4096.0] * 3] * 3


def test_permuted_follows_the_channels(seed):
    x, order = torch.randn(50, 12), torch.randperm(12)
    before, after = InputStatistics(12, gram=True), InputStatistics(12, gram=True)
    before.update(x)
    after.update(x[:, order])
    moved = before.permuted(order)
    assert moved.tokens == 50
    torch.testing.assert_close(moved.norms, after.norms)
    torch.testing.assert_close(moved.hessian, after.hessian)
    assert not InputStatistics(12).permuted(order).has_gram


def test_no_tokens_are_refused():
    with pytest.raises(
        CalibrationError, match=r"no calibration token reached mlp\.up_proj; use more calibration"
    ):
        _ = InputStatistics(4, name="mlp.up_proj").norms


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite_are_refused(bad):
    statistics = InputStatistics(4, gram=True, name="mlp.up_proj")
    x = torch.ones(3, 4)
    x[1, 2] = bad
    statistics.update(x)
    message = r"mlp\.up_proj got NaN or Inf in 1 of 4 input channels .* bfloat16 or float32"
    with pytest.raises(CalibrationError, match=message):
        _ = statistics.norms
    with pytest.raises(CalibrationError, match=message):
        _ = statistics.hessian


def test_other_widths_are_refused():
    with pytest.raises(CalibrationError, match=r"up takes K=4 channels, its input .*\(2, 5\)"):
        InputStatistics(4, name="up").update(torch.ones(2, 5))


def test_a_gram_matrix_that_was_not_kept_is_refused():
    statistics = InputStatistics(4, name="up")
    statistics.update(torch.ones(2, 4))
    assert not statistics.has_gram
    with pytest.raises(CalibrationError, match="statistics of up hold no Gram matrix"):
        _ = statistics.hessian
