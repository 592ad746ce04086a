"""How a sweep of the command line runs and ends: saved after every cell, whatever comes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING

import click

from slidesparse.cli.endings import end_early, write_each
from slidesparse.cli.sweep_options import Options

if TYPE_CHECKING:
    from slidesparse.bench.counters.record import CountersRecord
    from slidesparse.bench.sweep.book import SweepBook
    from slidesparse.bench.sweep.plan import Turn
    from slidesparse.bench.sweep.record import SweepRecord
    from slidesparse.bench.sweep.runner import Limits
    from slidesparse.devices import Device


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Let the first Ctrl-C interrupt and ignore more of them while what was measured is saved."""

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_and_end(
    turns: Sequence[Turn], book: SweepBook, device: Device, limits: Limits, options: Options
) -> None:
    """Measure, print, write; exit with 130 if interrupted, 1 if a cell failed or a file is missing.

    Args:
        turns: that are due.
        book: takes what they give.
        device: on which they run.
        limits: of their processes.
        options: which files to write, and how much to print.
    """
    from slidesparse.bench.sweep.compare import write_csv
    from slidesparse.bench.sweep.record import write_json
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
            from slidesparse.cli.sweep_table import print_sweep

            print_sweep(record, make_console())
    finally:
        unwritten += write_each(record, (write_csv, options.csv_path))
        if options.figure_path is not None:
            from slidesparse.bench.sweep.figure import write_figure

            unwritten += write_each(record, (write_figure, options.figure_path))
    if end is not None and file is not None and not unwritten:
        click.echo(f"{file} holds what was measured; the same command goes on", err=True)
    finish(record, end, unwritten)


def _run(
    turns: Sequence[Turn], book: SweepBook, device: Device, limits: Limits, options: Options
) -> None:
    """Measure what is due; the result file is written after every cell."""
    from slidesparse.bench.sweep.record import write_json
    from slidesparse.bench.sweep.runner import ENGINES, SweepRunner
    from slidesparse.cli.console import make_console
    from slidesparse.cli.progress import ProgressLine

    progress = ProgressLine(sum(len(t.job.ms) for t in turns), make_console(stderr=True))
    notify = (lambda text: None) if options.quiet else progress.say
    engine = ENGINES[book.heading.engine]
    runner = SweepRunner(device, engine, limits, notify)
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


def finish(
    record: SweepRecord | CountersRecord, end: KeyboardInterrupt | None, unwritten: list[str]
) -> None:
    """Exit with 130 if interrupted, 1 if a cell failed or a file is not written.

    Args:
        record: of the run.
        end: what ended it early, or None.
        unwritten: why files are not there, one line each.
    """
    from slidesparse.bench.sweep.runner import Kind

    end_early(end, unwritten)
    late = [cell for cell in record.failed if cell.failure is Kind.BUDGET]
    failed = [cell for cell in record.failed if cell.failure is not Kind.BUDGET]
    if failed:
        first = failed[0]
        raise click.ClickException(
            f"{len(failed)} of {len(record.cells)} cells failed, first {first.key}: {first.reason}"
        )
    if late:
        click.echo(f"{len(late)} cells are left: {late[0].reason}", err=True)
    if unwritten:
        raise SystemExit(1)
