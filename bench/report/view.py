"""What a report shows, before it is a page, Markdown or a picture: sections, charts and tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Args:
        text: as it is shown.
        sort: what rows are ordered by; the text itself if None.
    """

    text: str
    sort: float | None = None


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by each of its columns.

    Args:
        caption: what it shows, with its units.
        columns: their headings; the first one names the row.
        rows: as many cells each as there are columns.
        folded: whether the page shows it only when asked to, for long ones.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool = False

    def __post_init__(self) -> None:
        """Refuse a row that has not one cell per column."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells, {len(self.columns)} columns: {row}")

    @cached_property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns hold numbers, which are set flush right."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.columns)
        return tuple(any(cell.sort is not None for cell in column) for column in columns)


@dataclass(frozen=True)
class Look:
    """How a series looks: hue and mark both tell it, so that neither is needed.

    Args:
        hue: name of a colour of the palette.
        mark: "o", "s", "D", "^", "v", "P", "X" or "*".
    """

    hue: str
    mark: str


@dataclass(frozen=True)
class Mark:
    """One point of a series.

    Args:
        x: in the unit of its axis.
        y: likewise.
        hollow: whether it is not told apart from no difference.
        tip: what hovering over it says.
        error: half the height of its error bar, None without one.
        label: text beside it.
    """

    x: float
    y: float
    hollow: bool = False
    tip: str = ""
    error: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Args:
        name: in the legend.
        look: of line and marks.
        marks: in the order in which a line joins them.
        line: whether one does.
        bound: a level that its values cannot pass, drawn dotted; None without.
    """

    name: str
    look: Look
    marks: tuple[Mark, ...]
    line: bool = True
    bound: float | None = None


@dataclass(frozen=True)
class Guide:
    """A line that is no measurement: a ceiling, a frontier.

    Args:
        name: written beside it.
        points: x and y of its corners.
        at: where the name ends; the last corner if None.
        hue: of the palette.
        dashed: or drawn through.
        below: whether the name is below the line.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    at: tuple[float, float] | None = None
    hue: str = "ink"
    dashed: bool = False
    below: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis.

    Args:
        name: with the unit.
        scale: "linear", "log2" with a tick at every value, "log10", or "symlog": log10 with zero on
            it, and what is below the smallest value linear.
        level: where a thin line crosses the whole chart, None for nowhere.
        floor: the least value that is shown on the axis that goes up, None for what marks need.
    """

    name: str
    scale: Literal["linear", "log2", "log10", "symlog"] = "linear"
    level: float | None = None
    floor: float | None = None


@dataclass(frozen=True)
class LineChart:
    """Marks in a plane.

    Args:
        key: name of its file, without what follows the dot; unique in a report.
        title: above it.
        alt: what it shows, in words, for those who do not see it.
        x: across.
        y: up.
        series: in the order of the legend.
        guides: below the marks.
    """

    key: str
    title: str
    alt: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    guides: tuple[Guide, ...] = ()


@dataclass(frozen=True)
class Bar:
    """A bar in parts.

    Args:
        name: beside it.
        parts: lengths, one per part of the chart.
        tip: what hovering over it says.
    """

    name: str
    parts: tuple[float, ...]
    tip: str = ""


@dataclass(frozen=True)
class BarChart:
    """Bars from left to right, each in the same parts.

    Args:
        key: name of its file, unique in a report.
        title: above it.
        alt: what it shows, in words.
        axis: of the lengths.
        parts: name and look of each.
        bars: from top to bottom.
    """

    key: str
    title: str
    alt: str
    axis: Axis
    parts: tuple[tuple[str, Look], ...]
    bars: tuple[Bar, ...]


Chart = LineChart | BarChart


@dataclass(frozen=True)
class Group:
    """Charts and tables of one file, or of files that belong together.

    Args:
        title: its heading.
        notes: paragraphs below it: what was measured against what, and how to read it.
        charts: side by side where there is room.
        tables: below them.
        folded: whether the charts are shown only when asked to, for many that are not ours.
    """

    title: str
    notes: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Args:
        key: its anchor.
        title: its heading.
        about: one sentence on what it answers.
        groups: what it shows.
        notes: paragraphs on how to read all of them.
        findings: what can be read off it in one line each, for the top of the report.
        digest: the same as a table, None without.
    """

    key: str
    title: str
    about: str
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    digest: Table | None = None


@dataclass(frozen=True)
class Absent:
    """A section without data.

    Args:
        title: its heading, had there been any.
        remedy: the command that makes such data.
    """

    title: str
    remedy: str


@dataclass(frozen=True)
class Report:
    """All that a page shows.

    Args:
        title: of the page.
        summary: one line on the files and machines.
        sections: those that have data.
        sources: where it all comes from: files, machines, settings.
        absent: those that have none.
        cautions: what a reader has to know before any figure, one line each.
    """

    title: str
    summary: str
    sections: tuple[Section, ...]
    sources: Section
    absent: tuple[Absent, ...]
    cautions: tuple[str, ...] = ()

    @property
    def digests(self) -> tuple[Table, ...]:
        """What can be read off the sections, as tables."""
        return tuple(it.digest for it in self.sections if it.digest is not None)

    @property
    def findings(self) -> tuple[str, ...]:
        """The same in one line each."""
        return tuple(line for it in self.sections for line in it.findings)

    @property
    def charts(self) -> tuple[Chart, ...]:
        """Every chart, in order."""
        return tuple(c for s in self.sections for g in s.groups for c in g.charts)
