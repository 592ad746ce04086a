"""The rich console that every subcommand prints its tables to."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 120
"""Columns of a table that goes to a file or a pipe, unless COLUMNS says otherwise."""


def make_console(stderr: bool = False) -> Console:
    """Make a console for standard output, or for standard error.

    On a terminal rich finds the width and the colours; NO_COLOR switches colours off. Elsewhere
    there is no colour and the width is COLUMNS or 120, so that a log does not depend on rich's
    guess. Numbers and paths are not highlighted. rich is imported here, not with this module.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    fixed = None if stream.isatty() or os.environ.get("COLUMNS", "").isdigit() else PIPED_WIDTH
    return Console(stderr=stderr, width=fixed, highlight=False, emoji=False)
