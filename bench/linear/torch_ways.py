"""torch's own W8A8 linear: what a layer costs without SlideSparse, as fast as torch makes it.

Quantise per token, torch._scaled_mm (row-wise scales fused) or torch._int_mm and a scaling, all in
one function that torch.compile may fuse as it likes. The ways to run it are timed against each
other, and the fastest one counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from slidesparse.kernels.reference import FP8_SMALLEST_SCALE, INT8_SMALLEST_SCALE
from slidesparse.problem import INT32_MAX, DType
from slidesparse.tensors import TOP

Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]
"""x [M, K] bf16, q [N, K], scale [N] float32, bias [N] bf16 or None -> [M, N] bf16."""

INT_MM_SMALLEST_M = 17
"""torch._int_mm refuses fewer rows on CUDA; a decode batch is padded."""

PADDED_M = 32

FIRST_M = 4096
"""The row count that torch.compile sees first, as where a server warms up; all others are M as a
symbol, so that one compilation serves them."""

MODE = "max-autotune-no-cudagraphs"
EAGER, COMPILED = "eager", "torch.compile"


@dataclass(frozen=True)
class TorchWeight:
    """A weight as torch's products take it.

    Args:
        q: [N, K] float8_e4m3fn or int8.
        scale: [N] float32.
        bias: [N] bfloat16, or None.
    """

    q: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def copy(self) -> TorchWeight:
        """The same in other memory."""
        return TorchWeight(
            self.q.clone(),
            self.scale.clone(),
            None if self.bias is None else self.bias.clone(),
        )

    def run(self, way: Linear, x: torch.Tensor) -> torch.Tensor:
        """The linear of x [M, K], computed this way."""
        return way(x, self.q, self.scale, self.bias)


@dataclass(frozen=True)
class Way:
    """One way to run torch's linear.

    Args:
        how: for tables: "torch.compile", "torch.compile max-autotune at M=4096", "eager".
        make: gives the linear; compiles where that was not done yet.
    """

    how: str
    make: Callable[[], Linear]


def fp8_linear(x: Any, q: Any, scale: Any, bias: Any) -> Any:
    """torch._scaled_mm with one scale per token and one per output channel."""
    rows = x.float()
    x_scale = (rows.abs().amax(dim=1) / TOP[DType.FP8]).clamp_min(FP8_SMALLEST_SCALE)
    quantised = (rows / x_scale[:, None]).clamp(-TOP[DType.FP8], TOP[DType.FP8])
    return torch._scaled_mm(
        quantised.to(q.dtype),
        q.t(),
        scale_a=x_scale[:, None],
        scale_b=scale[None, :],
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def int8_linear(x: Any, q: Any, scale: Any, bias: Any) -> Any:
    """torch._int_mm, its INT32 sums scaled afterwards."""
    quantised, x_scale = _int8_rows(x)
    return _int8_scaled(torch._int_mm(quantised, q.t()), x_scale, scale, bias)


def int8_linear_of_few(x: Any, q: Any, scale: Any, bias: Any) -> Any:
    """The same for fewer rows than torch._int_mm takes."""
    quantised, x_scale = _int8_rows(x)
    m = x.shape[0]
    padded = torch.nn.functional.pad(quantised, (0, 0, 0, PADDED_M - m))
    return _int8_scaled(torch._int_mm(padded, q.t())[:m], x_scale, scale, bias)


def _int8_rows(x: Any) -> tuple[Any, Any]:
    rows = x.float()
    largest = rows.abs().amax(dim=1).clamp_min(TOP[DType.INT8] * INT8_SMALLEST_SCALE)
    # A tensor over a tensor: torch rounds the reciprocal of a divisor of a number first.
    top = torch.full_like(largest, TOP[DType.INT8])
    quantised = (rows * (top / largest)[:, None]).round().to(torch.int8)
    return quantised, largest / top


def _int8_scaled(sums: Any, x_scale: Any, scale: Any, bias: Any) -> Any:
    scaled = sums.float() * x_scale[:, None] * scale[None, :]
    return (scaled if bias is None else scaled + bias.float()).to(torch.bfloat16)


def plain(dtype: DType, m: int) -> Linear:
    """Torch's linear as it is written, for `m` rows.

    Args:
        dtype: FP8 or INT8.
        m: rows of x.
    """
    if dtype is DType.FP8:
        return fp8_linear
    return int8_linear if m >= INT_MM_SMALLEST_M else int8_linear_of_few


class TorchWays:
    """The ways to run torch's linear of one layer, each compiled when it is first asked for.

    Args:
        dtype: FP8 or INT8.
        weight: of the layer, for the first call.
        compiles: whether torch.compile takes part; without it the plain functions run.
        autotune: row counts that max-autotune chooses the GEMM for; each makes one way, which
            runs every M with what was chosen.

    Attributes:
        seconds: that compilations took.
    """

    def __init__(
        self, dtype: DType, weight: TorchWeight, compiles: bool, autotune: tuple[int, ...]
    ) -> None:
        """Forget what was compiled for other layers: it counts against a limit of Dynamo's."""
        self._dtype, self._weight = dtype, weight
        self._compiles, self._autotune = compiles, autotune
        self._made: dict[tuple[Linear, int], Linear] = {}
        self._called: set[tuple[Linear, int]] = set()
        self.seconds = 0.0
        if compiles:
            torch.compiler.reset()

    def of(self, m: int) -> Iterator[Way]:
        """The ways for `m` rows."""
        function = plain(self._dtype, m)
        if not self._compiles:
            yield Way(EAGER, lambda: function)
            return
        parts = -(-m // (INT32_MAX // max(self._weight.q.shape)))
        # With so few rows nothing that max-autotune chose for many is of use.
        hints = self._autotune if m >= INT_MM_SMALLEST_M else ()
        for hint in (0, *hints):
            how = f"{COMPILED} max-autotune at M={hint}" if hint else COMPILED
            make = partial(self._compiled, function, hint, m)
            if parts == 1 or not hint:
                yield Way(how, make)
            if parts > 1:
                yield Way(f"{how}, in {parts} parts", partial(_in_parts, make, parts))

    def _compiled(self, function: Linear, hint: int, m: int) -> Linear:
        made = self._made.get((function, hint))
        if made is None:
            made = torch.compile(function, fullgraph=True, mode=MODE if hint else None)
            self._made[function, hint] = made
        most = INT_MM_SMALLEST_M - 1 if function is int8_linear_of_few else FIRST_M
        first = 1 if m == 1 else hint or most
        if (made, first) not in self._called:
            self._call(made, first)
            self._called.add((made, first))
        return made

    def _call(self, made: Linear, m: int) -> None:
        start = time.monotonic()
        q = self._weight.q
        x = torch.randn((m, q.shape[1]), dtype=torch.bfloat16, device=q.device)
        try:
            with quiet():
                self._weight.run(made, dynamic(x))
            if q.is_cuda:
                torch.cuda.synchronize()
        finally:
            self.seconds += time.monotonic() - start


@contextmanager
def quiet() -> Iterator[None]:
    """Keep max-autotune from printing a table of every GEMM that it tries."""
    from torch._inductor import config

    name = "autotune_num_choices_displayed"
    with config.patch({name: 0}) if hasattr(config, name) else nullcontext():
        yield


def dynamic(x: torch.Tensor) -> torch.Tensor:
    """Tell Dynamo that the rows of x vary; M = 1 it specialises by itself."""
    if x.shape[0] > 1:
        torch._dynamo.mark_dynamic(x, 0)
    return x


def _in_parts(make: Callable[[], Linear], parts: int) -> Linear:
    # Compiled for other row counts before: with 64-bit offsets max-autotune would take minutes.
    return in_parts(make(), parts)


def in_parts(run: Linear, parts: int) -> Linear:
    """The rows in `parts` calls, for code whose 32-bit offsets do not reach over all of them."""

    def split(
        x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        m = x.shape[0]
        step = -(-m // parts)
        out = torch.empty((m, q.shape[0]), dtype=torch.bfloat16, device=x.device)
        for start in range(0, m, step):
            out[start : start + step] = run(x[start : start + step], q, scale, bias)
        return out

    return split
