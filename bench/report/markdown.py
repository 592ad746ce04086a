"""A report as Markdown, for a README: its tables, and links to its figures."""

from __future__ import annotations

import re
from collections.abc import Iterator

from slidesparse.bench.report.format import cleaned
from slidesparse.bench.report.view import Group, Report, Section, Table

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def to_markdown(report: Report, figures: str | None) -> str:
    """The whole report in GitHub's Markdown.

    Args:
        report: to write.
        figures: folder of its PNG files, as a link from the Markdown file finds it; None without.
    """
    return cleaned("\n".join(_lines(report, figures)) + "\n")


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _lines(report: Report, figures: str | None) -> Iterator[str]:
    yield from (f"# {escape(report.title)}", "", escape(report.summary), "")
    for line in report.cautions:
        yield from (f"**{escape(line)}**", "")
    for table in report.digests:
        yield from (*_table(table), "")
    yield from (f"* {escape(line)}" for line in report.findings)
    for section in (*report.sections, report.sources):
        yield from _section(section, figures)
    if report.absent:
        yield from ("", "## Not in this report", "")
        yield from (f"* {escape(it.title)}: run `{it.remedy}`" for it in report.absent)


def _section(section: Section, figures: str | None) -> Iterator[str]:
    yield from ("", f"## {escape(section.title)}", "", escape(section.about))
    for note in section.notes:
        yield from ("", escape(note))
    for group in section.groups:
        yield from _group(group, figures)


def _group(group: Group, figures: str | None) -> Iterator[str]:
    yield from ("", f"### {escape(group.title)}")
    for note in group.notes:
        yield from ("", escape(note))
    if figures is not None and group.charts:
        if group.folded:
            yield from ("", "<details>", f"<summary>Figures of {_html(group.title)}</summary>")
        for chart in group.charts:
            yield from ("", f"![{escape(chart.alt)}](<{figures}/{chart.key}.png>)")
        if group.folded:
            yield from ("", "</details>")
    for table in group.tables:
        yield ""
        yield from _table(table)


def _table(table: Table) -> Iterator[str]:
    if table.folded:
        # GitHub shows Markdown inside an element only after an empty line.
        yield from ("<details>", f"<summary>{_html(table.caption)}</summary>", "")
    else:
        yield from (f"{escape(table.caption).rstrip('.')}:", "")
    yield f"| {' | '.join(map(escape, table.columns))} |"
    yield f"|{'|'.join(' ---: ' if numeric else ' --- ' for numeric in table.numeric)}|"
    for row in table.rows:
        yield f"| {' | '.join(escape(cell.text) for cell in row)} |"
    if table.folded:
        yield from ("", "</details>")


def _html(text: str) -> str:
    from html import escape as html_escape

    return html_escape(" ".join(text.split()))
