"""How a benchmark ends: its files are written, what is missing is said, the exit code fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from slidesparse.cli.main import EXIT_INTERRUPTED
from slidesparse.errors import UsageError

if TYPE_CHECKING:
    from slidesparse.bench.fault import DeviceLost

R = TypeVar("R")


def write_each(record: R, *files: tuple[Callable[[R, Path], None], Path | None]) -> list[str]:
    """Write each file that was asked for; why one could not be written costs no other."""
    failures = []
    for write, path in files:
        try:
            if path is not None:
                write(record, path)
        except UsageError as error:
            failures.append(str(error))
    return failures


def finish(
    end: KeyboardInterrupt | DeviceLost | None,
    unwritten: list[str],
    failure: Callable[[], str | None],
) -> None:
    """Exit with 130 if interrupted, 1 if anything is lost, wrong or unwritten; say what.

    Args:
        end: what ended the run early, or None.
        unwritten: why files are not there, one line each.
        failure: says what of the run failed, None if nothing did; asked only of a whole run.
    """
    for reason in unwritten:
        click.echo(f"Error: {reason}", err=True)
    if isinstance(end, KeyboardInterrupt):
        click.echo("interrupted; what was measured is above", err=True)
        raise SystemExit(EXIT_INTERRUPTED)
    if end is not None:
        raise click.ClickException(f"{end}; what was measured before is kept")
    failed = failure()
    if failed is not None:
        raise click.ClickException(failed)
    if unwritten:
        raise SystemExit(1)
