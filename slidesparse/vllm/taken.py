"""One linear layer taken over from vLLM: its pattern, its plan, its weight in the plan's forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from slidesparse import vllm_gemm
from slidesparse.candidate import Candidate
from slidesparse.errors import CandidateError
from slidesparse.layers.layer_plan import DENSE_FORM, LayerPlan, Step
from slidesparse.layers.planning import LayerShape, Timed, choose_plan, measured_ways
from slidesparse.layers.prepared import prepared
from slidesparse.layers.vllm_way import VllmWay
from slidesparse.layers.weight import to_format
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
    """One layer that runs ours.

    Args:
        plan: what runs for which number of tokens.
        forms: of the weight, in the plan's order.
        scale: [N] float32 of the weight.
        x_scale: [1] float32 of the activations, or None for one per token.
        ways: what was measured, by M bucket.
    """

    plan: LayerPlan
    forms: tuple[torch.Tensor, ...]
    scale: torch.Tensor
    x_scale: torch.Tensor | None
    ways: Mapping[int, tuple[Timed, ...]]

    def times(self, bucket: int) -> tuple[float, float] | None:
        """Microseconds in an M bucket: of what runs and of the fastest dense way, if measured."""
        ways = self.ways.get(bucket, ())
        key = self.plan.at(bucket).candidate.key
        ours = [timed.us for timed in ways if timed.candidate.key == key]
        dense = [timed.us for timed in ways if not timed.candidate.sparse]
        return (min(ours), min(dense)) if ours and dense else None


def take(
    q: torch.Tensor,
    scale: torch.Tensor,
    x_scale: torch.Tensor | None,
    out: torch.dtype,
    bias: bool,
    options: Options,
) -> Taken:
    """Take a layer over.

    Args:
        q: [N, K] float8_e4m3fn or int8, where it will run.
        scale: [N] float32, or one value for all.
        x_scale: a static activation scale, or None for one per token.
        out: dtype of the result.
        bias: whether one is added.
        options: of the plug-in.

    Raises:
        LeftToVllm: nothing was measured for it, or it cannot run here.
    """
    if q.ndim != 2 or 0 in q.shape:
        raise LeftToVllm(f"a weight of shape {tuple(q.shape)}")
    if out not in (torch.bfloat16, torch.float16):
        raise LeftToVllm(f"it gives {out}")
    n, k = q.shape
    pattern = pattern_of(q, options)
    shape = LayerShape(n, k, pattern, DTYPES[q.dtype], DTYPES[out], bias)
    ways = planned_ways(shape, q.device)
    plan = choose_plan(shape, ways, options.memory_format)
    if plan is None:
        raise LeftToVllm("no tuning result")
    text = plan.to_text()
    try:
        prepared(text, q.device.type, q.device.index or 0)
    except CandidateError as error:
        raise LeftToVllm(str(error)) from error
    return Taken(
        plan=plan,
        forms=tuple(to_format(q, pattern, name) for name in plan.forms),
        scale=scale.detach().float().reshape(-1).expand(n).contiguous(),
        x_scale=None if x_scale is None else x_scale.detach().float().reshape(1),
        ways=ways,
    )


def pattern_of(q: torch.Tensor, options: Options) -> Pattern:
    """The sparsest pattern that the weight satisfies, dense if it may not run sparse."""
    found = detect_pattern(q, LARGEST_BLOCK)
    return found if options.patterns is None or found in options.patterns else DENSE


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
