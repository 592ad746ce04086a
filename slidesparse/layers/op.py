"""The operator of a planned linear layer: quantise (and lift), multiply, scale, add the bias."""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache

import torch

from slidesparse.errors import KernelError
from slidesparse.kernels.launch import FLOATS, needs_wide
from slidesparse.kernels.quant import quantize_rows
from slidesparse.layers.layer_plan import LayerPlan, from_text
from slidesparse.layers.ways import Way, make_way
from slidesparse.pattern import DENSE
from slidesparse.problem import bucket_m
from slidesparse.tensors import TORCH_DTYPES

ALIGNMENT = 16
"""Of addresses in bytes and of strides in elements: Triton has code of its own for multiples."""

NOT_READY = "which a CUDA graph cannot capture; run it once before"


Kind = tuple[torch.dtype, int, bool, bool]


def kind_of(x: torch.Tensor, out: torch.Tensor) -> Kind:
    """What decides which code runs for rows x: Triton compiles by alignment and by size too."""
    aligned = x.data_ptr() % ALIGNMENT == 0 and x.stride(0) % ALIGNMENT == 0
    return x.dtype, bucket_m(x.shape[0]), aligned, needs_wide(x, out)


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
        self.steps: list[tuple[Way, int]] = []
        for step in plan.steps:
            way = make_way(plan, step.candidate)
            way.prepare(device)
            self.steps.append((way, forms.index(step.form)))
        self._ran: set[Kind] = set()

    def run(
        self,
        x: torch.Tensor,
        weights: list[torch.Tensor],
        w_scale: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Run the operator on the current stream of the tensors' device, which is current.

        Raises:
            KernelError: a CUDA graph is being captured and nothing of this M bucket ever ran: its
                kernels are compiled and loaded then, which would break the capture.
        """
        m = x.shape[0]
        out = torch.empty((m, self.plan.n), dtype=self.out, device=x.device)
        if not m:
            return out
        kind = kind_of(x, out)
        if kind not in self._ran and x.is_cuda and torch.cuda.is_current_stream_capturing():
            raise KernelError(f"the layer never ran M={m} or near, {NOT_READY}")
        way, form = self.steps[self.plan.index_at(m)]
        pattern = self.plan.pattern if way.candidate.sparse else DENSE
        q, x_scale = quantize_rows(x, self.dtype, pattern)
        way.run(q, x_scale, weights[form], w_scale, bias, out)
        self._ran.add(kind)
        return out


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


def _linear(
    x: torch.Tensor,
    weights: list[torch.Tensor],
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    plan: str,
) -> torch.Tensor:
    """A planned W8A8 linear layer.

    Args:
        x: [M, K] bf16, fp16 or fp32.
        weights: the forms of the weight that the plan names, in their order.
        w_scale: [N] float32.
        bias: [N] of the output's dtype, or None.
        plan: `LayerPlan.to_text`.

    Returns:
        [M, N] of the plan's output dtype.

    Raises:
        KernelError: x does not fit the plan.
    """
    device = x.device
    ready = prepared(plan, device.type, device.index or 0)
    if x.ndim != 2 or x.shape[1] != ready.plan.k or x.dtype not in FLOATS:
        raise KernelError(
            f"x is {x.dtype} {tuple(x.shape)}; bfloat16, float16 or float32 [M, {ready.plan.k}] is "
            "needed"
        )
    other = x.is_cuda and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if other else nullcontext():
        return ready.run(x, weights, w_scale, bias)


def _fake(
    x: torch.Tensor,
    weights: list[torch.Tensor],
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    plan: str,
) -> torch.Tensor:
    wanted = from_text(plan)
    return torch.empty((x.shape[0], wanted.n), dtype=TORCH_DTYPES[wanted.out], device=x.device)


# Not torch.library.custom_op, whose checks of every call cost more than a decode step's GEMM.
_LIBRARY = torch.library.Library("slidesparse", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "linear(Tensor x, Tensor[] weights, Tensor w_scale, Tensor? bias, str plan) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("linear", _linear, _key)  # type: ignore[no-untyped-call]
torch.library.register_fake("slidesparse::linear", _fake)
linear_op = torch.ops.slidesparse.linear.default
