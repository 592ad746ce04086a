"""Labels of marks: beside them, touching neither each other nor another mark."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree as Xml

import pytest

from slidesparse.bench.report.view import Axis, LineChart, Look, Mark, Series

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg

from slidesparse.bench.report.draw import Drawing


def chart_of(*marks: tuple[float, float], scale: str = "linear") -> LineChart:
    drawn = tuple(Mark(x, y, label=f"mark {index}") for index, (x, y) in enumerate(marks))
    series = Series("s", Look("blue", "o"), drawn, line=False)
    return LineChart("labels", "t", "a", Axis("x"), Axis("y", scale), (series,))  # type: ignore[arg-type]


def shown(chart: LineChart) -> dict[str, object]:
    """The boxes of the labels that are to be seen, by their text."""
    figure = Drawing(chart)._figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text for text in figure.axes[0].texts if text.get_visible()]
    return {text.get_text(): text.get_window_extent(renderer) for text in texts}


def test_neighbours_do_not_write_over_each_other() -> None:
    # Three marks as close as SparseGPT, Wanda and magnitude are at 8:10, far from a fourth.
    boxes = shown(chart_of((1.0, 1.0), (1.0, 1.1), (1.0, 1.2), (2.0, 3.0)))
    assert set(boxes) == {"mark 0", "mark 1", "mark 2", "mark 3"}
    for one, other in itertools.combinations(boxes.values(), 2):
        assert not one.overlaps(other), boxes


def test_a_label_without_room_is_left_out_and_the_first_stays() -> None:
    many = [(1.0 + index / 1000, 1.0 + index / 1000) for index in range(30)]
    boxes = shown(chart_of(*many, (2.0, 3.0)))
    assert "mark 0" in boxes
    assert 2 < len(boxes) < 31


def test_labels_stay_in_the_figure_and_off_the_ticks() -> None:
    drawing = Drawing(chart_of((0.0, 0.0), (1.0, 1.0), (0.0, 0.02), (1.0, 0.98)))
    renderer = FigureCanvasAgg(drawing._figure).get_renderer()
    (place,) = drawing._figure.axes
    left, right = place.get_window_extent(renderer).x0, drawing._figure.bbox.x1
    for text in place.texts:
        box = text.get_window_extent(renderer)
        assert left <= box.x0 < box.x1 <= right


@pytest.mark.parametrize("losses", [(0.0, 0.02, 4.3), (-0.01, 0.5, 20.0), (0.0, 0.0, 0.3)])
def test_decades_with_zero_have_labels_and_keep_what_is_small_apart(
    losses: tuple[float, ...],
) -> None:
    drawing = Drawing(chart_of(*enumerate(losses, start=1), scale="symlog"))  # type: ignore[arg-type]
    (place,) = drawing._figure.axes
    heights = [place.transData.transform((1, loss))[1] for loss in sorted(set(losses))]
    whole = place.get_window_extent().height
    for lower, upper in itertools.pairwise(heights):
        assert upper - lower > 0.04 * whole
    said = [it.text for it in Xml.fromstring(drawing.svg()).iter() if it.text]
    assert "0" in said
    assert any(text in said for text in ("0.1", "1", "10"))
