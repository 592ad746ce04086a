"""W8A8 as a GPU computes it, simulated with plain float32 products of the dequantised values.

Unlike a cast of weights to the model's dtype, nothing but the quantisation itself is rounded: a
bf16 model too multiplies q * scale in float32, as the accumulators of the hardware do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from slidesparse.problem import DType
from slidesparse.tensors import TORCH_DTYPES


@dataclass(frozen=True)
class W8A8:
    """What stands in for a linear's forward.

    Args:
        q: the weight [N, K], quantised, or in float if its values are to be used as they are.
        scale: per output channel [N] float32; None with a float `q`.
        dtype: of the inputs, one scale per token.
        bias: [N] or None.
    """

    q: torch.Tensor
    scale: torch.Tensor | None
    dtype: DType
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs [..., N] of inputs [..., K], in the dtype of x."""
        from slidesparse.kernels.reference import quantize

        rows = x.reshape(-1, x.shape[-1])
        q, scale = quantize(rows, TORCH_DTYPES[self.dtype])
        y = q.float() @ self.q.float().t() * scale[:, None]
        if self.scale is not None:
            y = y * self.scale
        if self.bias is not None:
            y = y + self.bias.float()
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)


@contextmanager
def simulated(
    linears: Mapping[str, nn.Linear], dtype: DType | None, *, weights: bool = True
) -> Iterator[None]:
    """Inside, linears quantise their weights per output channel and their inputs per token.

    Args:
        linears: by any name. Their weights are left as they are and not copied in full: what is
            added is one byte per weight.
        dtype: FP8 or INT8; None changes nothing.
        weights: False takes the weights as they are, since they hold W8A8 values already.
    """
    replaced: list[tuple[nn.Linear, Callable[..., torch.Tensor] | None]] = []
    try:
        for linear in linears.values() if dtype is not None else ():
            replaced.append((linear, linear.__dict__.get("forward")))
            linear.__dict__["forward"] = _made(linear, dtype, weights)
        yield
    finally:
        for linear, before in replaced:
            del linear.__dict__["forward"]
            if before is not None:
                linear.__dict__["forward"] = before


@torch.no_grad()
def _made(linear: nn.Linear, dtype: DType | None, weights: bool) -> W8A8:
    from slidesparse.kernels.reference import quantize

    assert dtype is not None
    if not weights:
        return W8A8(linear.weight.data, None, dtype, linear.bias)
    q, scale = quantize(linear.weight.data, TORCH_DTYPES[dtype])
    return W8A8(q, scale, dtype, linear.bias)
