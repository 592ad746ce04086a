"""Planning a layer: for each M bucket the way that was measured fastest, dense included.

The time of a way is that of its GEMM with the scales and, where the tuning cache has it, that of
the quantisation (and lift) before it: the lift of a sparse way writes more. Files are read here and
nowhere later.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch

from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Measurement, ProblemResult
from slidesparse.devices import FP8_SM, Device, Fingerprint, detect, lacks_fp8, spell_sm
from slidesparse.errors import DeviceError, SlideSparseError
from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.layers.layer_plan import DENSE_FORM, PACKED_FORMS, LayerPlan, Step
from slidesparse.layers.ways import Reference, TorchInt, TorchScaled, way_of
from slidesparse.layers.weight import format_bytes
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import SMALLEST_BUCKET, DType, Scales, bucket_m

log = logging.getLogger(__name__)

FASTEST, SMALLEST = "fastest", "smallest"
MEMORY_FORMATS = (FASTEST, SMALLEST)
"""fastest: each form of the weight that some step reads; smallest: one, packed if that serves."""

SETTLED = 4096
"""From so many tokens on the GPU is full: sparse that wins there clearly wins at larger M, too."""

CLEARLY = 1.03
"""Dense time over sparse time from which on that is expected."""

_warned: set[str] = set()


class LayerShape(NamedTuple):
    """What a layer is planned for.

    Args:
        n: output channels.
        k: input channels.
        pattern: of the weight.
        dtype: of weight and quantised activations.
        out: of the result.
        bias: whether one is added.
    """

    n: int
    k: int
    pattern: Pattern
    dtype: DType
    out: DType
    bias: bool


class Timed(NamedTuple):
    """A way and its microseconds: GEMM, scales and what the quantisation costs more."""

    candidate: Candidate
    us: float
    spread_us: float


def plan_layer(
    shape: LayerShape,
    device: torch.device,
    memory_format: str = FASTEST,
    cache: TuningCache | None = None,
) -> LayerPlan:
    """Plan one layer on one device.

    Args:
        shape: of the layer.
        device: on which it will run.
        memory_format: FASTEST or SMALLEST.
        cache: of tuning results; None for the device's own, which is read once per process.

    Returns:
        A plan that always works: torch's GEMM where nothing was measured, with one warning that
        names the search command; plain torch where that has no GEMM for the sizes.

    Raises:
        DeviceError: the GPU has no FP8 and the layer is FP8.
    """
    if device.type != "cuda":
        return _unmeasured(shape, sm=0)
    index = device.index or 0
    fingerprint = _fingerprint(index)
    if shape.dtype is DType.FP8 and lacks_fp8(fingerprint.sm):
        raise DeviceError(
            f"an FP8 layer needs {spell_sm(FP8_SM)} or newer and {fingerprint.name} is "
            f"{spell_sm(fingerprint.sm)}; use int8"
        )
    default = _unmeasured(shape, fingerprint.sm)
    measured = measured_ways(shape, device, cache)
    if not measured:
        _warn(shape, fingerprint.name)
        return default
    return choose_plan(shape, measured, memory_format) or default


def measured_ways(
    shape: LayerShape, device: torch.device, cache: TuningCache | None = None
) -> dict[int, tuple[Timed, ...]]:
    """What was measured of the ways that can run a layer on a GPU, by M bucket.

    Args:
        shape: of the layer.
        device: on which it will run; nothing is measured for the CPU.
        cache: of tuning results; None for the device's own, which is read once per process.
    """
    if device.type != "cuda":
        return {}
    index = device.index or 0
    tuned = cache or _cache(index)
    if tuned is None:
        return {}
    sm = _fingerprint(index).sm
    return _by_bucket(shape, tuned, sm, _unmeasured(shape, sm))


def choose_plan(
    shape: LayerShape, measured: Mapping[int, tuple[Timed, ...]], memory_format: str = FASTEST
) -> LayerPlan | None:
    """The plan that runs the fastest way of each M bucket; None where no way was measured.

    Args:
        shape: of the layer.
        measured: ways by M bucket.
        memory_format: FASTEST or SMALLEST.
    """
    steps = _choose(shape, measured, memory_format)
    if not steps:
        return None
    return LayerPlan(shape.n, shape.k, shape.pattern, shape.dtype, shape.out, steps)


def safe_plan(shape: LayerShape, device: torch.device) -> LayerPlan:
    """The plan of a layer that was never measured: torch's GEMM, else plain torch."""
    sm = _fingerprint(device.index or 0).sm if device.type == "cuda" else 0
    return _unmeasured(shape, sm)


def forget() -> None:
    """Read tuning results anew for layers that are planned from now on."""
    _cache.cache_clear()
    _fingerprint.cache_clear()
    _warned.clear()


def _choose(
    shape: LayerShape, measured: Mapping[int, tuple[Timed, ...]], memory_format: str
) -> tuple[Step, ...]:
    only = _smallest(shape, measured) if memory_format == SMALLEST else None
    steps = []
    for bucket in sorted(measured):
        ways = measured[bucket]
        if only is not None:
            ways = tuple(timed for timed in ways if _form(shape, timed.candidate) == only)
        if ways:
            best = _faster(ways)
            steps.append(Step(bucket, best, _form(shape, best)))
    return tuple(_merged(steps))


def _smallest(shape: LayerShape, measured: Mapping[int, tuple[Timed, ...]]) -> str:
    """The one form to keep: a packed one if smaller and if every bucket has a way that reads it."""
    n, k, pattern = shape.n, shape.k, shape.pattern
    times: dict[str, float] = {}
    for form in PACKED_FORMS:
        if format_bytes(form, n, k, pattern) >= format_bytes(DENSE_FORM, n, k, pattern):
            continue
        fitting = [
            [timed.us for timed in ways if _form(shape, timed.candidate) == form]
            for ways in measured.values()
        ]
        if all(fitting):
            times[form] = sum(map(min, fitting))
    return min(times, key=lambda form: times[form], default=DENSE_FORM)


def _faster(ways: Sequence[Timed]) -> Candidate:
    """The fastest; sparse only if by more than the spread (see slidesparse.plan.choose)."""
    best = min(ways, key=lambda timed: timed.us)
    dense = [timed for timed in ways if not timed.candidate.sparse]
    if best.candidate.sparse and dense:
        other = min(dense, key=lambda timed: timed.us)
        if other.us - best.us <= max(other.spread_us, best.spread_us) / 2:
            return other.candidate
    return best.candidate


def _merged(steps: list[Step]) -> Iterator[Step]:
    """Neighbouring buckets that run the same candidate become one step."""
    for step, following in zip(steps, [*steps, None][1:], strict=True):
        same = following is not None and following.candidate.key == step.candidate.key
        if not same:
            yield step


def _by_bucket(
    shape: LayerShape, cache: TuningCache, sm: int, default: LayerPlan
) -> dict[int, tuple[Timed, ...]]:
    """What was measured of ways that run here, by M bucket.

    Past the pattern's own last race, if that was of SETTLED tokens or more and something sparse
    won it clearly, races of dense ways alone do not count.
    """
    found: dict[int, dict[str, Timed]] = {}
    own = []
    for result in _results(shape, cache):
        bucket = bucket_m(result.problem.m)
        if result.problem.pattern == shape.pattern:
            own.append(bucket)
        ways = found.setdefault(bucket, {})
        for measurement in _runnable(result, default, sm):
            candidate = measurement.candidate
            extra = _quantise_us(shape, cache, bucket, candidate.sparse)
            timed = Timed(candidate, measurement.median_us + extra, measurement.spread_us)
            ways.setdefault(candidate.key, timed)
    measured = {bucket: tuple(ways.values()) for bucket, ways in found.items() if ways}
    last = max(filter(measured.get, own), default=0)
    if last >= SETTLED and _gain(measured[last]) >= CLEARLY:
        return {bucket: ways for bucket, ways in measured.items() if bucket <= last}
    return measured


def _gain(ways: Sequence[Timed]) -> float:
    """The best dense time over the best sparse one; infinite without a dense way, 0 if all are."""
    sparse = min((timed.us for timed in ways if timed.candidate.sparse), default=math.inf)
    dense = min((timed.us for timed in ways if not timed.candidate.sparse), default=math.inf)
    return 0.0 if math.isinf(sparse) else dense / sparse


def _results(shape: LayerShape, cache: TuningCache) -> list[ProblemResult]:
    """Results of the layer: of its pattern, whose races hold the dense ways too, else dense ones.

    A result without the bias, or for another 16-bit output, is better than none: what is fastest
    hardly depends on them, and a way that cannot do them is left out.
    """
    matching = [
        hit.result
        for hit in cache.entries().values()
        if (hit.result.problem.n, hit.result.problem.k) == (shape.n, shape.k)
        and hit.result.problem.dtype is shape.dtype
        and hit.result.problem.scales is Scales.ROWCOL
        and hit.result.problem.pattern in (shape.pattern, DENSE)
    ]

    def distance(result: ProblemResult) -> tuple[bool, bool, bool]:
        problem = result.problem
        return (
            problem.pattern != shape.pattern,
            problem.out is not shape.out,
            problem.bias is not shape.bias,
        )

    best: dict[int, ProblemResult] = {}
    for result in sorted(matching, key=distance):
        best.setdefault(bucket_m(result.problem.m), result)
    return list(best.values())


def _runnable(result: ProblemResult, plan: LayerPlan, sm: int) -> Iterator[Measurement]:
    """The measurements of one race whose candidates a layer can run here."""
    baseline = (result.baseline,) if result.baseline else ()
    for measurement in (*result.ranked, *baseline, *result.defaults):
        way = way_of(plan, measurement.candidate)
        if way is not None and way.refusal(plan, measurement.candidate, sm) is None:
            yield measurement


def _quantise_us(shape: LayerShape, cache: TuningCache, bucket: int, sparse: bool) -> float:
    """What quantising costs a sparse way more than a dense one, 0 where it was not measured."""
    if not sparse:
        return 0.0
    source = DType.BF16 if shape.out is DType.INT32 else shape.out
    times = []
    for pattern in (shape.pattern, DENSE):
        problem = KernelProblem(Op.QUANTIZE, bucket, shape.k, source, shape.dtype, pattern)
        hit = cache.get_kernel(problem)
        if hit is None or hit.result.best is None:
            return 0.0
        # Tuned at another K of the same bucket: the time goes with the width.
        times.append(hit.result.best.median_us * shape.k / hit.result.problem.k)
    return max(0.0, times[0] - times[1])


def _unmeasured(shape: LayerShape, sm: int) -> LayerPlan:
    """Torch's GEMM, or plain torch where it has none for the sizes."""
    candidates = (
        Candidate("torch", {"function": "scaled_mm_rowwise", "fast_accum": True}, sparse=False),
        Candidate("torch", {"function": "int_mm"}, sparse=False),
    )
    candidate = candidates[shape.dtype is DType.INT8]
    way = TorchInt if shape.dtype is DType.INT8 else TorchScaled
    plan = _single(shape, candidate)
    if way.refusal(plan, candidate, sm) is None:
        return plan
    return _single(shape, Candidate(Reference.backend, {}, sparse=False))


def _single(shape: LayerShape, candidate: Candidate) -> LayerPlan:
    step = Step(SMALLEST_BUCKET, candidate, DENSE_FORM)
    return LayerPlan(shape.n, shape.k, shape.pattern, shape.dtype, shape.out, (step,))


def _form(shape: LayerShape, candidate: Candidate) -> str:
    way = way_of(_single(shape, candidate), candidate)
    assert way is not None  # _runnable has seen it.
    return way.form


def _warn(shape: LayerShape, gpu: str) -> None:
    """Say once per dtype and pattern that nothing was measured, and what mends it."""
    key = f"{shape.dtype} {shape.pattern}"
    if key in _warned:
        return
    _warned.add(key)
    log.warning(
        "no tuning result for N=%d K=%d %s %s on %s: torch's dense GEMM runs; run slidesparse "
        "search --model MODEL --dtype %s --scales rowcol --patterns %s",
        *(shape.n, shape.k, shape.dtype, shape.pattern, gpu),
        *("fp8" if shape.dtype is DType.FP8 else "int8", shape.pattern),
    )


@cache
def _fingerprint(index: int) -> Fingerprint:
    """Of a GPU; asking the driver and the libraries anew for each layer would take seconds."""
    return detect(Device("cuda", index))


@cache
def _cache(index: int) -> TuningCache | None:
    try:
        return TuningCache(None, _fingerprint(index))
    except (SlideSparseError, OSError) as error:
        log.warning("tuning results are not used: %s", error)
        return None
