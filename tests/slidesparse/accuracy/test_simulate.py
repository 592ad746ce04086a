"""Simulated W8A8 against the formula written out, and the linear as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slidesparse.accuracy.simulate import simulated
from slidesparse.problem import DType

TOPS = {DType.FP8: 448.0, DType.INT8: 127.0}


def quantised(x: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Each row rounded on its own scale, in float64."""
    made = torch.empty(x.shape, dtype=torch.float64)
    for index, row in enumerate(x.double()):
        scale = row.abs().max() / TOPS[dtype]
        on_grid = row / scale
        if dtype is DType.INT8:
            on_grid = on_grid.round()
        else:
            on_grid = on_grid.float().to(torch.float8_e4m3fn).double()
        made[index] = on_grid * scale
    return made


def make(model_dtype: torch.dtype, bias: bool) -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(5)
    linear = nn.Linear(37, 11, bias=bias).to(model_dtype)
    x = (torch.randn(2, 7, 37) * torch.logspace(-2, 2, 7)[:, None]).to(model_dtype)
    return linear, x


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
def test_values(dtype: DType, model_dtype: torch.dtype, bias: bool) -> None:
    linear, x = make(model_dtype, bias)
    with simulated({"it": linear}, dtype), torch.no_grad():
        found = linear(x)
    assert found.shape == (2, 7, 11)
    assert found.dtype is model_dtype
    wanted = quantised(x.reshape(14, 37), dtype) @ quantised(linear.weight.detach(), dtype).t()
    if bias:
        wanted = wanted + linear.bias.detach().double()
    # Rounding happens to a few values that lie between two steps only in float64.
    close = torch.isclose(
        found.reshape(14, 11).double(),
        wanted,
        rtol=1e-5 if model_dtype is torch.float32 else 2**-8,
        atol=1e-5 * float(wanted.abs().max()),
    )
    assert close.float().mean() > 0.98
    with torch.no_grad():
        assert not torch.equal(found, linear(x)), "quantising changes something"


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
def test_a_bf16_model_multiplies_unrounded_weights(dtype: DType) -> None:
    """Rounding q * scale to bf16 first would be another result than a GPU's."""
    linear, x = make(torch.bfloat16, bias=False)
    with simulated({"it": linear}, dtype), torch.no_grad():
        found = linear(x).reshape(14, 11)
    weight = quantised(linear.weight.detach(), dtype)
    inputs = quantised(x.reshape(14, 37), dtype)
    exact = (found.double() - inputs @ weight.t()).abs()
    rough = (found.double() - inputs.bfloat16().double() @ weight.bfloat16().double().t()).abs()
    assert exact.mean() < rough.mean()


def test_weights_that_are_quantised_already_stay() -> None:
    linear, x = make(torch.float32, bias=True)
    with simulated({"it": linear}, DType.INT8, weights=False), torch.no_grad():
        found = linear(x)
    wanted = quantised(x.reshape(14, 37), DType.INT8) @ linear.weight.detach().double().t()
    wanted = wanted + linear.bias.detach().double()
    assert torch.allclose(found.reshape(14, 11).double(), wanted, rtol=1e-4, atol=1e-4)


def test_everything_is_as_before_afterwards() -> None:
    linear, x = make(torch.float32, bias=True)
    weight = linear.weight.detach().clone()
    with torch.no_grad():
        before = linear(x)
    with pytest.raises(RuntimeError, match="inside"), simulated({"it": linear}, DType.FP8):
        raise RuntimeError("inside")
    assert torch.equal(linear.weight, weight)
    assert "forward" not in linear.__dict__
    with torch.no_grad():
        assert torch.equal(linear(x), before)
        with simulated({"it": linear}, None):
            assert torch.equal(linear(x), before)


def test_a_forward_that_another_library_set_comes_back() -> None:
    linear, x = make(torch.float32, bias=False)
    linear.__dict__["forward"] = lambda x: "theirs"
    with simulated({"it": linear}, DType.FP8):
        assert isinstance(linear(x), torch.Tensor)
    assert linear(x) == "theirs"
