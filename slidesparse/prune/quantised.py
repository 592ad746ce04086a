"""Run linears as if they were W8A8, in plain torch, and leave their weights as they were.

Weights are rounded to the model's dtype, as those are that a resumed conversion reads back from
what it wrote, so that it goes on to the same bytes. `slidesparse.accuracy.simulate` keeps float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from slidesparse.problem import DType
from slidesparse.tensors import TORCH_DTYPES


def rounded(x: torch.Tensor, dtype: DType) -> torch.Tensor:
    """What is left of x [..., K] once each row is quantised with a scale of its own.

    Returns:
        The shape and dtype of x; computed in float32.
    """
    from slidesparse.kernels.reference import quantize

    q, scale = quantize(x.detach().reshape(-1, x.shape[-1]).float(), TORCH_DTYPES[dtype])
    return (q.float() * scale[:, None]).reshape(x.shape).to(x.dtype)


@contextmanager
def quantised(
    linears: Iterable[nn.Linear], dtype: DType, *, weights: bool = True
) -> Iterator[None]:
    """Inside, weights are rounded per output channel and inputs per token, as W8A8 does.

    Args:
        linears: whose weights come back unchanged at the end; keeps a copy of each meanwhile.
        dtype: FP8 or INT8.
        weights: False leaves the weights alone, as they hold W8A8 values already.
    """

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return rounded(args[0], dtype), *args[1:]

    kept, handles = [], []
    try:
        for linear in linears:
            kept.append((linear, linear.weight.data))
            if weights:
                linear.weight.data = rounded(linear.weight.data, dtype)
            handles.append(linear.register_forward_pre_hook(hook))
        yield
    finally:
        for linear, weight in kept:
            linear.weight.data = weight
        for handle in handles:
            handle.remove()
