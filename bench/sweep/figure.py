"""A figure of a sweep: speedup over M, one panel per (model, dtype, mode), a line per pattern."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slidesparse.bench.sweep.compare import Comparison
from slidesparse.bench.sweep.job import System
from slidesparse.bench.sweep.plan import Block
from slidesparse.errors import UsageError
from slidesparse.pattern import Pattern

if TYPE_CHECKING:
    from slidesparse.bench.sweep.record import SweepRecord

COLUMNS, WIDTH, HEIGHT = 2, 5.5, 3.8
"""Panels side by side, and inches of each."""


class Point(NamedTuple):
    """One cell of ours.

    Args:
        m: tokens or sequences of a step.
        speedup: over both runs of stock.
        clear: whether that is a difference.
    """

    m: int
    speedup: float
    clear: bool


class Line(NamedTuple):
    """Ours on one pattern.

    Args:
        pattern: of the weights.
        bound: the largest speedup that the arithmetic allows, N / (N - 1); 1 for dense.
        points: by M; cells without a ratio are left out.
    """

    pattern: Pattern
    bound: float
    points: tuple[Point, ...]


class Panel(NamedTuple):
    """What is compared with each other."""

    block: Block
    lines: tuple[Line, ...]


def panels(record: SweepRecord) -> tuple[Panel, ...]:
    """What the figure shows."""
    found = []
    for block in record.blocks:
        compared = Comparison(record, block)
        lines = []
        for variant in compared.variants:
            ratios = [(m, compared.ratio(variant, m)) for m in compared.ms]
            points = tuple(Point(m, it.value, it.clear) for m, it in ratios if it is not None)
            if variant.system is System.OURS and points:
                lines.append(Line(variant.pattern, float(variant.pattern.bound), points))
        if lines:
            found.append(Panel(block, tuple(lines)))
    return tuple(found)


def write_figure(record: SweepRecord, path: Path) -> None:
    """Draw speedup over M; hollow marks are within the spread and drift of stock.

    Args:
        record: of the sweep.
        path: of the file, whose name says which kind it is.

    Raises:
        UsageError: nothing can be compared, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    shown = panels(record)
    if not shown:
        raise UsageError(f"cannot draw {path}: no cell has a time for both stock and ours")
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(columns * WIDTH, rows * HEIGHT), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for place, panel in zip(places, shown, strict=False):
        _draw(place, panel, str(record.stage))
    for place in places[len(shown) :]:
        place.set_axis_off()
    figure.suptitle(
        f"{record.stage}, speedup over stock: {record.fingerprint.name}, engine {record.engine}"
    )
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def _draw(place: Any, panel: Panel, stage: str) -> None:
    place.axhline(1.0, color="0.4", linewidth=1)
    every = sorted({point.m for line in panel.lines for point in line.points})
    for index, line in enumerate(panel.lines):
        colour = f"C{index}"
        ms = [point.m for point in line.points]
        speedups = [point.speedup for point in line.points]
        bound = "" if line.pattern.dense else f" (bound {line.bound:.2f})"
        place.plot(ms, speedups, color=colour, label=f"{line.pattern}{bound}")
        _marks(place, line.points, colour)
        if not line.pattern.dense:
            place.axhline(line.bound, color=colour, linewidth=0.8, linestyle=":")
    place.set_xscale("log", base=2)
    place.set_xticks(every, [str(m) for m in every], rotation=30)
    place.set_xlabel("tokens of a step" if stage == "prefill" else "sequences of a step")
    place.set_ylabel("speedup")
    place.set_title(str(panel.block), fontsize="medium")
    place.grid(alpha=0.3)
    place.legend(fontsize="small")


def _marks(place: Any, points: Sequence[Point], colour: str) -> None:
    for point in points:
        fill = colour if point.clear else "white"
        place.plot([point.m], [point.speedup], "o", color=colour, markerfacecolor=fill)
