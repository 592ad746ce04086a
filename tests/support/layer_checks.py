"""What a SparseLinear has to give, in float64 from its state and its input alone."""

from __future__ import annotations

from typing import NamedTuple

import kernel_oracle
import numpy as np
import torch
from torch import nn

from slidesparse.layers import SparseLinear
from slidesparse.pattern import Pattern
from slidesparse.slide import prune_magnitude

FP8, INT8 = torch.float8_e4m3fn, torch.int8
ROUNDING = 0.51
"""Of a unit in the last place: the result is rounded once."""

SUMMING = 1e-6
"""Error of float32 sums of the few products of a small layer, relative to |x| |w|."""


class Operands(NamedTuple):
    """Quantised rows and their scales, widened to float64."""

    q: torch.Tensor
    scale: torch.Tensor

    @property
    def values(self) -> torch.Tensor:
        """What they stand for."""
        return self.q * self.scale[:, None]


def linear_of(
    n: int,
    k: int,
    pattern: Pattern | str,
    dtype: torch.dtype = torch.bfloat16,
    bias: bool = True,
    seed: int = 1,
) -> nn.Linear:
    """A linear whose weight satisfies a pattern; channels differ in strength."""
    generator = torch.Generator().manual_seed(seed + 31 * n + k)
    linear = nn.Linear(k, n, bias=bias, dtype=dtype)
    wanted = pattern if isinstance(pattern, Pattern) else Pattern.parse(pattern)
    w = torch.randn(n, k, generator=generator) * (0.5 + torch.rand(n, 1, generator=generator))
    with torch.no_grad():
        linear.weight.copy_(prune_magnitude(w / k**0.5, wanted))
        if bias:
            linear.bias.copy_(torch.randn(n, generator=generator))
    return linear


def tokens(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 2) -> torch.Tensor:
    """Inputs whose rows differ in magnitude."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    x = torch.randn(shape, generator=generator)
    return (x * (0.1 + 3 * torch.rand((*shape[:-1], 1), generator=generator))).to(dtype)


def quantised(x: torch.Tensor, dtype: torch.dtype) -> Operands:
    """Rows [M, K] by the formulas in NumPy."""
    wide = x.detach().float().numpy()
    codes, scale = kernel_oracle.quantized(wide, dtype is INT8, 1)
    q = codes.view(np.int8).astype(np.float64) if dtype is INT8 else kernel_oracle.FP8_VALUES[codes]
    return Operands(torch.from_numpy(q), torch.from_numpy(scale).double())


def stored(layer: SparseLinear) -> Operands:
    """The weight as the state holds it."""
    state = layer.state_dict()
    return Operands(state["weight"].double().cpu(), state["weight_scale"].double().cpu().view(-1))


def assert_right(got: torch.Tensor, layer: SparseLinear, x: torch.Tensor) -> None:
    """Every element is the product of the quantised operands, scaled, biased and rounded once."""
    w = stored(layer)
    rows = quantised(x.reshape(-1, layer.in_features), layer.state_dict()["weight"].dtype)
    want = rows.values @ w.values.T
    if layer.bias is not None:
        want += layer.bias.double().cpu()
    assert got.dtype is layer.dtype
    assert got.shape == (*x.shape[:-1], layer.out_features)
    usual = rows.values.norm(dim=1)[:, None] * w.values.norm(dim=1)
    limit = ROUNDING * torch.finfo(layer.dtype).eps * want.abs() + SUMMING * usual
    off = (got.double().cpu().reshape(want.shape) - want).abs()
    wrong = (~(off <= limit)).nonzero()
    assert not len(wrong), (
        f"{len(wrong)} of {want.numel()} off, first {wrong[0].tolist()}: "
        f"{float(off[tuple(wrong[0])]):.3e} and {float(limit[tuple(wrong[0])]):.3e} is allowed"
    )
