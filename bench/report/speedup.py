"""The report's section on speedup over M: a chart and a table for each thing that was timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from slidesparse.bench.report.curves import Curve, curves_of
from slidesparse.bench.report.format import number, pattern_look, slug
from slidesparse.bench.report.speedup_tables import (
    Told,
    digest_table,
    every_table,
    name_of,
    totals_table,
)
from slidesparse.bench.report.view import Axis, Chart, Group, LineChart, Mark, Section, Series
from slidesparse.bench.rows import ResultFile
from slidesparse.candidate import Provenance

TITLE = "Speedup over M"
REMEDY = "slidesparse bench prefill, slidesparse bench linear or slidesparse search"


class Kind(NamedTuple):
    """One thing that was timed.

    Args:
        title: its heading.
        about: what is compared.
        dense_time: what the time of the dense way is.
    """

    title: str
    about: str
    dense_time: str


_STOCK = "the mean of both runs of the stock engine"
_EACH = "the mean over the patterns' runs"
_OTHERS = "theirs"

_KINDS = {
    "prefill step": Kind(
        "Whole model, prefill",
        "A prefill step of M tokens of the served model, over both runs of the stock engine.",
        _STOCK,
    ),
    "decode step": Kind(
        "Whole model, decode",
        "A decode step of M sequences of the served model, over both runs of the stock engine.",
        _STOCK,
    ),
    "whole linears": Kind(
        "Whole linears",
        "Quantisation, GEMM, scales and bias of all linears of the model together, ours over the "
        "fastest of torch's ways on the same pruned weights.",
        _EACH,
    ),
    "GEMM only": Kind(
        "GEMM only",
        "The matrix products of all linears of the model, without what is around them: the best "
        "sparse algorithm over the best dense one, in one race on the same pruned weights.",
        _EACH,
    ),
    "published prefill step": Kind(
        "Whole model, prefill, as others published it",
        "A prefill step of M tokens over the same engine on dense weights. Not measured by this "
        "project; spreads were not published, so every difference counts as one.",
        _OTHERS,
    ),
    "published decode step": Kind(
        "Whole model, decode, as others published it",
        "A decode step of M sequences over the same engine on dense weights. Not measured by this "
        "project; spreads were not published, so every difference counts as one.",
        _OTHERS,
    ),
}
"""By what was timed."""

HOW_TO_READ = (
    "Above 1 ours is faster. Dotted lines are each pattern's bound N/(N-1), the most that its "
    "zeros can save over the same kernels; over another library more can be gained. Hollow marks, "
    "and ~ in tables: the difference is within the spread, so there is none."
)


def speedup_section(files: Sequence[ResultFile]) -> Section | None:
    """What sweeps, benchmarks of linears and searches say; None if there is none of them."""
    every = [Told(file, it) for file in files for it in curves_of(file.record)]
    if not every:
        return None
    every.sort(key=lambda told: list(_KINDS).index(told.curves.what))
    groups = []
    for what, kind in _KINDS.items():
        these = [told for told in every if told.curves.what == what]
        if these:
            charts = tuple(_chart(told, _heading(told, these)) for told in these)
            folded = (table for told in these if (table := every_table(told)) is not None)
            tables = (totals_table(these, kind.dense_time), *folded)
            theirs = all(told.curves.provenance is Provenance.PUBLISHED for told in these)
            groups.append(Group(kind.title, (kind.about,), charts, tables, folded=theirs))
    return Section(
        "speedup",
        TITLE,
        "How much faster each pattern makes a step, a linear or a GEMM with M rows than a dense "
        "way on the same machine; each heading says which.",
        tuple(groups),
        (HOW_TO_READ,),
        digest=digest_table(every),
    )


def _heading(told: Told, these: Sequence[Told]) -> str:
    """Of a chart, with its file where another one's would be the same."""

    def plain(it: Told) -> str:
        return f"{it.curves.what}, {it.curves.title}, {it.file.machine}"

    alone = sum(plain(it) == plain(told) for it in these) == 1
    return plain(told) if alone else f"{plain(told)}, {told.file.path.name}"


def _chart(told: Told, heading: str) -> Chart:
    file, it = told
    series = []
    for curve in it.curves:
        bound = None if curve.pattern.dense else float(curve.pattern.bound)
        marks = tuple(
            Mark(
                point.m,
                point.value,
                not point.clear,
                f"{curve.pattern}, M={point.m}: {point.value:.2f}x, {_us(point.ours_us)} against "
                f"{_us(point.dense_us)}",
            )
            for point in curve.points
        )
        series.append(
            Series(name_of(curve.pattern), pattern_look(curve.pattern), marks, bound=bound)
        )
    return LineChart(
        slug(f"speedup {file.path.stem} {it.what} {it.title}"),
        heading,
        f"Speedup of {it.what} over {it.against} against M for {it.title} on {file.machine}. "
        + " ".join(_in_words(curve) for curve in it.curves),
        Axis("sequences (M)" if it.what.endswith("decode step") else "tokens (M)", "log2"),
        Axis(f"speedup over {it.against}", level=1.0),
        tuple(series),
    )


def _in_words(curve: Curve) -> str:
    first, last = curve.points[0], curve.points[-1]
    name = "Ours on dense weights" if curve.pattern.dense else str(curve.pattern)
    bound = "" if curve.pattern.dense else f", bound {float(curve.pattern.bound):.2f}"
    if first == last:
        return f"{name}: {first.value:.2f} at M={first.m}{bound}."
    return f"{name}: {first.value:.2f} at M={first.m}, {last.value:.2f} at M={last.m}{bound}."


def _us(microseconds: float) -> str:
    return f"{number(microseconds)} us"
