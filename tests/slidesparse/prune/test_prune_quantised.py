"""Linears run as W8A8 inside the context and are what they were outside of it."""

import pytest
import torch
from torch import nn

from slidesparse.problem import DType
from slidesparse.prune.quantised import quantised, rounded


def by_hand(x, dtype):
    """Per row: divide by max / top, round, multiply back; float64."""
    x = x.double()
    top = 127 if dtype is DType.INT8 else 448
    scale = x.abs().amax(dim=-1, keepdim=True) / top
    q = x / scale
    return (q.round() if dtype is DType.INT8 else q.to(torch.float8_e4m3fn).double()) * scale


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
def test_rounding_is_per_row(dtype, seed):
    x = torch.randn(2, 7, 33) * torch.logspace(-3, 3, 7)[:, None]
    made = rounded(x, dtype)
    torch.testing.assert_close(made.double(), by_hand(x, dtype), rtol=1e-6, atol=0)
    assert not torch.equal(made, x)
    assert rounded(x.bfloat16(), dtype).dtype is torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
@pytest.mark.parametrize("weights", [True, False])
def test_weights_and_inputs_are_rounded_and_come_back(dtype, weights, seed):
    linear, x = nn.Linear(33, 5), torch.randn(2, 7, 33)
    before, plain = linear.weight.clone(), linear(x)
    w = by_hand(before, dtype) if weights else before.double()
    expected = by_hand(x, dtype) @ w.t() + linear.bias.double()
    with quantised([linear], dtype, weights=weights):
        made = linear(x)
    torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(linear.weight, before)
    assert torch.equal(linear(x), plain)


def test_weights_come_back_after_an_error(seed):
    linear = nn.Linear(33, 5)
    before = linear.weight.clone()
    with pytest.raises(KeyError, match="boom"), quantised([linear], DType.INT8):
        raise KeyError("boom")
    assert torch.equal(linear.weight, before)
    assert not linear._forward_pre_hooks
