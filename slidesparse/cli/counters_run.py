"""How a load benchmark of the command line runs and ends: saved after every cell."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from slidesparse.cli.counters_options import LoadOptions
from slidesparse.cli.sweep_run import Outputs, run_and_end

if TYPE_CHECKING:
    from slidesparse.bench.counters.book import LoadBook
    from slidesparse.bench.sweep.plan import Turn
    from slidesparse.bench.sweep.runner import Limits
    from slidesparse.devices import Device


def run_load(
    turns: Sequence[Turn], book: LoadBook, device: Device, limits: Limits, options: LoadOptions
) -> None:
    """Measure what is due of a load benchmark, print and write it; exit as `run_and_end` does.

    Args:
        turns: that are due.
        book: takes what they give.
        device: on which they run.
        limits: of their processes.
        options: which files to write, and how much to print.
    """
    from slidesparse.bench.counters.book import LOAD_ENGINE, LoadRunner
    from slidesparse.bench.counters.record import write_json
    from slidesparse.bench.counters.rows import write_csv
    from slidesparse.cli.counters_table import print_load

    others = ((write_csv, options.csv_path),)
    outputs = Outputs(write_json, options.result_file, others, print_load, options.quiet)
    run_and_end(turns, book, partial(LoadRunner, device, LOAD_ENGINE, limits), outputs)
