"""The page of a report, as text: it is whole in itself, and escapes what comes from files."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from html.parser import HTMLParser

import pytest
from report_records import hostile_page

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from slidesparse.bench.report.draw import PALETTE

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Reader(HTMLParser):
    """The elements of a page with their attributes, and whether every one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> at {self.getpos()}")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text() -> str:
    return hostile_page()


@pytest.fixture(scope="module")
def page(text: str) -> Reader:
    return Reader(text)


def test_every_element_is_closed_and_every_id_is_there_once(page: Reader) -> None:
    assert not page.wrong
    assert not page.open
    ids = [it["id"] for _, it in page.elements if "id" in it]
    assert len(ids) > 100
    assert len(ids) == len(set(ids))


def test_what_is_named_by_another_element_is_there(page: Reader) -> None:
    ids = {it["id"] for _, it in page.elements if "id" in it}
    named = [
        name
        for _, it in page.elements
        for attribute in ("aria-labelledby", "aria-describedby")
        for name in (it.get(attribute) or "").split()
    ]
    named += [it["href"][1:] for it in page.all("a") if (it["href"] or "").startswith("#")]
    assert len(named) > 30
    assert not set(named) - ids


def test_nothing_is_loaded_from_anywhere(text: str, page: Reader) -> None:
    assert not re.findall(r"https?://", text)
    assert not re.findall(r"@import|@font-face|url\((?!#)", text)
    assert not page.all("img")
    assert [it["href"] for it in page.all("link")] == ["data:,"]
    assert all(set(it) == set() for it in page.all("script"))


def test_the_policy_allows_the_pages_own_script_alone(text: str, page: Reader) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policies = [it["content"] for it in page.all("meta") if "http-equiv" in it]
    assert len(policies) == 1
    assert f"script-src 'sha256-{digest}';" in (policies[0] or "")
    assert (policies[0] or "").startswith("default-src 'none';")


def test_names_from_files_are_escaped(text: str, page: Reader) -> None:
    assert "<img" not in text
    assert "alert(1)" in text
    assert text.count("<script") == 1
    assert not any(name.startswith("on") for _, it in page.elements for name in it)


def test_tables_and_figures_say_what_they_are(text: str, page: Reader) -> None:
    tables, figures = len(page.all("table")), len(page.all("figure"))
    assert tables > 15
    assert figures >= 10
    assert len(page.all("caption")) == tables
    assert {it.get("scope") for it in page.all("th")} == {"col", "row"}
    drawn = [it for it in page.all("svg") if it.get("role") == "img"]
    assert len(drawn) == figures
    assert len(page.all("figcaption")) == figures
    assert len(page.all("h1")) == 1
    assert all(len(it) > 40 for it in re.findall(r"<desc [^>]*>(.*?)</desc>", text))


def test_headings_do_not_skip_a_level(page: Reader) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_what_is_not_whole_is_said_before_any_figure(text: str) -> None:
    (caution,) = re.findall(r'<p class="caution">(.*?)</p>', text)
    assert caution.startswith("Ended early, ")
    assert "search.json" in caution
    assert "sweep.json" not in caution
    assert text.index(caution) < text.index("<figure>")


def test_figures_hold_no_id_that_nothing_uses(text: str) -> None:
    for figure in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ids = re.findall(r'\bid="([^"]*)"', figure)
        ids = [it for it in ids if not re.search(r"-(marks|bar)-\d+-\w+$", it)]
        assert all(figure.count(it) > 1 for it in ids)


def test_the_language_and_the_width_are_told(page: Reader) -> None:
    assert page.all("html") == [{"lang": "en"}]
    names = {it.get("name"): it.get("content") for it in page.all("meta")}
    assert names["viewport"] == "width=device-width, initial-scale=1"
    assert names["color-scheme"] == "light dark"


def test_nothing_of_the_template_is_left(text: str) -> None:
    assert "{{" not in text
    assert "{%" not in text


def blocks(text: str) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """The page's colours: light, dark and on paper."""
    light, dark, paper = re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL)
    found = [dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in (light, dark, paper)]
    return found[0], found[1], found[2]


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_lines_and_marks_can_be_told_from_the_paper_in_every_light(text: str) -> None:
    for colours in blocks(text):
        assert set(colours) == {*PALETTE, "panel"}
        for name in set(PALETTE) - {"grid", "paper"}:
            lights = sorted(map(luminance, (colours[name], colours["paper"])))
            # WCAG 2.2, 1.4.11: graphical objects need 3:1.
            assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 3, name


def test_png_files_have_the_colours_of_the_light_page(text: str) -> None:
    light, _, _ = blocks(text)
    assert {name: light[name] for name in PALETTE} == PALETTE
