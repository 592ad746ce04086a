"""What each pattern costs in time, from the tuning cache of this machine: measured, or absent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from slidesparse.accuracy.load import GGUF, SMOLLM2
from slidesparse.cache import Hit, TuningCache
from slidesparse.candidate import Provenance
from slidesparse.errors import UsageError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.plan import choose
from slidesparse.problem import DType, GemmProblem, Scales, bucket_m

Shape = tuple[int, int]
"""(n, k) of a GEMM."""

FORMS = {
    DType.FP8: ((DType.BF16, Scales.ROWCOL), (DType.BF16, Scales.TENSOR)),
    DType.INT8: ((DType.BF16, Scales.ROWCOL), (DType.INT32, Scales.NONE)),
}
"""Output and scales of the GEMMs whose times count, the one nearest to a whole linear first."""


@dataclass(frozen=True)
class Batch:
    """A part of the workload.

    Args:
        m: tokens of one batch.
        count: how many such batches there are, next to those of the other parts.
    """

    m: int
    count: int = 1

    def __str__(self) -> str:
        """As the command line spells it."""
        return str(self.m) if self.count == 1 else f"{self.m}:{self.count}"


@dataclass(frozen=True)
class SpeedTable:
    """Times of one linear shape and pattern, summed over the workload.

    Args:
        times: in microseconds, by shape and pattern; DENSE is always there.
        form: a problem of the kind that was timed: its dtype, output and scales.
        provenance: how many of the results are from a search here and how many bundled.
    """

    times: Mapping[tuple[Shape, Pattern], float]
    form: GemmProblem
    provenance: Mapping[Provenance, int]

    def us(self, shape: Shape, pattern: Pattern) -> float:
        """Microseconds of a shape under a pattern."""
        return self.times[shape, pattern]

    def faster(self, shape: Shape, patterns: Iterable[Pattern]) -> tuple[Pattern, ...]:
        """The patterns that a choice can gain from: none with as few zeros is as fast.

        Dense is never among them.
        """
        found: list[Pattern] = []
        best = self.us(shape, DENSE)
        for pattern in sorted(set(patterns) - {DENSE}, key=lambda each: each.zeros):
            if self.us(shape, pattern) < best:
                best = self.us(shape, pattern)
                found.append(pattern)
        return tuple(found)


def problems_of(
    shapes: Iterable[Shape],
    patterns: Iterable[Pattern],
    batches: Iterable[Batch],
    form: GemmProblem,
) -> tuple[GemmProblem, ...]:
    """Every GEMM that a table needs, dense ones first.

    Args:
        shapes: (n, k) of each.
        patterns: besides dense.
        batches: of the workload.
        form: whose dtype, output and scales they have.
    """
    counts = sorted({batch.m for batch in batches})
    return tuple(
        replace(form, m=m, n=n, k=k, pattern=pattern)
        for pattern in dict.fromkeys((DENSE, *patterns))
        for n, k in dict.fromkeys(shapes)
        for m in counts
    )


def forms_of(dtype: DType) -> tuple[GemmProblem, ...]:
    """The forms of GEMM whose times a table of this dtype may hold, the preferred one first."""
    return tuple(GemmProblem(1, 1, 1, dtype, out, scales) for out, scales in FORMS[dtype])


def read_speeds(
    cache: TuningCache,
    shapes: Sequence[Shape],
    patterns: Sequence[Pattern],
    batches: Sequence[Batch],
    dtype: DType,
    model: str = "DIR",
) -> SpeedTable:
    """Read the times of all shapes and patterns.

    The time of a pattern is the dense time times the ratio of its own race, planned over dense:
    times of different races are taken at different clocks and only their ratios compare. Where the
    plan runs dense the ratio is one.

    Args:
        cache: of the machine.
        shapes: (n, k) of each group.
        patterns: besides dense.
        batches: M and how often; an M finds what was tuned for its bucket and nothing else.
        dtype: of the operands.
        model: what `slidesparse search` is to be called with, for the message.

    Raises:
        UsageError: a figure is missing in every form; names the first and the search command.
    """
    first: UsageError | None = None
    for form in forms_of(dtype):
        try:
            return _read(cache, shapes, patterns, batches, form)
        except _MissingError as missing:
            first = first or _complaint(cache, missing, patterns, batches, form, model)
    assert first is not None
    raise first


class _MissingError(Exception):
    """Figures that the cache does not hold: (problem, why)."""

    def __init__(self, missing: list[tuple[GemmProblem, str]], total: int) -> None:
        super().__init__()
        self.missing, self.total = missing, total


def _read(
    cache: TuningCache,
    shapes: Sequence[Shape],
    patterns: Sequence[Pattern],
    batches: Sequence[Batch],
    form: GemmProblem,
) -> SpeedTable:
    problems = problems_of(shapes, patterns, batches, form)
    hits = {problem: cache.get(problem) for problem in problems}
    missing = [(p, why) for p, hit in hits.items() if (why := _lacks(p, hit))]
    if missing:
        raise _MissingError(missing, len(problems))
    counts = Counter({batch.m: 0 for batch in batches})
    for batch in batches:
        counts[batch.m] += batch.count
    times: dict[tuple[Shape, Pattern], float] = {}
    for problem in problems:
        key = (problem.n, problem.k), problem.pattern
        us = _dense_us(hits[problem.on_dense()]) * _ratio(hits[problem])
        times[key] = times.get(key, 0.0) + counts[problem.m] * us
    found = Counter(hit.provenance for hit in hits.values() if hit is not None)
    return SpeedTable(times, form, found)


def _lacks(problem: GemmProblem, hit: Hit | None) -> str:
    """Why there is no figure, or ""."""
    choice = choose(hit.result) if hit is not None else None
    if hit is None:
        return "is not in the cache"
    if choice is None:
        return "has a search behind it that found nothing"
    if not problem.pattern.dense and choice.baseline is None:
        return "was not compared with a dense GEMM"
    return ""


def _dense_us(hit: Hit | None) -> float:
    best = hit.result.best if hit is not None else None
    assert best is not None
    return best.median_us


def _ratio(hit: Hit | None) -> float:
    """Time of what is planned over time of dense, of one race."""
    choice = choose(hit.result) if hit is not None else None
    assert choice is not None
    if choice.sparse is None or choice.baseline is None or choice.verdict == "dense":
        return 1.0
    return choice.chosen.median_us / choice.baseline.median_us


def _complaint(
    cache: TuningCache,
    error: _MissingError,
    patterns: Sequence[Pattern],
    batches: Sequence[Batch],
    form: GemmProblem,
    model: str,
) -> UsageError:
    problem, why = error.missing[0]
    tokens = ",".join(str(m) for m in dict.fromkeys(batch.m for batch in batches))
    listed = ",".join(map(str, patterns))
    dtype = "fp8" if form.dtype is DType.FP8 else "int8"
    remedy = "pass --search"
    # A search takes no GGUF file.
    if model != SMOLLM2 and not model.lower().endswith(GGUF):
        remedy += (
            f", or run slidesparse search --model {model} --dtype {dtype} "
            f"--scales {form.scales} --m {tokens} --patterns {listed}"
        )
    return UsageError(
        f"{len(error.missing)} of {error.total} GEMM times are missing on "
        f"{cache.fingerprint.name}, first {problem} (bucket {bucket_m(problem.m)}), which {why}; "
        f"{remedy}"
    )
