"""The tables of `slidesparse compare` on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from slidesparse.bench.compare.text import Section


def print_sections(sections: Sequence[Section], console: Console) -> None:
    """Print the sections of a comparison, a blank line behind each."""
    for section in sections:
        if section.headings:
            console.print(section.title, style="bold", markup=False, soft_wrap=True)
            console.print(_table(section))
        for line in section.lines:
            console.print(line, soft_wrap=True, markup=False)
        console.print()


def _table(section: Section) -> Table:
    """A borderless table; what does not fit is folded, never cut."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, heading in enumerate(section.headings):
        left = index in section.words
        table.add_column(Text(heading), justify="left" if left else "right", overflow="fold")
    for row in section.rows:
        table.add_row(*map(Text, row))
    return table
