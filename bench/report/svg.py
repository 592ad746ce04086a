"""What matplotlib drew as an element of a page: in its colours and font, named, with tool tips."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree as Xml

from slidesparse.bench.report.view import BarChart, Chart, LineChart

_REFERENCES = ("href", "clip-path")
_FONT = "'DejaVu Sans'"
_ID = re.compile(r"^(marks|bar)-")
_LONG = re.compile(r"(\d\.\d\d)\d+")


def marks_id(series: int, hollow: bool) -> str:
    """The id of what draws the filled or the hollow marks of a series."""
    return f"marks-{series}-{'hollow' if hollow else 'full'}"


def bar_id(part: int, bar: int) -> str:
    """The id of what draws one part of one bar."""
    return f"bar-{part}-{bar}"


def for_page(drawn: str, chart: Chart, palette: Mapping[str, str]) -> str:
    """An <svg> element for a page.

    Args:
        drawn: an SVG file of matplotlib.
        chart: that it shows.
        palette: colours that it was drawn with, by the names of the page's variables.
    """
    root = Xml.fromstring(drawn)
    for element in root.iter():
        # A page needs no namespaces.
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: v for name, v in element.attrib.items()}
    _drop(root, "metadata", "style")
    _add_tips(root, chart)
    _shorten(root)
    # Keys are long and ids are many, so these begin with a digest.
    prefix = "f-" + hashlib.sha256(chart.key.encode()).hexdigest()[:10]
    for element in root.iter():
        _adopt(element, prefix, palette)
    ids = [f"{chart.key}-{name}" for name in ("name", "alt")]
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": " ".join(ids),
    }
    for index, (tag, text) in enumerate((("title", chart.title), ("desc", chart.alt))):
        element = Xml.Element(tag, {"id": ids[index]})
        element.text = text
        root.insert(index, element)
    return Xml.tostring(root, encoding="unicode")


def _drop(root: Xml.Element, *tags: str) -> None:
    """Leave out what is about the file, or would apply to the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in tags:
                parent.remove(child)


def _shorten(root: Xml.Element) -> None:
    """Leave out what changes nothing: blanks, ids that nothing asks for, turns by no angle."""
    used = "".join(element.get(name, "") for element in root.iter() for name in _REFERENCES)
    for element in root.iter():
        if element.tag not in ("text", "title"):
            element.text = None
        element.tail = None
        if _ID.search(name := element.get("id", "")) is None and name not in used:
            del element.attrib["id"]
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        for name in ("d", "x", "y"):
            if name in element.attrib:
                element.set(name, _LONG.sub(r"\1", " ".join(element.attrib[name].split())))
    for parent in root.iter():
        _unwrap(parent)


def _unwrap(parent: Xml.Element) -> None:
    """Replace groups without any attribute by what they hold."""
    while any(child.tag == "g" and not child.attrib for child in parent):
        held = [
            list(child) if child.tag == "g" and not child.attrib else [child] for child in parent
        ]
        parent[:] = itertools.chain.from_iterable(held)


def _adopt(element: Xml.Element, key: str, palette: Mapping[str, str]) -> None:
    """Ids become the chart's own, colours and the font the page's."""
    if "id" in element.attrib:
        element.set("id", f"{key}-{element.attrib['id']}")
    for name in _REFERENCES:
        if name in element.attrib:
            element.set(name, element.attrib[name].replace("#", f"#{key}-"))
    style = element.attrib.get("style")
    if style is None:
        return
    for name, colour in palette.items():
        style = style.replace(colour, f"var(--{name})")
    parts = [part.strip() for part in style.split(";")]
    element.set("style", "; ".join(_with_font(part) for part in parts if part))


def _with_font(part: str) -> str:
    return part[: part.index(_FONT)] + "var(--font)" if _FONT in part else part


def _add_tips(root: Xml.Element, chart: Chart) -> None:
    """Give each mark and bar a title, which a browser shows where the mouse rests."""
    groups = {element.get("id"): element for element in root.iter("g")}
    for name, tips in _tips(chart):
        group = groups.get(name)
        if group is None:
            continue
        # Marks are uses of one shape, in the order in which they were drawn; a bar is a path.
        targets = list(group.iter("use")) or [group]
        for target, tip in zip(targets, tips, strict=False):
            title = Xml.Element("title")
            title.text = tip
            target.insert(0, title)


def _tips(chart: Chart) -> Iterator[tuple[str, list[str]]]:
    if isinstance(chart, BarChart):
        for part, bar in itertools.product(range(len(chart.parts)), range(len(chart.bars))):
            yield bar_id(part, bar), [chart.bars[bar].tip]
        return
    assert isinstance(chart, LineChart)
    for index, series in enumerate(chart.series):
        for hollow in (False, True):
            tips = [mark.tip for mark in series.marks if mark.hollow is hollow]
            yield marks_id(index, hollow), tips
