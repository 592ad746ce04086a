"""Sections of a comparison as Markdown, for a README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from slidesparse.bench.compare.text import Section


def to_markdown(sections: Sequence[Section]) -> str:
    """The sections as Markdown: a heading in bold, a table, lines below it."""
    return "\n".join(line for section in sections for line in _lines(section)).strip() + "\n"


def _lines(section: Section) -> Iterator[str]:
    if section.title:
        yield from (f"**{_escaped(section.title)}**", "")
    if section.headings:
        yield _row(section.headings)
        rules = ["---" if i in section.words else "---:" for i in range(len(section.headings))]
        yield _row(rules)
        yield from map(_row, section.rows)
        yield ""
    for line in section.lines:
        mark = "  * " if line.startswith(" ") else "* "
        yield mark + _escaped(line.strip())
    yield ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """Text without what Markdown would take for a mark: a bar or a line's end ends a cell."""
    text = " ".join(text.splitlines())
    for mark in ("\\", "|", "*", "~"):
        text = text.replace(mark, f"\\{mark}")
    return text
