"""Reports: what a set of result files says, from the speedups down to where each figure is from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from slidesparse.bench.accuracy.record import AccuracyRecord
from slidesparse.bench.allocation.record import AllocationRecord
from slidesparse.bench.counters.record import CountersRecord
from slidesparse.bench.linear.record import LinearRecord
from slidesparse.bench.report import counters, pareto, roofline, rows, shares, speedup
from slidesparse.bench.report.curves import curves_of
from slidesparse.bench.report.sources import ended_early, machines_of, sources_section
from slidesparse.bench.report.view import Absent, Chart, Group, Report, Section
from slidesparse.bench.rows import ResultFile
from slidesparse.bench.search.record import SearchRecord
from slidesparse.bench.sweep.record import SweepRecord
from slidesparse.errors import UsageError


class Part(NamedTuple):
    """A section that a report may have.

    Args:
        title: of it.
        remedy: commands that make its data.
        make: it, or None without data.
    """

    title: str
    remedy: str
    make: Callable[[Sequence[ResultFile]], Section | None]


PARTS = (
    Part(speedup.TITLE, speedup.REMEDY, speedup.speedup_section),
    Part(roofline.TITLE, roofline.REMEDY, roofline.roofline_section),
    Part(shares.TITLE, shares.REMEDY, shares.shares_section),
    Part(counters.TITLE, counters.REMEDY, counters.counters_section),
    Part(pareto.TITLE, pareto.REMEDY, pareto.pareto_section),
)

_TOLD = (
    SweepRecord,
    LinearRecord,
    SearchRecord,
    AccuracyRecord,
    AllocationRecord,
    CountersRecord,
)
"""Records whose figures the parts show; all rows of other kinds are listed."""


def build_report(files: Sequence[ResultFile], title: str) -> Report:
    """All that a page shows.

    Args:
        files: in the order in which they are named at the end.
        title: of the page.

    Raises:
        UsageError: there is nothing to show.
    """
    sections, absent = [], []
    for part in PARTS:
        section = part.make(files)
        if section is None:
            absent.append(Absent(part.title, part.remedy))
        else:
            sections.append(section)
    rest = rows.rows_section([file for file in files if not _told(file)])
    if rest is not None:
        sections.append(rest)
    if not sections:
        names = ", ".join(file.path.name for file in files) or "no files"
        raise UsageError(
            f"nothing to show: {names} hold no figure; measure some first, for example with "
            "slidesparse bench linear --json linear.json"
        )
    return Report(
        title=title,
        summary=_summary(files),
        sections=_unique(sections),
        sources=sources_section(files),
        absent=tuple(absent),
        cautions=tuple(_cautions(files)),
    )


def _told(file: ResultFile) -> bool:
    """Whether some part shows the file's figures."""
    return isinstance(file.record, _TOLD) or bool(curves_of(file.record))


def _summary(files: Sequence[ResultFile]) -> str:
    figures = sum(len(file.rows) for file in files)
    dates = sorted(file.created[:10] for file in files if file.created[:1].isdigit())
    span = "" if not dates else f", dated {dates[0]}"
    if dates and dates[-1] != dates[0]:
        span += f" to {dates[-1]}"
    count = "1 result file" if len(files) == 1 else f"{len(files)} result files"
    return f"{figures:,} figures from {count}: {', '.join(machines_of(files))}{span}."


def _cautions(files: Sequence[ResultFile]) -> Iterator[str]:
    """What is not whole is called that before any of its figures."""
    early = [file.path.name for file in files if ended_early(file)]
    if early:
        yield f"Ended early, so some of what was asked for is missing: {', '.join(early)}."


def _unique(sections: Sequence[Section]) -> tuple[Section, ...]:
    """The sections with no two charts of one key: files in different folders may share a name."""
    seen: set[str] = set()

    def renamed(chart: Chart) -> Chart:
        # A name with a number may itself be another chart's.
        names = (f"{chart.key}-{count}" for count in itertools.count(2))
        key = next(key for key in itertools.chain((chart.key,), names) if key not in seen)
        seen.add(key)
        return replace(chart, key=key)

    def group(it: Group) -> Group:
        return replace(it, charts=tuple(renamed(chart) for chart in it.charts))

    return tuple(replace(it, groups=tuple(group(g) for g in it.groups)) for it in sections)
