"""One linear layer taken over from vLLM: its pattern, its plan, its weight in the plan's forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from slidesparse import vllm_gemm
from slidesparse.candidate import Candidate
from slidesparse.errors import CandidateError
from slidesparse.layers.layer_plan import DENSE_FORM, LayerPlan, Step
from slidesparse.layers.planning import (
    SMALLEST,
    LayerShape,
    Timed,
    choose_plan,
    measured_ways,
)
from slidesparse.layers.prepared import prepared
from slidesparse.layers.vllm_way import VllmWay
from slidesparse.layers.weight import format_bytes, to_format
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import SMALLEST_BUCKET
from slidesparse.slide import detect_pattern
from slidesparse.tensors import DTYPES
from slidesparse.vllm.options import Options

LARGEST_BLOCK = 16
"""2N of the least sparse pattern that is looked for: 14:16 may gain 8/7 at most."""


class LeftToVllm(Exception):
    """A layer that is not taken over; the message says why in one line."""


@dataclass(frozen=True)
class Taken:
    """What was decided for a layer that runs ours. Holds no weights: vLLM may move or drop them.

    Args:
        plan: what runs for which number of tokens.
        found: the sparsest pattern that the weight satisfies; the plan's may be dense instead.
        static: whether the activations have one scale, which the checkpoint holds.
        ways: what was measured, by M bucket.
    """

    plan: LayerPlan
    found: Pattern
    static: bool
    ways: Mapping[int, tuple[Timed, ...]]

    def times(self, bucket: int) -> tuple[float, float] | None:
        """Microseconds in an M bucket: of what runs and of the fastest dense way, if measured."""
        ways = self.ways.get(bucket, ())
        key = self.plan.at(bucket).candidate.key
        ours = [timed.us for timed in ways if timed.candidate.key == key]
        dense = [timed.us for timed in ways if not timed.candidate.sparse]
        return (min(ours), min(dense)) if ours and dense else None

    def __str__(self) -> str:
        """All that a compiled graph holds of the layer."""
        return f"{self.plan.to_text()} static={self.static}"


class Packed(NamedTuple):
    """The tensors of a layer that runs ours.

    Args:
        forms: of the weight, in the plan's order.
        scale: [N] float32 of the weight.
        x_scale: [1] float32 of the activations, or None for one per token.
    """

    forms: tuple[torch.Tensor, ...]
    scale: torch.Tensor
    x_scale: torch.Tensor | None


def decide(
    q: torch.Tensor, out: torch.dtype, bias: bool, static: bool, options: Options, room: int
) -> Taken:
    """Decide whether and how a layer runs ours.

    Args:
        q: [N, K] float8_e4m3fn or int8, where it will run.
        out: dtype of the result.
        bias: whether one is added.
        static: whether the activations have one static scale.
        options: of the plug-in.
        room: bytes that the forms of the weight may take beyond those of the weight itself.

    Raises:
        LeftToVllm: nothing was measured for it, or it cannot run here.
    """
    if q.ndim != 2 or 0 in q.shape:
        raise LeftToVllm(f"a weight of shape {tuple(q.shape)}")
    if out not in (torch.bfloat16, torch.float16):
        raise LeftToVllm(f"it gives {out}")
    n, k = q.shape
    found = detect_pattern(q, LARGEST_BLOCK)
    allowed = options.patterns is None or found in options.patterns
    shape = LayerShape(n, k, found if allowed else DENSE, DTYPES[q.dtype], DTYPES[out], bias)
    ways = planned_ways(shape, q.device)
    plan = choose_plan(shape, ways, options.memory_format)
    if plan is None:
        raise LeftToVllm("no tuning result")
    if bytes_of(plan) - n * k > room:
        plan = choose_plan(shape, ways, SMALLEST) or plan
    if static and all(step.candidate.backend == vllm_gemm.BACKEND for step in plan.steps):
        # vLLM joins static scales with attention and collectives, which we do not.
        raise LeftToVllm("static activations, and vLLM's own GEMM is the fastest")
    try:
        prepared(plan.to_text(), q.device.type, q.device.index or 0)
    except CandidateError as error:
        raise LeftToVllm(str(error)) from error
    return Taken(plan, found, static, ways)


def bytes_of(plan: LayerPlan) -> int:
    """Of all forms of the weight that a plan reads."""
    return sum(format_bytes(form, plan.n, plan.k, plan.pattern) for form in plan.forms)


def pack(
    taken: Taken, q: torch.Tensor, scale: torch.Tensor, x_scale: torch.Tensor | None
) -> Packed:
    """Bring a layer's weight into the forms that its plan reads.

    Args:
        taken: what was decided.
        q: [N, K] as `decide` saw it, or other values of the same pattern.
        scale: [N] float32, or one value for all.
        x_scale: a static activation scale, or None.

    Raises:
        PatternError: the weight breaks the pattern of the plan.
    """
    plan = taken.plan
    return Packed(
        forms=tuple(to_format(q, plan.pattern, name) for name in plan.forms),
        scale=scale.detach().float().reshape(-1).expand(plan.n).contiguous(),
        x_scale=None if x_scale is None else x_scale.detach().float().reshape(1),
    )


def planned_ways(shape: LayerShape, device: torch.device) -> dict[int, tuple[Timed, ...]]:
    """What was measured, with vLLM's own GEMM where it was not raced and can run.

    A dense way that is ahead of the other dense ways may still be behind vLLM's, which scales INT8
    in its epilogue too. Where a search ran without vLLM its GEMM therefore stands in for the dense
    ways, with their best time: the layer is then no slower than vLLM leaves it.
    """
    measured = measured_ways(shape, device)
    stock = stock_candidate(shape, device)
    if stock is None:
        return measured
    return {bucket: _raced(ways, stock) for bucket, ways in measured.items()}


def stock_candidate(shape: LayerShape, device: torch.device) -> Candidate | None:
    """The GEMM of vLLM itself for a layer, or None where it cannot run."""
    if device.type != "cuda":
        return None
    candidate = vllm_gemm.candidate()
    major, minor = torch.cuda.get_device_capability(device)
    step = Step(SMALLEST_BUCKET, candidate, DENSE_FORM)
    plan = LayerPlan(shape.n, shape.k, DENSE, shape.dtype, shape.out, (step,))
    return None if VllmWay.refusal(plan, candidate, 10 * major + minor) else candidate


def _raced(ways: tuple[Timed, ...], stock: Candidate) -> tuple[Timed, ...]:
    dense = [timed for timed in ways if not timed.candidate.sparse]
    if not dense or any(timed.candidate.backend == stock.backend for timed in dense):
        return ways
    best = min(dense, key=lambda timed: timed.us)
    sparse = tuple(timed for timed in ways if timed.candidate.sparse)
    return (*sparse, best._replace(candidate=stock))
