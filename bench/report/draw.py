"""Charts as SVG for a page, in whose colours they are drawn, and as PNG files."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slidesparse.bench.report.format import cleaned
from slidesparse.bench.report.labels import spread
from slidesparse.bench.report.svg import bar_id, for_page, marks_id
from slidesparse.bench.report.view import BarChart, Chart, LineChart, Mark, Series
from slidesparse.errors import UsageError

WIDTH, HEIGHT = 4.5, 3.3
"""Inches of a chart of marks; 72 units of its SVG each."""

BAR_HEIGHT, BAR_REST = 0.34, 1.35
"""Inches of one bar, and of all around the bars."""

PALETTE = {
    "ink": "#1b1f24",
    "muted": "#59636e",
    "grid": "#d9dee3",
    "paper": "#ffffff",
    "blue": "#0072b2",
    "vermillion": "#c44e00",
    "green": "#00805c",
    "purple": "#a8457f",
    "orange": "#9a6700",
    "sky": "#2a7fb8",
}
"""On white: the hues of Okabe and Ito (2008), darkened where white would swallow them."""

LETTERS = 64
"""That fit below a chart side by side."""

TITLE_LETTERS = 52
"""Of one line above a PNG file's chart."""

TITLE_LINE = 0.2
"""Inches of one such line."""

DOTS_PER_INCH = 160

_FONT = ["DejaVu Sans", "sans-serif"]


class Drawing:
    """A chart as matplotlib drew it, once for both forms.

    Args:
        chart: to draw.
    """

    def __init__(self, chart: Chart) -> None:
        """Draw it."""
        self.chart = chart
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        with _settings():
            self._figure, labels = _figure(chart)
            # Once for both forms: saving would do it, and draw everything once more, for each.
            ConstrainedLayoutEngine().execute(self._figure)
            if isinstance(chart, LineChart) and labels:
                marks = [(mark.x, mark.y) for it in chart.series for mark in it.marks]
                spread(self._figure, labels, marks)

    def svg(self) -> str:
        """As an element of an HTML page.

        Its colours are `var(--blue)` and so on, its font is `var(--font)`, both of the page. It
        names itself to screen readers, and no two charts of different keys share an id.
        """
        with _settings(), io.StringIO() as file:
            self._figure.savefig(file, format="svg", metadata={"Date": None})
            return for_page(file.getvalue(), self.chart, PALETTE)

    def write_png(self, path: Path) -> None:
        """Write it into a file, dark on white, with its title in as many lines as that takes.

        Raises:
            UsageError: the file cannot be written.
        """
        from matplotlib.transforms import Bbox

        lines = textwrap.wrap(cleaned(self.chart.title), TITLE_LETTERS) or [""]
        width, height = self._figure.get_size_inches()
        # The title is added above the figure, which stays as it is in the page.
        whole = Bbox([[0.0, 0.0], [width, height + TITLE_LINE * (len(lines) + 0.5)]])
        with _settings():
            title = self._figure.text(
                *(0.5, 1.0, "\n".join(lines)),
                ha="center",
                va="bottom",
                fontsize=10.5,
                color=PALETTE["ink"],
            )
            try:
                self._figure.savefig(path, format="png", dpi=DOTS_PER_INCH, bbox_inches=whole)
            except OSError as error:
                raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
            finally:
                title.remove()


@contextmanager
def _settings() -> Iterator[None]:
    import matplotlib as mpl

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "slidesparse",
        "font.family": "sans-serif",
        "font.sans-serif": _FONT,
        "font.size": 10.0,
        "text.parse_math": False,
        "axes.unicode_minus": False,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        # A name in a script that the font lacks: the page's own fonts have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


def _figure(chart: Chart) -> tuple[Any, list[Any]]:
    """The figure, and the labels of its marks."""
    from matplotlib.figure import Figure

    bars = isinstance(chart, BarChart)
    height = BAR_REST + BAR_HEIGHT * len(chart.bars) if isinstance(chart, BarChart) else HEIGHT
    figure = Figure(figsize=(WIDTH, height), facecolor=PALETTE["paper"])
    place = figure.subplots()
    place.set_facecolor(PALETTE["paper"])
    place.tick_params(colors=PALETTE["muted"], labelcolor=PALETTE["ink"], length=3)
    for side, spine in place.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(PALETTE["muted"])
    place.grid(axis="x" if bars else "both", color=PALETTE["grid"], linewidth=0.6)
    place.set_axisbelow(True)
    labels = []
    if isinstance(chart, BarChart):
        _draw_bars(place, chart)
    else:
        labels = _draw_lines(place, chart)
    handles, names = place.get_legend_handles_labels()
    if names:
        figure.legend(
            handles,
            names,
            loc="outside lower center",
            ncols=_columns(names),
            frameon=False,
            labelcolor=PALETTE["ink"],
            handlelength=1.8,
            columnspacing=1.2,
        )
    return figure, labels


def _columns(names: Sequence[str]) -> int:
    """Of the legend: all names in one row if they fit, else three."""
    # A handle and the space around it are as wide as some eight letters.
    return len(names) if sum(len(name) + 8 for name in names) <= LETTERS else 3


def _draw_lines(place: Any, chart: LineChart) -> list[Any]:
    for guide in chart.guides:
        xs, ys = zip(*guide.points, strict=True)
        style = (0, (4, 3)) if guide.dashed else "-"
        place.plot(xs, ys, color=PALETTE[guide.hue], linewidth=1.1, linestyle=style, zorder=1.5)
        if guide.name:
            place.annotate(
                guide.name,
                guide.at or guide.points[-1],
                xytext=(-3, -3 if guide.below else 3),
                textcoords="offset points",
                ha="right",
                va="top" if guide.below else "bottom",
                fontsize=9,
                color=PALETTE[guide.hue],
            )
    if chart.y.level is not None:
        place.axhline(chart.y.level, color=PALETTE["muted"], linewidth=1.0, zorder=1)
    labels = []
    for index, series in enumerate(chart.series):
        labels += _draw_series(place, series, index)
    _bound_names(place, chart)
    _scales(place, chart)
    for axis, name in ((place.xaxis, chart.x.name), (place.yaxis, chart.y.name)):
        axis.set_label_text(name, color=PALETTE["ink"])
    return labels


def _draw_series(place: Any, series: Series, index: int) -> list[Any]:
    colour, look = PALETTE[series.look.hue], series.look
    if series.bound is not None:
        place.axhline(series.bound, color=colour, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1.2)
    size = 5.0 if series.line or len(series.marks) < 20 else 3.2
    style = {"color": colour, "marker": look.mark, "markersize": size}
    width = 1.5 if series.line else 0
    # Only the legend shows a line with marks: each is drawn on its own, the marks above all lines.
    place.plot([], [], linewidth=width, label=cleaned(series.name), **style)
    if series.line:
        xs, ys = [mark.x for mark in series.marks], [mark.y for mark in series.marks]
        place.plot(xs, ys, color=colour, linewidth=width, zorder=2)
    labels = [_draw_beside(place, mark, colour) for mark in series.marks]
    for hollow in (False, True):
        these = [mark for mark in series.marks if mark.hollow is hollow]
        place.plot(
            [mark.x for mark in these],
            [mark.y for mark in these],
            linewidth=0,
            markerfacecolor=PALETTE["paper"] if hollow else colour,
            markeredgewidth=1.1,
            zorder=3,
            gid=marks_id(index, hollow),
            **style,
        )
    return [label for label in labels if label is not None]


def _draw_beside(place: Any, mark: Mark, colour: str) -> Any:
    """The error bar of a mark, and its label, which is returned."""
    if mark.error:
        ends = [mark.y - mark.error, mark.y + mark.error]
        place.plot([mark.x, mark.x], ends, color=colour, linewidth=1.0, zorder=2.5)
    if not mark.label:
        return None
    return place.annotate(
        cleaned(mark.label),
        (mark.x, mark.y),
        xytext=(5, 4),
        textcoords="offset points",
        fontsize=9,
        color=PALETTE["ink"],
    )


def _bound_names(place: Any, chart: LineChart) -> None:
    """Write each bound at the right end of its line."""
    for series in chart.series:
        if series.bound is not None:
            place.annotate(
                f"{series.bound:.2f}",
                (1, series.bound),
                xycoords=("axes fraction", "data"),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=PALETTE[series.look.hue],
            )


def _scales(place: Any, chart: LineChart) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    for axis, told, values in (
        (place.xaxis, chart.x, [mark.x for series in chart.series for mark in series.marks]),
        (place.yaxis, chart.y, [mark.y for series in chart.series for mark in series.marks]),
    ):
        scale = place.set_xscale if axis is place.xaxis else place.set_yscale
        if told.scale == "linear":
            axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
            continue
        if told.scale == "symlog":
            _symlog(axis, scale, values)
            continue
        scale("log", base=2 if told.scale == "log2" else 10)
        axis.set_minor_locator(NullLocator())
        if told.scale == "log2":
            ticks = sorted(set(values))
            # More would touch each other on a phone.
            ticks = ticks[:: math.ceil(len(ticks) / 9)]
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
            if len(ticks) > 6 and axis is place.xaxis:
                place.tick_params(axis="x", labelrotation=30)
        else:
            # Within a decade or two, powers of ten alone would be one tick or none.
            least, most = axis.get_view_interval()
            near = most < 60 * least
            axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if near else (1,)))
            axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    if chart.y.floor is not None:
        place.set_ylim(bottom=chart.y.floor)


def _symlog(axis: Any, scale: Any, values: Sequence[float]) -> None:
    """Decades from the smallest value on, and zero."""
    from matplotlib.ticker import NullLocator

    least = min((abs(value) for value in values if value), default=1.0)
    start = 10.0 ** math.floor(math.log10(least))
    # The part around zero is half as high as a decade.
    scale("symlog", linthresh=start, linscale=0.5)
    decades = math.ceil(math.log10(max(map(abs, values), default=1.0) / start))
    ticks = [0.0, *(start * 10.0**power for power in range(decades + 1))]
    if min(values, default=0.0) < 0:
        ticks.insert(0, -start)
    axis.set_ticks(ticks, [f"{tick:.10g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())


def _draw_bars(place: Any, chart: BarChart) -> None:
    names = [cleaned(bar.name) for bar in chart.bars]
    places = range(len(names))
    starts = [0.0] * len(names)
    for index, (name, look) in enumerate(chart.parts):
        lengths = [bar.parts[index] for bar in chart.bars]
        drawn = place.barh(
            places,
            lengths,
            left=starts,
            height=0.72,
            color=PALETTE[look.hue],
            edgecolor=PALETTE["paper"],
            linewidth=0.8,
            label=name,
        )
        for row, patch in enumerate(drawn):
            patch.set_gid(bar_id(index, row))
        starts = [start + length for start, length in zip(starts, lengths, strict=True)]
    place.set_yticks(places, names)
    place.invert_yaxis()
    place.set_xlabel(chart.axis.name, color=PALETTE["ink"])
    if chart.axis.level is not None:
        place.axvline(chart.axis.level, color=PALETTE["muted"], linewidth=1.0)
