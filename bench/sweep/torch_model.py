"""Torch's own way through a model's linears: what `--engine linear` calls stock.

Quantise per token, torch._scaled_mm (row-wise scales fused) or torch._int_mm and a scaling; RMSNorm
and SiLU * mul stand in the same function, which torch.compile fuses as it likes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from slidesparse.bench.linear.torch_ways import (
    COMPILED,
    EAGER,
    FIRST_M,
    INT_MM_SMALLEST_M,
    Linear,
    TorchWeight,
    dynamic,
    plain,
)
from slidesparse.bench.sweep.chain import Member
from slidesparse.kernels import reference
from slidesparse.kernels.case import EPS
from slidesparse.problem import INT32_MAX, DType
from slidesparse.tensors import TORCH_DTYPES

RECOMPILATIONS = 64
"""That Dynamo allows of one function: each linear has sizes of its own, and few rows are a case."""

PRODUCTS = {
    DType.FP8: "torch._scaled_mm with row-wise scales",
    DType.INT8: "torch._int_mm, its sums scaled after it",
}


class TorchFunctions:
    """The three functions that torch's members share, compiled or not.

    Args:
        dtype: FP8 or INT8.
        compiles: whether torch.compile makes them.

    Attributes:
        shown: kinds of calls that were compiled for rows whose number varies.
    """

    def __init__(self, dtype: DType, compiles: bool) -> None:
        """Compile nothing yet: each function is compiled for the sizes that it first sees."""
        self.dtype, self.compiles = dtype, compiles
        if compiles:
            torch._dynamo.config.recompile_limit = RECOMPILATIONS
            torch._dynamo.config.accumulated_recompile_limit = 4 * RECOMPILATIONS
        self.of = lru_cache(maxsize=None)(self._of)
        self.shown: set[tuple[Any, ...]] = set()

    @property
    def how(self) -> str:
        """For tables: what runs."""
        return f"{COMPILED if self.compiles else EAGER}, {PRODUCTS[self.dtype]}"

    def at(self, kind: str, m: int) -> Callable[..., Any]:
        """One of "plain", "norm" and "silu" for `m` rows."""
        return self.of(kind, plain(self.dtype, m))

    def first_rows(self, m: int) -> int:
        """The rows that compiled code is shown before it gets `m`; one is a case of its own."""
        if m == 1:
            return 1
        few = self.dtype is DType.INT8 and m < INT_MM_SMALLEST_M
        return INT_MM_SMALLEST_M - 1 if few else FIRST_M

    def _of(self, kind: str, linear: Linear) -> Callable[..., Any]:
        made = {"plain": lambda it: it, "norm": _behind_norm, "silu": _behind_silu}[kind](linear)
        return torch.compile(made, fullgraph=True) if self.compiles else made


class TorchMember(Member):
    """One linear layer as torch runs it.

    Args:
        w: [N, K] bf16.
        bias: [N] bf16, or None.
        functions: that run it.
    """

    def __init__(
        self, w: torch.Tensor, bias: torch.Tensor | None, functions: TorchFunctions
    ) -> None:
        """Quantise."""
        q, scale = reference.quantize(w, TORCH_DTYPES[functions.dtype])
        self._weight, self._functions = TorchWeight(q, scale, bias), functions

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """See `Member.plain`."""
        y: torch.Tensor = self._call("plain", x)
        return y

    def norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Member.norm`."""
        made: tuple[torch.Tensor, torch.Tensor] = self._call("norm", x, residual, weight)
        return made

    def silu(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `Member.silu`."""
        y: torch.Tensor = self._call("silu", gate_up)
        return y

    def describe(self, m: int) -> str:
        """See `Member.describe`."""
        pieces = self.pieces(m)
        return self._functions.how + (f", rows in {pieces} pieces" if pieces > 1 else "")

    def pieces(self, m: int) -> int:
        """So many that no tensor of compiled code has more than 2^31 - 1 elements."""
        # SiLU * mul reads rows of 2 K.
        n, k = self._weight.q.shape
        return -(-m // (INT32_MAX // max(n, 2 * k)))

    def _call(self, kind: str, x: torch.Tensor, *others: torch.Tensor) -> Any:
        it, functions = self._weight, self._functions
        run = functions.at(kind, len(x))
        shown = (kind, functions.first_rows(len(x)), *it.q.shape, it.bias is None)
        if functions.compiles and shown not in functions.shown:
            functions.shown.add(shown)
            self._show(run, shown[1], x.shape[1], *others)
        return run(x, *others, it.q, it.scale, it.bias)

    def _show(self, run: Callable[..., Any], rows: int, width: int, *others: torch.Tensor) -> None:
        """Show the function rows whose number varies, so that one compilation serves every M."""
        it = self._weight
        x = torch.randn((rows, width), dtype=torch.bfloat16, device=it.q.device)
        given = [dynamic(torch.zeros_like(x)) if other.ndim == 2 else other for other in others]
        run(dynamic(x), *given, it.q, it.scale, it.bias)


def _behind_norm(linear: Linear) -> Callable[..., Any]:
    def run(x: Any, residual: Any, weight: Any, q: Any, scale: Any, bias: Any) -> Any:
        hidden = (x.float() + residual.float()).to(x.dtype)
        rows = hidden.float()
        inverse = torch.rsqrt(rows.square().mean(dim=1, keepdim=True) + EPS)
        return linear((rows * inverse * weight.float()).to(x.dtype), q, scale, bias), hidden

    return run


def _behind_silu(linear: Linear) -> Callable[..., Any]:
    def run(gate_up: Any, q: Any, scale: Any, bias: Any) -> Any:
        gate, up = gate_up.float().chunk(2, dim=1)
        return linear((torch.nn.functional.silu(gate) * up).to(gate_up.dtype), q, scale, bias)

    return run
