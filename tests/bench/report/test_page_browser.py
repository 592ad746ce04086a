"""The page of a report in a real browser: it works without a network, on a phone, in the dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import DESKTOP, PHONE, Opened, find_browser, open_browser
from report_records import HOSTILE, hostile_page

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
BROWSER = find_browser()
# The words are those that the summary of the tests looks for.
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser was found")

LEAST_CONTRAST = 4.5
"""Between text and what is behind it: WCAG 2.2, success criterion 1.4.3."""

CONTRASTS = """
() => {
  const parse = (text) => {
    const [r, g, b, a] = text.match(/[0-9.]+/g).map(Number);
    return { rgb: [r, g, b], a: a === undefined ? 1 : a };
  };
  // WCAG 2.2: relative luminance, contrast ratio.
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => {
      const c = v / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.a === 1) return colour.rgb;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const it of document.querySelectorAll("details")) it.open = true;
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || element.closest("script, title, desc")) continue;
    const style = getComputedStyle(element);
    const front = parse(element.closest("svg") ? style.fill : style.color).rgb;
    const lights = [luminance(front), luminance(behind(element))].sort((a, b) => b - a);
    const ratio = (lights[0] + 0.05) / (lights[1] + 0.05);
    found.push([ratio, element.tagName + ": " + element.textContent.trim().slice(0, 40)]);
  }
  return found;
}
"""

ORDER = """
(table) => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent.trim())
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(hostile_page(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="no browser was found: playwright is not installed")
    assert BROWSER is not None
    with open_browser(BROWSER) as opened:
        yield opened


def sorted_table(opened: Opened) -> Any:
    """The table of time shares, whose second column is M."""
    return opened.page.locator("table", has_text="stock again").last


def test_it_asks_for_nothing_and_complains_of_nothing(browser: Any, file: Path) -> None:
    with Opened(browser, file) as opened:
        opened.page.evaluate("document.querySelectorAll('details').forEach(it => it.open = true)")
        assert opened.requests == [file.as_uri()]
        assert opened.complaints == []
        assert opened.page.title() == f"Report {HOSTILE}"
        assert opened.page.evaluate("document.images.length") == 0


def test_a_command_that_only_says_what_to_install_is_no_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / "chromium-browser"
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_browser() is None
    stub.write_text("#!/bin/sh\nexit 0\n")
    assert find_browser() == str(stub)


def test_figures_are_drawn(browser: Any, file: Path) -> None:
    with Opened(browser, file) as opened:
        boxes = [it.bounding_box() for it in opened.page.locator("figure svg").all()]
        assert len(boxes) >= 10
        assert all(box["width"] > 300 and box["height"] > 150 for box in boxes)
        names = opened.page.get_by_role("img").all()
        assert len(names) == len(boxes)
        text = opened.page.locator("figure svg text").first
        assert "DejaVu" not in text.evaluate("it => getComputedStyle(it).fontFamily")


def test_tables_sort_by_click(browser: Any, file: Path) -> None:
    with Opened(browser, file) as opened:
        table = sorted_table(opened)
        heading = table.locator("thead th").nth(1)
        assert heading.get_attribute("aria-sort") == "none"
        heading.locator("button").click()
        rows = table.evaluate(ORDER)
        assert len(rows) == 20
        # As numbers: as texts, 1024 would come before 512.
        assert rows == sorted(rows, key=int)
        assert heading.get_attribute("aria-sort") == "ascending"
        heading.locator("button").click()
        assert table.evaluate(ORDER) == sorted(rows, key=int, reverse=True)
        assert heading.get_attribute("aria-sort") == "descending"


def test_tables_sort_by_value_and_not_by_text(browser: Any, file: Path) -> None:
    with Opened(browser, file) as opened:
        # As texts, "~ 1.00x" would come before "0.90x".
        table = opened.page.locator("table", has_text="Speedup over stock vLLM")
        table.locator("thead button", has_text="6:8").click()
        assert table.evaluate(ORDER) == ["512", "1024", "4096", "16384", "65536"]


def test_what_has_no_number_comes_last(browser: Any, file: Path) -> None:
    with Opened(browser, file) as opened:
        opened.page.evaluate("document.querySelectorAll('details').forEach(it => it.open = true)")
        # In one row of seven there is no time of ours.
        table = opened.page.locator("table", has_text="every linear, microseconds").first
        button = table.locator("thead button", has_text="torch, us")
        last = "(table) => [...table.tBodies[0].rows].at(-1).cells[3].textContent"
        for _ in range(2):
            button.click()
            assert table.evaluate(last) == "n/a"


def test_tables_sort_by_keyboard(browser: Any, file: Path) -> None:
    with Opened(browser, file) as opened:
        table = sorted_table(opened)
        buttons = table.locator("thead button")
        buttons.first.focus()
        opened.page.keyboard.press("Tab")
        opened.page.keyboard.press("Enter")
        rows = table.evaluate(ORDER)
        assert rows == sorted(rows, key=int)
        opened.page.keyboard.press("Space")
        assert table.evaluate(ORDER) == sorted(rows, key=int, reverse=True)
        sorts = [it.get_attribute("aria-sort") for it in table.locator("thead th").all()]
        assert sorts == ["none", "descending", *["none"] * (len(sorts) - 2)]


def test_without_scripts_no_heading_offers_to_sort(browser: Any, file: Path) -> None:
    with Opened(browser, file, scripts=False) as opened:
        arrow = opened.page.locator("thead .arrow").first
        assert not arrow.is_visible()
        folded = opened.page.locator("details").first
        assert not folded.locator("table").is_visible()
        folded.locator("summary").click()
        assert folded.locator("table").is_visible()
    with Opened(browser, file) as opened:
        assert opened.page.locator("thead .arrow").first.is_visible()


@pytest.mark.parametrize("size", [PHONE, DESKTOP, (768, 1024)])
def test_the_page_is_never_wider_than_the_window(
    browser: Any, file: Path, size: tuple[int, int]
) -> None:
    with Opened(browser, file, size) as opened:
        opened.page.evaluate("document.querySelectorAll('details').forEach(it => it.open = true)")
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        scrolls = opened.page.evaluate(
            "[...document.querySelectorAll('.scroll')].map(it => it.scrollWidth > it.clientWidth)"
        )
        # On a phone some table is wider than its box, which scrolls by itself.
        assert any(scrolls) or size != PHONE


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(browser: Any, file: Path, scheme: str) -> None:
    with Opened(browser, file, scheme=scheme) as opened:
        found = opened.page.evaluate(CONTRASTS)
        assert len(found) > 500
        faint = [(round(ratio, 2), text) for ratio, text in found if ratio < LEAST_CONTRAST]
        assert not faint
        paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") is (scheme == "light")


def test_it_prints_light_with_all_that_is_folded(browser: Any, file: Path, tmp_path: Path) -> None:
    with Opened(browser, file, scheme="dark") as opened:
        opened.page.emulate_media(media="print")
        paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb(255, 255, 255)"
        opened.page.evaluate(
            "() => { window.opened = 0; addEventListener('beforeprint', () => {"
            "window.opened = document.querySelectorAll('details[open]').length; }); }"
        )
        opened.page.pdf(path=str(tmp_path / "page.pdf"), format="A4")
        folded = opened.page.evaluate("document.querySelectorAll('details').length")
        assert opened.page.evaluate("window.opened") == folded > 0
        assert opened.page.evaluate("document.querySelectorAll('details[open]').length") == 0
        printed = (tmp_path / "page.pdf").read_bytes()
        assert printed.startswith(b"%PDF-")
        assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") >= 4
