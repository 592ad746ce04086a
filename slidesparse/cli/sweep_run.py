"""How sweeps and load benchmarks run and end: saved after every cell, whatever comes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import click

from slidesparse.cli.endings import finish, write_each
from slidesparse.cli.sweep_options import Options

if TYPE_CHECKING:
    from rich.console import Console

    from slidesparse.bench.sweep.book import SweepBook
    from slidesparse.bench.sweep.cells import AnyCell, CellsRecord
    from slidesparse.bench.sweep.plan import Turn
    from slidesparse.bench.sweep.runner import Limits, Outcome, TurnRunner
    from slidesparse.devices import Device

Found = TypeVar("Found")
"""What an engine says of a cell."""

R = TypeVar("R", bound="CellsRecord[Any]")
"""What the result file holds."""

R_co = TypeVar("R_co", bound="CellsRecord[Any]", covariant=True)


class Book(Protocol[Found, R_co]):
    """Takes what becomes of the cells, and gives the record at any time."""

    def add(self, outcome: Outcome[Found]) -> AnyCell[Any]:
        """Take what became of a cell."""

    def record(self, interrupted: bool) -> R_co:
        """All that is known now."""


@dataclass(frozen=True)
class Outputs(Generic[R]):
    """Where a record goes.

    Args:
        write_json: writes the result file.
        file: the result file, None where none was asked for.
        others: further files, written at the end, each None where not asked for.
        show: prints its tables.
        quiet: whether to print errors only.
    """

    write_json: Callable[[R, Path], None]
    file: Path | None
    others: tuple[tuple[Callable[[R, Path], None], Path | None], ...]
    show: Callable[[R, Console], None]
    quiet: bool


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


def run_sweep(
    turns: Sequence[Turn], book: SweepBook, device: Device, limits: Limits, options: Options
) -> None:
    """Measure what is due of a sweep, print and write it; exit as `run_and_end` does.

    Args:
        turns: that are due.
        book: takes what they give.
        device: on which they run.
        limits: of their processes.
        options: which files to write, and how much to print.
    """
    from slidesparse.bench.sweep.compare import write_csv
    from slidesparse.bench.sweep.figure import write_figure
    from slidesparse.bench.sweep.record import write_json
    from slidesparse.bench.sweep.runner import ENGINES, SweepRunner
    from slidesparse.cli.sweep_table import print_sweep

    others = ((write_csv, options.csv_path), (write_figure, options.figure_path))
    outputs = Outputs(write_json, options.result_file, others, print_sweep, options.quiet)
    runner = partial(SweepRunner, device, ENGINES[book.heading.engine], limits)
    run_and_end(turns, book, runner, outputs)


def run_and_end(
    turns: Sequence[Turn],
    book: Book[Found, R],
    make_runner: Callable[[Callable[[str], None]], TurnRunner[Found]],
    outputs: Outputs[R],
) -> None:
    """Measure, print, write; exit with 130 if interrupted, 1 if a cell failed or a file is missing.

    Args:
        turns: that are due.
        book: takes what they give.
        make_runner: runs them; it is given what is to be told in one line what begins.
        outputs: where the record goes.
    """
    from slidesparse.cli.console import make_console

    end: KeyboardInterrupt | None = None
    try:
        _run(turns, book, make_runner, outputs)
    except KeyboardInterrupt as error:
        end = error
    record, file = book.record(interrupted=end is not None), outputs.file
    unwritten = write_each(record, (outputs.write_json, file))
    try:
        if not outputs.quiet:
            outputs.show(record, make_console())
    finally:
        unwritten += write_each(record, *outputs.others)
    if end is not None and file is not None and not unwritten:
        click.echo(f"{file} holds what was measured; the same command goes on", err=True)
    finish(end, unwritten, lambda: _failure(record))


def _run(
    turns: Sequence[Turn],
    book: Book[Found, R],
    make_runner: Callable[[Callable[[str], None]], TurnRunner[Found]],
    outputs: Outputs[R],
) -> None:
    """Measure what is due; the result file is written after every cell."""
    from slidesparse.cli.console import make_console
    from slidesparse.cli.progress import ProgressLine

    progress = ProgressLine(sum(len(t.job.ms) for t in turns), make_console(stderr=True))
    runner = make_runner((lambda text: None) if outputs.quiet else progress.say)
    file = outputs.file
    # What is no plain file, such as /dev/stdout, gets the record once, at the end.
    saves = file is not None and (file.is_file() or not file.exists())
    with (
        nullcontext() if outputs.quiet else progress,
        closing(runner.run(turns)) as outcomes,
    ):
        for outcome in outcomes:
            cell = book.add(outcome)
            if saves:
                # A full disk is told at the end; what comes until then may still be printed.
                write_each(book.record(interrupted=True), (outputs.write_json, file))
            if not outputs.quiet:
                progress.advance()
                if cell.failure is not None:
                    progress.note(f"FAILED {cell.key}: {cell.failure}: {cell.reason}")


def _failure(record: CellsRecord[Any]) -> str | None:
    """The first cell that failed and how many did; else says how many are left for want of time."""
    from slidesparse.bench.sweep.runner import Kind

    late = [cell for cell in record.failed if cell.failure is Kind.BUDGET]
    failed = [cell for cell in record.failed if cell.failure is not Kind.BUDGET]
    if failed:
        first, total = failed[0], len(record.cells)
        return f"{len(failed)} of {total} cells failed, first {first.key}: {first.reason}"
    if late:
        click.echo(f"{len(late)} cells are left: {late[0].reason}", err=True)
    return None
