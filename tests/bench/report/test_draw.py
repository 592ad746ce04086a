"""Charts: what is drawn has every mark, speaks for itself, and takes the page's colours."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from slidesparse.bench.report.format import cleaned
from slidesparse.bench.report.view import (
    Axis,
    Bar,
    BarChart,
    Chart,
    Guide,
    LineChart,
    Look,
    Mark,
    Series,
)
from slidesparse.errors import UsageError

pytest.importorskip("matplotlib")
from slidesparse.bench.report.draw import PALETTE, Drawing

PNG = b"\x89PNG\r\n\x1a\n"
BLUE, GREEN = Look("blue", "o"), Look("green", "D")
HOSTILE = 'a "quoted" <script>alert(1)</script> & $x^2$'

LINES = LineChart(
    "lines-1",
    f"title {HOSTILE}",
    f"words {HOSTILE}",
    Axis("tokens (M)", "log2"),
    Axis("speedup", level=1.0),
    (
        Series(
            f"6:8 {HOSTILE}",
            BLUE,
            (
                Mark(16, 0.9, tip="first"),
                Mark(64, 1.0, hollow=True, tip="second"),
                Mark(4096, 1.25, tip=f"third {HOSTILE}", error=0.1, label="here"),
            ),
            bound=4 / 3,
        ),
        Series("alone", GREEN, (Mark(64, 1.1, tip="fourth"),), line=False),
    ),
    (Guide("a ceiling", ((16, 1.4), (4096, 1.4)), dashed=True),),
)
BARS = BarChart(
    "bars-1",
    "bars",
    "two bars in two parts",
    Axis("time over stock's", level=1.0),
    (("gemm", BLUE), ("other", GREEN)),
    (Bar("stock", (0.75, 0.25), "stock: 1.00"), Bar("ours 6:8", (0.5, 0.25), "ours: 0.75")),
)


def drawn(chart: Chart) -> Xml.Element:
    return Xml.fromstring(Drawing(chart).svg())


def texts(element: Xml.Element, tag: str) -> list[str]:
    return [it.text or "" for it in element.iter(tag)]


def highest(svg: Xml.Element) -> float:
    """Where the topmost text is, from above."""
    return min(float(text.attrib["y"]) for text in svg.iter("text"))


def marks(svg: Xml.Element) -> dict[str | None, Xml.Element]:
    """The marks by their tips."""
    return {it.findtext("title"): it for it in svg.iter("use") if it.find("title") is not None}


def test_marks_have_their_tips() -> None:
    assert set(marks(drawn(LINES))) == {"first", "second", f"third {HOSTILE}", "fourth"}


def test_marks_are_where_their_values_are() -> None:
    uses = [use for use in drawn(LINES).iter("use") if use.find("title") is not None]
    places = {
        use.findtext("title"): (float(use.attrib["x"]), float(use.attrib["y"])) for use in uses
    }
    first, second, fourth = places["first"], places["second"], places["fourth"]
    third = places[f"third {HOSTILE}"]
    # M = 16, 64, 4096 on a log axis: two and six doublings apart. Up is smaller in SVG.
    assert (third[0] - second[0]) / (second[0] - first[0]) == pytest.approx(3, rel=1e-3)
    assert (first[1] - third[1]) / (first[1] - second[1]) == pytest.approx(3.5, rel=1e-3)
    assert fourth[0] == second[0]


def test_a_hollow_mark_is_filled_with_paper() -> None:
    found = marks(drawn(LINES))
    assert found["second"].attrib["style"].startswith("fill: var(--paper); stroke: var(--blue)")
    assert found["first"].attrib["style"].startswith("fill: var(--blue); stroke: var(--blue)")


def test_bars_have_their_tips_and_lengths() -> None:
    groups = {(it.get("id") or "")[-7:]: it for it in drawn(BARS).iter("g")}
    assert groups["bar-0-1"].findtext("title") == "ours: 0.75"
    widths = []
    for name in ("bar-0-0", "bar-0-1"):
        path = groups[name].find("path")
        assert path is not None
        xs = [float(x) for x, _ in re.findall(r"([\d.]+) ([\d.]+)", path.attrib["d"])]
        widths.append(max(xs) - min(xs))
    assert widths[1] / widths[0] == pytest.approx(0.5 / 0.75, rel=1e-3)


@pytest.mark.parametrize("chart", [LINES, BARS], ids=["lines", "bars"])
def test_it_speaks_for_itself(chart: Chart) -> None:
    svg = drawn(chart)
    assert svg.attrib["role"] == "img"
    named = svg.attrib["aria-labelledby"].split()
    found = {it.get("id"): it.text for it in svg if it.tag in ("title", "desc")}
    assert [found[name] for name in named] == [chart.title, chart.alt]


@pytest.mark.parametrize("chart", [LINES, BARS], ids=["lines", "bars"])
def test_colours_and_fonts_are_the_pages(chart: Chart) -> None:
    text = Drawing(chart).svg()
    assert not re.findall(r"#[0-9a-f]{6}", text)
    assert "DejaVu" not in text
    assert set(re.findall(r"var\(--([a-z]+)\)", text)) <= {*PALETTE, "font"}
    assert "<style" not in text
    assert "<metadata" not in text


def test_ids_are_the_charts_own_and_references_lead_somewhere() -> None:
    text = Drawing(LINES).svg()
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    others = re.findall(r'\bid="([^"]*)"', Drawing(replace(LINES, key="lines-2")).svg())
    assert len(others) == len(ids)
    assert not set(others) & set(ids)
    used = re.findall(r'href="#([^"]*)"', text) + re.findall(r"url\(#([^)]*)\)", text)
    assert used
    assert set(used) <= set(ids)


def test_names_are_escaped_and_no_formula() -> None:
    text = Drawing(LINES).svg()
    assert "<script" not in text
    assert f"6:8 {HOSTILE}" in texts(Xml.fromstring(text), "text")


def test_what_no_drawing_may_hold_is_replaced(tmp_path: Path) -> None:
    odd = "a\x00\x1b\ud800b"
    series = Series(odd, BLUE, (Mark(1, 1.0, tip=odd, label=odd),))
    chart = LineChart("odd", odd, odd, Axis("M", "log2"), Axis("s"), (series,))
    Drawing(chart).write_png(tmp_path / "odd.png")
    assert (
        texts(Xml.fromstring(cleaned(Drawing(chart).svg())), "text").count("a\ufffd\ufffd\ufffdb")
        == 2
    )
    bars = BarChart("odd", odd, odd, Axis("s"), (("gemm", BLUE),), (Bar(odd, (1.0,), odd),))
    assert "a\ufffd\ufffd\ufffdb" in texts(Xml.fromstring(cleaned(Drawing(bars).svg())), "text")


def test_the_axis_has_the_real_values() -> None:
    labels = texts(drawn(LINES), "text")
    assert {"16", "64", "4096", "tokens (M)", "speedup", "1.33", "a ceiling", "here"} <= set(labels)
    assert "1024" not in labels


@pytest.mark.parametrize("values", [(15000.0, 25000.0), (25.0, 16610.0), (0.001, 1000.0)])
def test_a_log_axis_always_has_labels(values: tuple[float, float]) -> None:
    marks = tuple(Mark(index + 1, value) for index, value in enumerate(values))
    axes = (Axis("C", "log2"), Axis("tok/s", "log10"))
    chart = LineChart("log", "t", "a", *axes, (Series("s", BLUE, marks),))
    numbers = [text for text in texts(drawn(chart), "text") if re.fullmatch(r"[\d.,]+", text)]
    assert len(numbers) >= 4, numbers
    assert not any("mathdefault" in text for text in texts(drawn(chart), "text"))


def test_many_ticks_are_thinned_out() -> None:
    marks = tuple(Mark(2**index, 1.0) for index in range(17))
    chart = LineChart("m", "t", "a", Axis("M", "log2"), Axis("s"), (Series("s", BLUE, marks),))
    labels = [text for text in texts(drawn(chart), "text") if text.isdigit()]
    assert len(labels) == 9


@pytest.mark.parametrize("chart", [LINES, BARS], ids=["lines", "bars"])
def test_a_png_file(tmp_path: Path, chart: Chart) -> None:
    path = tmp_path / "chart.png"
    drawing = Drawing(chart)
    before = Xml.fromstring(drawing.svg())
    drawing.write_png(path)
    assert path.read_bytes().startswith(PNG)
    # The title of the PNG file leaves no trace in the page, whose figures have a caption.
    after = Xml.fromstring(drawing.svg())
    assert texts(after, "text") == texts(before, "text")
    assert highest(after) == pytest.approx(highest(before), abs=0.5)


def test_a_title_has_the_lines_that_it_takes(tmp_path: Path) -> None:
    heights = []
    for title in ("short", "word " * 60):
        Drawing(replace(BARS, title=title)).write_png(tmp_path / "it.png")
        # Width and height follow the signature and the name of the first chunk.
        width, height = struct.unpack(">II", (tmp_path / "it.png").read_bytes()[16:24])
        assert width == 720
        heights.append(height)
    assert heights[1] > heights[0] + 100


def test_letters_that_the_font_lacks_make_no_noise(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    drawing = Drawing(replace(BARS, title="\u4e2d\u6587 \u0939", bars=(Bar("\u4e2d", (1.0, 0.0)),)))
    drawing.svg()
    drawing.write_png(tmp_path / "it.png")
    assert [str(it.message) for it in recwarn] == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*No such file"):
        Drawing(BARS).write_png(tmp_path / "no" / "chart.png")
