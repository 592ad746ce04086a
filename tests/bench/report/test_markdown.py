"""A report as Markdown: what GitHub makes of it is tables, figures and plain text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report_records import HOSTILE, read_all, write_results

from slidesparse.bench.report.assemble import build_report
from slidesparse.bench.report.markdown import escape, to_markdown
from slidesparse.bench.report.view import Report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("results")
    return build_report(read_all(write_results(folder, model=f"{HOSTILE} | `a` _b_")), "A title")


def test_tables_have_as_many_cells_in_every_line(report: Report) -> None:
    block: list[int] = []
    counted = 0
    for line in [*to_markdown(report, None).splitlines(), ""]:
        if line.startswith("|"):
            block.append(len(re.findall(r"(?<!\\)\|", line)))
        elif block:
            assert len(set(block)) == 1, line
            counted += 1
            block = []
    assert counted == len(report.digests) + sum(
        len(group.tables) for it in (*report.sections, report.sources) for group in it.groups
    )


def test_headings_and_order(report: Report) -> None:
    lines = to_markdown(report, None).splitlines()
    assert lines[0] == "# A title"
    titles = [line[3:] for line in lines if line.startswith("## ")]
    assert titles == [*(it.title for it in report.sections), report.sources.title]


def test_figures_are_linked_with_what_they_show(report: Report) -> None:
    text = to_markdown(report, "my figures/of it")
    links = re.findall(r"^!\[(.*)\]\(<(.*)>\)$", text, flags=re.MULTILINE)
    assert [link for _, link in links] == [
        f"my figures/of it/{chart.key}.png" for chart in report.charts
    ]
    assert all(len(alt) > 40 for alt, _ in links)
    assert "![" not in to_markdown(report, None)


def test_names_from_files_are_text(report: Report) -> None:
    text = to_markdown(report, None)
    assert not re.search(r"(?<!\\)<(?!/?details>|/?summary>)", text)
    assert "\\<script" in text


def test_what_is_absent_is_named(tmp_path: Path) -> None:
    kernels = next(path for path in write_results(tmp_path) if path.stem == "kernels")
    text = to_markdown(build_report(read_all([kernels]), "t"), None)
    assert "## Not in this report" in text
    assert "* Roofline: run `slidesparse search or slidesparse bench linear" in text


def test_escaped_text_is_one_line() -> None:
    assert escape("a|b\n`c` <d> *e* [f](g) #h") == "a\\|b \\`c\\` \\<d\\> \\*e\\* \\[f\\](g) \\#h"


def test_folded_tables_can_be_opened(report: Report) -> None:
    text = to_markdown(report, None)
    assert text.count("<details>") == text.count("</details>") > 3
    # GitHub shows what follows as Markdown only after an empty line.
    assert text.count("</summary>\n\n|") == text.count("<details>")
