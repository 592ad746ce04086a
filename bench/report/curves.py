"""Speedup curves of the records that have speedups: sweeps, benchmarks of linears, searches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from slidesparse.bench.linear.record import LinearRecord
from slidesparse.bench.published.record import PublishedRecord
from slidesparse.bench.search.record import SearchRecord
from slidesparse.bench.search.totals import patterns_of, tokens_of, totals, totals_clear
from slidesparse.bench.sweep.compare import Comparison
from slidesparse.bench.sweep.figure import panels
from slidesparse.bench.sweep.job import System, Variant
from slidesparse.bench.sweep.record import SweepRecord
from slidesparse.candidate import Provenance
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType


class Point(NamedTuple):
    """The speedup at one M.

    Args:
        m: tokens of a prefill step or a GEMM, or sequences of a decode step.
        value: the dense time over ours.
        clear: whether that is a difference: more than the spreads.
        dense_us: microseconds of the dense way.
        ours_us: microseconds of ours.
    """

    m: int
    value: float
    clear: bool
    dense_us: float
    ours_us: float


class Curve(NamedTuple):
    """The speedups of one pattern, by M; ours on dense weights is a pattern, too."""

    pattern: Pattern
    points: tuple[Point, ...]


class Curves(NamedTuple):
    """The curves that are compared with each other.

    Args:
        what: was timed: "prefill step", "decode step", "whole linears", "GEMM only", or one of
            the steps after the word "published".
        model: whose layers.
        dtype: of the operands.
        detail: mode of a sweep, output and scales of a GEMM.
        against: the dense way.
        curves: one per pattern.
        provenance: measured, published by others, or of a search in whole or in part cached or
            bundled.
    """

    what: str
    model: str
    dtype: DType
    detail: str
    against: str
    curves: tuple[Curve, ...]
    provenance: Provenance = Provenance.MEASURED

    @property
    def title(self) -> str:
        """As a heading names it."""
        return " ".join(part for part in (self.model, str(self.dtype), self.detail) if part)

    def at(self, pattern: Pattern, m: int) -> Point | None:
        """One point, None if it was not measured."""
        points = (p for c in self.curves if c.pattern == pattern for p in c.points)
        return next((point for point in points if point.m == m), None)

    @property
    def ms(self) -> tuple[int, ...]:
        """Every M of any curve, ascending."""
        return tuple(sorted({point.m for curve in self.curves for point in curve.points}))


def curves_of(record: Any) -> tuple[Curves, ...]:
    """The curves of a record of any kind; none where its kind has no speedups or none was measured.

    Args:
        record: as its kind's reader gives it.
    """
    if isinstance(record, SweepRecord):
        found = _sweeps(record)
    elif isinstance(record, LinearRecord):
        found = _linears(record)
    elif isinstance(record, SearchRecord):
        found = _search(record)
    elif isinstance(record, PublishedRecord):
        found = _published(record)
    else:
        return ()
    return tuple(it for it in found if it.curves)


def _sweeps(record: SweepRecord) -> Iterator[Curves]:
    for panel in panels(record):
        compared = Comparison(record, panel.block)
        yield Curves(
            f"{record.stage} step",
            panel.block.model,
            panel.block.dtype,
            str(panel.block.mode),
            "stock vLLM" if record.engine == "vllm" else "stock torch",
            _curves(
                [line.pattern for line in panel.lines], compared.ms, partial(_sweep_point, compared)
            ),
        )


def _sweep_point(compared: Comparison, pattern: Pattern, m: int) -> Point | None:
    variant = Variant(System.OURS, pattern)
    ratio, dense = compared.ratio(variant, m), compared.baseline(m).us
    ours = compared.cell(variant, m)
    if ratio is None or dense is None or ours is None or ours.median_us is None:
        return None
    return Point(m, ratio.value, ratio.clear, dense, ours.median_us)


def _linears(record: LinearRecord) -> Iterator[Curves]:
    for dtype in record.dtypes:
        ms = {row.tokens for row in record.rows if row.problem.dtype is dtype}
        yield Curves(
            "whole linears",
            record.model,
            dtype,
            "",
            "torch's fastest way",
            _curves(record.patterns, ms, partial(_linear_point, record, dtype)),
        )


def _linear_point(record: LinearRecord, dtype: DType, pattern: Pattern, m: int) -> Point | None:
    both = record.totals(dtype, m, pattern)
    if both is None:
        return None
    theirs, ours = both
    rows = record.of(dtype, m, pattern)
    # Spreads of a sum are added: the worst case, since drifts of one run hang together.
    spreads = (
        sum(row.layer.count * row.torch.spread_us for row in rows if row.torch),
        sum(row.layer.count * row.ours.spread_us for row in rows if row.ours),
    )
    return Point(m, theirs / ours, abs(theirs - ours) > max(spreads) / 2, theirs, ours)


def _search(record: SearchRecord) -> Iterator[Curves]:
    if not record.layers:
        return
    first = record.layers[0].problem

    yield Curves(
        "GEMM only",
        record.model,
        first.dtype,
        f"to {first.out}, scales {first.scales}",
        "the best dense GEMM",
        _curves(patterns_of(record), tokens_of(record), partial(_search_point, record)),
        _search_provenance(record),
    )


def _search_provenance(record: SearchRecord) -> Provenance:
    """The least of its results': measured only if every one was, in that run."""
    held = {record.results[it.problem][1] for it in record.layers if it.problem in record.results}
    order = (Provenance.BUNDLED, Provenance.CACHED)
    return next((it for it in order if it in held), Provenance.MEASURED)


def _search_point(record: SearchRecord, pattern: Pattern, m: int) -> Point | None:
    both = totals(record, m, pattern)
    if both is None:
        return None
    dense, sparse = both
    return Point(m, dense / sparse, totals_clear(record, m, pattern), dense, sparse)


def _published(record: PublishedRecord) -> Iterator[Curves]:
    for stage, model, dtype in dict.fromkeys((it.stage, it.model, it.dtype) for it in record.steps):
        rates = {
            (it.pattern, it.m): it.tokens_per_s
            for it in record.steps
            if (it.stage, it.model, it.dtype) == (stage, model, dtype)
        }
        yield Curves(
            f"published {stage} step",
            model,
            dtype,
            "",
            "dense",
            _curves(
                dict.fromkeys(pattern for pattern, _ in rates if not pattern.dense),
                {m for _, m in rates},
                partial(_published_point, rates),
            ),
            Provenance.PUBLISHED,
        )


def _published_point(
    rates: Mapping[tuple[Pattern, int], float], pattern: Pattern, m: int
) -> Point | None:
    if (DENSE, m) not in rates or (pattern, m) not in rates:
        return None
    dense_us, ours_us = 1e6 * m / rates[DENSE, m], 1e6 * m / rates[pattern, m]
    return Point(m, dense_us / ours_us, True, dense_us, ours_us)


def _curves(
    patterns: Iterable[Pattern], ms: Iterable[int], point: Callable[[Pattern, int], Point | None]
) -> tuple[Curve, ...]:
    every = sorted(ms)
    found = []
    for pattern in patterns:
        points = tuple(it for it in (point(pattern, m) for m in every) if it is not None)
        if points:
            found.append(Curve(pattern, points))
    return tuple(found)
