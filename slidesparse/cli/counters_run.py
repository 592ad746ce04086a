"""How a load benchmark of the command line runs and ends: saved after every cell."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING

import click

from slidesparse.cli.counters_options import LoadOptions
from slidesparse.cli.endings import write_each
from slidesparse.cli.sweep_run import finish

if TYPE_CHECKING:
    from slidesparse.bench.counters.book import LoadBook
    from slidesparse.bench.sweep.plan import Turn
    from slidesparse.bench.sweep.runner import Limits
    from slidesparse.devices import Device


def run_load_and_end(
    turns: Sequence[Turn], book: LoadBook, device: Device, limits: Limits, options: LoadOptions
) -> None:
    """Measure, print, write; exit with 130 if interrupted, 1 if a cell failed or a file is missing.

    Args:
        turns: that are due.
        book: takes what they give.
        device: on which they run.
        limits: of their processes.
        options: which files to write, and how much to print.
    """
    from slidesparse.bench.counters.record import write_json
    from slidesparse.bench.counters.rows import write_csv
    from slidesparse.cli.console import make_console

    end: KeyboardInterrupt | None = None
    try:
        _run(turns, book, device, limits, options)
    except KeyboardInterrupt as error:
        end = error
    record, file = book.record(interrupted=end is not None), options.result_file
    unwritten = write_each(record, (write_json, file))
    try:
        if not options.quiet:
            from slidesparse.cli.counters_table import print_load

            print_load(record, make_console())
    finally:
        unwritten += write_each(record, (write_csv, options.csv_path))
    if end is not None and file is not None and not unwritten:
        click.echo(f"{file} holds what was measured; the same command goes on", err=True)
    finish(record, end, unwritten)


def _run(
    turns: Sequence[Turn], book: LoadBook, device: Device, limits: Limits, options: LoadOptions
) -> None:
    """Measure what is due; the result file is written after every cell."""
    from slidesparse.bench.counters.book import LOAD_ENGINE, LoadRunner
    from slidesparse.bench.counters.record import write_json
    from slidesparse.cli.console import make_console
    from slidesparse.cli.progress import ProgressLine

    progress = ProgressLine(sum(len(t.job.ms) for t in turns), make_console(stderr=True))
    notify = (lambda text: None) if options.quiet else progress.say
    runner = LoadRunner(device, LOAD_ENGINE, limits, notify)
    file = options.result_file
    # What is no plain file, such as /dev/stdout, gets the record once, at the end.
    saves = file is not None and (file.is_file() or not file.exists())
    with (
        nullcontext() if options.quiet else progress,
        closing(runner.run(turns)) as outcomes,
    ):
        for outcome in outcomes:
            cell = book.add(outcome)
            if saves:
                # A full disk is told at the end; what comes until then may still be printed.
                write_each(book.record(interrupted=True), (write_json, file))
            if not options.quiet:
                progress.advance()
                if cell.failure is not None:
                    progress.note(f"FAILED {cell.key}: {cell.failure}: {cell.reason}")
