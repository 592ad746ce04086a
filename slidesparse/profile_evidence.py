"""What searches measured about sparse GEMMs on a GPU: the evidence of a profile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slidesparse.accuracy.speed import forms_of
from slidesparse.cache import TuningCache
from slidesparse.candidate import Provenance
from slidesparse.capacity.gemm_times import GemmTimes
from slidesparse.gpus import GpuSpec
from slidesparse.models import LinearLayer, ModelSpec
from slidesparse.pattern import Pattern
from slidesparse.plan import Choice, choose
from slidesparse.problem import DType, GemmProblem

PREFILL, DECODE = 4096, 64
"""Tokens of a step that stand for each stage."""


@dataclass(frozen=True)
class PatternGain:
    """What a pattern gains over dense on a model's linears at one M, GEMMs only.

    Args:
        pattern: of the pruned weights.
        m: tokens of the step.
        planned: time of the dense GEMMs over that of the planned ones, on the same pruned weights;
            at least 1 but for rounding, since the plan may choose dense.
        sparse: layers that run a sparse GEMM, as often as the model has them.
        layers: of them all.
        provenance: cached or bundled.
    """

    pattern: Pattern
    m: int
    planned: float
    sparse: int
    layers: int
    provenance: Provenance


def pattern_gains(
    gpu: GpuSpec,
    spec: ModelSpec,
    dtype: DType,
    patterns: Sequence[Pattern],
    root: Path | None = None,
) -> tuple[PatternGain, ...]:
    """The gains that tuning caches of this GPU know, for the whole model or not at all.

    Args:
        gpu: whose caches are asked, those of the user first, then the bundled ones.
        spec: the model; its experts are left out, they stay with vLLM's kernels.
        dtype: FP8 or INT8.
        patterns: to look for.
        root: of the user's caches; None for the default one.
    """
    machines = GemmTimes.of_gpu(gpu, root).machines
    caches = [TuningCache(root, fingerprint) for fingerprint in machines]
    layers = [layer for layer in spec.linears() if layer.kind != "expert"]
    wanted = ((pattern, m) for pattern in patterns for m in (PREFILL, DECODE))
    found = (_gain(caches, layers, dtype, pattern, m) for pattern, m in wanted)
    return tuple(gain for gain in found if gain is not None)


def _gain(
    caches: Sequence[TuningCache],
    layers: Sequence[LinearLayer],
    dtype: DType,
    pattern: Pattern,
    m: int,
) -> PatternGain | None:
    """The first cache and form of the problem that has every layer."""
    for cache in caches:
        for form in forms_of(dtype):
            problems = [replace(form, m=m, n=it.n, k=it.k, pattern=pattern) for it in layers]
            choices = list(_choices(cache, problems))
            if layers and len(choices) == len(layers):
                return _sum(choices, layers, pattern, m)
    return None


def _choices(
    cache: TuningCache, problems: Sequence[GemmProblem]
) -> Iterator[tuple[Choice, Provenance]]:
    for problem in problems:
        hit = cache.get(problem)
        choice = None if hit is None else choose(hit.result)
        if hit is not None and choice is not None and choice.baseline is not None:
            yield choice, hit.provenance


def _sum(
    choices: Sequence[tuple[Choice, Provenance]],
    layers: Sequence[LinearLayer],
    pattern: Pattern,
    m: int,
) -> PatternGain:
    counted = [(choice, layer.count) for (choice, _), layer in zip(choices, layers, strict=True)]
    dense = sum(it.baseline.median_us * count for it, count in counted if it.baseline)
    planned = sum(it.chosen.median_us * count for it, count in counted)
    own = any(provenance is Provenance.CACHED for _, provenance in choices)
    return PatternGain(
        pattern=pattern,
        m=m,
        planned=dense / planned,
        sparse=sum(count for it, count in counted if it.chosen.candidate.sparse),
        layers=sum(count for _, count in counted),
        provenance=Provenance.CACHED if own else Provenance.BUNDLED,
    )
