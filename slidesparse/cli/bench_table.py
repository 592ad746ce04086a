"""The tables of `slidesparse bench`: one line per kernel, what did not run and why, the verdict."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from slidesparse.bench.kernels.record import KernelRecord, Row

SLOWER = 1.05
"""Ours is called slower than an alternative from this ratio of the times on."""


class Cell(NamedTuple):
    """Our kernel against one alternative: its time over ours."""

    row: Row
    name: str
    ratio: float


def print_kernels(record: KernelRecord, console: Console) -> None:
    """Print the table of a benchmark of kernels and what belongs below it."""
    if record.rows:
        console.print(_table(record))
    for line in (*_legend(record), *reasons(record), *failures(record)):
        console.print(line, soft_wrap=True, markup=False)
    if record.names:
        console.print(verdict(record), soft_wrap=True, markup=False)
    tuned = sum(row.tuned for row in record.rows)
    console.print(
        f"{len(record.rows)} kernels in {record.seconds:.1f} s, {tuned} of them tuned, "
        f"seed {record.settings['seed']}",
        soft_wrap=True,
        markup=False,
    )


def cells(record: KernelRecord) -> list[Cell]:
    """Our kernels against every alternative that ran."""
    found = []
    for row in record.rows:
        for name in record.names:
            ratio = row.ratio(name)
            if ratio is not None:
                found.append(Cell(row, name, ratio))
    return found


def verdict(record: KernelRecord) -> str:
    """In how many comparisons ours is slower by more than 5 %, and the worst."""
    every = cells(record)
    slow = [cell for cell in every if cell.ratio * SLOWER < 1]
    text = f"ours is more than 5 % slower than an alternative in {len(slow)} of {len(every)} cells"
    if not slow:
        return text
    worst = min(slow, key=lambda cell: cell.ratio)
    share = f"{worst.name} takes {worst.ratio:.2f} of our time"
    return f"{text}; the worst: {worst.row.problem}, {share}"


def reasons(record: KernelRecord) -> list[str]:
    """Why alternatives did not run, each reason once."""
    found: Counter[tuple[str, str]] = Counter()
    for row in record.rows:
        # Two ways of one alternative that fail alike are one reason.
        for key in dict.fromkeys((a.name, a.reason) for a in row.alternatives if a.reason):
            found[key] += 1
    return [
        f"without {name} in {count} of {len(record.rows)} kernels: {reason}"
        for (name, reason), count in found.items()
    ]


def failures(record: KernelRecord) -> list[str]:
    """What was wrong or skipped, one line each."""
    wrong = [f"FAILED {row.problem}: {row.error}" for row in record.rows if row.error is not None]
    return wrong + [f"skipped {item.problem}: {item.reason}" for item in record.skipped]


def _table(record: KernelRecord) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("op", "K", "pattern", "M", "us", "GB/s", "% copy", "/ floor"):
        left = column in ("op", "pattern")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for name in record.names:
        # A narrower column: the table fits 120 columns.
        table.add_column(f"{name}\n/ ours".replace(".", ".\n"), justify="right")
    group: object = None
    for row in record.rows:
        it = row.problem
        if group not in (None, (it.op, it.k, it.pattern)):
            table.add_section()
        group = (it.op, it.k, it.pattern)
        ratios = (row.ratio(name) for name in record.names)
        table.add_row(
            str(it.op),
            str(it.k),
            str(it.pattern) if it.op.quantizes else "-",
            str(it.m),
            *_figures(row),
            *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        )
    return table


def _figures(row: Row) -> tuple[str, ...]:
    if row.median_us is None or row.gbs is None or row.percent_of_copy is None:
        return ("failed", "-", "-", "-")
    us = row.median_us
    return (
        f"{us:,.0f}" if us >= 1000 else f"{us:.1f}",
        f"{row.gbs:,.0f}" if row.gbs >= 10 else f"{row.gbs:.2f}",
        f"{row.percent_of_copy:.1f}",
        f"{us / row.floor_us:.2f}",
    )


def _legend(record: KernelRecord) -> list[str]:
    ceilings = record.ceilings
    gpu = record.fingerprint.is_gpu
    cold = "cold L2, CUDA graphs" if gpu else "warm caches"
    lines = [
        f"Medians of interleaved runs, {cold}; GB/s (1e9) of bytes read and written once. A copy "
        f"of {ceilings.copy_bytes / 2**20:.0f} MiB runs at {ceilings.copy_gbs:,.0f} GB/s"
        + (f", an empty kernel takes {ceilings.empty_us:.2f} us" if gpu else "")
        + "; floor: both together."
    ]
    if record.names:
        lines.append("alternative / ours: above 1 ours is faster; the fastest way of each counts.")
    wide = [r.wide_us / r.median_us for r in record.rows if r.wide_us and r.median_us]
    if wide:
        mean = sum(wide) / len(wide)
        lines.append(
            f"with 64-bit row offsets, where 32 bits suffice: {mean:.3f} of the time on average, "
            f"{min(wide):.3f} to {max(wide):.3f} over {len(wide)} kernels"
        )
    return lines
