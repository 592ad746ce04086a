"""Labels beside marks, moved until they do not touch each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class _Spot(NamedTuple):
    """Where a label stands: points right of and above its mark, and what of it stands there."""

    right: float
    up: float
    across: str
    along: str


_SPOTS = (
    _Spot(5, 4, "left", "bottom"),
    _Spot(5, -4, "left", "top"),
    _Spot(-5, 4, "right", "bottom"),
    _Spot(-5, -4, "right", "top"),
    _Spot(0, 7, "center", "bottom"),
    _Spot(0, -7, "center", "top"),
    _Spot(7, 0, "left", "center"),
    _Spot(-7, 0, "right", "center"),
)
"""In the order in which they are tried. A label that finds no room is left out: farther off it
would seem to be another mark's, and hovering and the table say it."""

_MARK = 4.0
"""Half of a mark's width in points, with a little room around it."""


def spread(figure: Any, labels: Iterable[Any], marks: Iterable[tuple[float, float]]) -> None:
    """Move labels to where they touch neither each other nor a mark, if there is room.

    Args:
        figure: with one pair of axes, laid out already.
        labels: matplotlib's annotations, each beside its mark.
        marks: in the units of the axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    (place,) = figure.axes
    pixels = figure.dpi / 72.0
    half = _MARK * pixels
    taken = []
    for x, y in marks:
        across, along = place.transData.transform((x, y))
        taken.append(Bbox([[across - half, along - half], [across + half, along + half]]))
    renderer = FigureCanvasAgg(figure).get_renderer()
    left, right = place.get_window_extent(renderer).x0, figure.bbox.x1
    for label in labels:
        for spot in _SPOTS:
            label.set_position((spot.right, spot.up))
            label.set_horizontalalignment(spot.across)
            label.set_verticalalignment(spot.along)
            box = label.get_window_extent(renderer)
            # Left of the axes stand the ticks' labels.
            if left <= box.x0 and box.x1 <= right and not box.count_overlaps(taken):
                taken.append(box)
                break
        else:
            label.set_visible(False)
