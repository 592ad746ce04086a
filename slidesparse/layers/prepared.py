"""A layer's plan made ready on a device, once per process, and the run of one of its steps."""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from slidesparse.errors import KernelError
from slidesparse.kernels.launch import needs_wide
from slidesparse.layers.layer_plan import LayerPlan, from_text
from slidesparse.layers.ways import Way, make_way
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import bucket_m
from slidesparse.tensors import TORCH_DTYPES

if TYPE_CHECKING:
    from slidesparse.kernels.native.source import Variant

ALIGNMENT = 16
"""Of addresses in bytes and of strides in elements: Triton has code of its own for multiples."""

NOT_READY = "which a CUDA graph cannot capture; run it once before"

Kind = tuple[str, torch.dtype, int, bool, bool]

Quantised = tuple[torch.Tensor, torch.Tensor]
"""q [M, K'] and its scale [M]."""

Produce = Callable[[Pattern], Quantised]
"""Makes the quantised rows in the lift of a pattern."""


def kind_of(producer: str, x: torch.Tensor, out: torch.Tensor) -> Kind:
    """What decides which code runs for rows x: Triton compiles by alignment and by size too."""
    aligned = x.data_ptr() % ALIGNMENT == 0 and x.stride(0) % ALIGNMENT == 0
    return producer, x.dtype, bucket_m(x.shape[0]), aligned, needs_wide(x, out)


class Prepared:
    """A plan whose ways are ready on one device.

    Args:
        plan: of the layer.
        device: on which it runs.

    Raises:
        CandidateError: a way cannot run there.
    """

    def __init__(self, plan: LayerPlan, device: torch.device) -> None:
        """Compile and load every way."""
        self.plan = plan
        self.dtype, self.out = TORCH_DTYPES[plan.dtype], TORCH_DTYPES[plan.out]
        forms = plan.forms
        ways = [make_way(plan, step.candidate) for step in plan.steps]
        compile_together({variant for way in ways for variant in way.variants}, device)
        self.steps: list[tuple[Way, int, Pattern]] = []
        for step, way in zip(plan.steps, ways, strict=True):
            way.prepare(device)
            lift = plan.pattern if way.candidate.sparse else DENSE
            self.steps.append((way, forms.index(step.form), lift))
        self._ran: set[Kind] = set()

    def run(
        self,
        producer: str,
        x: torch.Tensor,
        produce: Produce,
        weights: list[torch.Tensor],
        w_scale: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Run one step on the current stream of the tensors' device, which is current.

        Args:
            producer: names what `produce` does.
            x: [M, ...] the rows that it reads.
            produce: quantises them, and lifts them for the pattern that it is given.
            weights: the forms of the weight that the plan names, in their order.
            w_scale: [N] float32.
            bias: [N] of the output's dtype, or None.

        Raises:
            KernelError: a CUDA graph is being captured and nothing of this M bucket ever ran: its
                kernels are compiled and loaded then, which would break the capture.
        """
        m = x.shape[0]
        out = torch.empty((m, self.plan.n), dtype=self.out, device=x.device)
        if not m:
            produce(DENSE)  # Nothing to multiply, but rows that do not fit are refused.
            return out
        kind = kind_of(producer, x, out)
        if kind not in self._ran and x.is_cuda and torch.cuda.is_current_stream_capturing():
            raise KernelError(f"the layer never ran M={m} or near, {NOT_READY}")
        way, form, lift = self.steps[self.plan.index_at(m)]
        q, x_scale = produce(lift)
        way.run(q, x_scale, weights[form], w_scale, bias, out)
        self._ran.add(kind)
        return out


def compile_together(variants: Set[Variant], device: torch.device) -> None:
    """Compile on several threads what is not loaded yet; one by one they take a second each.

    What cannot be compiled is left to `Way.prepare`, which says why.
    """
    if not variants:
        return
    from slidesparse.kernels.native.program import compile_variants, is_loaded

    missing = [each for each in variants if not is_loaded(each, device.index or 0)]
    if len(missing) > 1:
        compile_variants(missing)


@lru_cache(maxsize=4096)
def prepared(plan: str, kind: str, index: int) -> Prepared:
    """The plan of `LayerPlan.to_text` made ready on a device, once per process.

    Raises:
        KernelError: a CUDA graph is being captured, which cannot wait for a compiler.
        CandidateError: a way cannot run there.
    """
    if kind == "cpu":
        return Prepared(from_text(plan), torch.device("cpu"))
    if torch.cuda.is_current_stream_capturing():
        raise KernelError(f"the layer never ran on cuda:{index}, {NOT_READY}")
    device = torch.device(kind, index)
    with torch.cuda.device(device):
        return Prepared(from_text(plan), device)
