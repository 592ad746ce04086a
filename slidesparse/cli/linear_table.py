"""The tables of `slidesparse bench linear`: the whole model, each linear, and what did not run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from slidesparse.cli.bench_table import SLOWER

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from slidesparse.bench.linear.record import LinearRecord, LinearRow
    from slidesparse.problem import DType


def print_linears(record: LinearRecord, console: Console) -> None:
    """Print the tables of a benchmark of linears and what belongs below them."""
    for dtype in record.dtypes:
        console.print(_linears(record, dtype))
        console.print(_totals(record, dtype))
    for line in (*_legend(record), *plans(record), *reasons(record), *failures(record)):
        console.print(line, soft_wrap=True, markup=False)
    if record.rows:
        console.print(verdict(record), soft_wrap=True, markup=False)
    console.print(
        f"{len(record.rows)} linears in {record.seconds:.1f} s, {record.compile_seconds:.1f} s of "
        f"them in torch.compile, seed {record.settings['seed']}",
        soft_wrap=True,
        markup=False,
    )


def verdict(record: LinearRecord) -> str:
    """In how many comparisons ours is faster and slower by more than 5 %, and the worst."""
    every = [(row, row.ratio) for row in record.rows if row.ratio is not None]
    fast = [ratio for row, ratio in every if row.clear and ratio > SLOWER]
    slow = [(row, ratio) for row, ratio in every if row.clear and ratio * SLOWER < 1]
    text = (
        f"ours is more than 5 % faster than torch in {len(fast)} of {len(every)} cases and more "
        f"than 5 % slower in {len(slow)}"
    )
    if not slow:
        return text
    worst, ratio = min(slow, key=lambda pair: pair[1])
    return f"{text}; the worst: {named(worst)}, torch takes {ratio:.2f} of our time"


def named(row: LinearRow) -> str:
    """Layer and problem in one."""
    it = row.problem
    return f"{row.layer.name} {it.dtype} M={it.m} {it.pattern}"


def plans(record: LinearRecord) -> list[str]:
    """What ours runs, by pattern: in how many cases which backend."""
    lines = []
    for pattern in record.patterns:
        rows = [row for row in record.rows if row.problem.pattern == pattern and row.plan]
        backends = Counter(row.plan.split()[0] for row in rows)
        sparse = sum(row.sparse for row in rows)
        ran = ", ".join(f"{name} {count}" for name, count in backends.most_common())
        if rows:
            lines.append(f"{pattern}: sparse in {sparse} of {len(rows)} cases ({ran})")
    return lines


def reasons(record: LinearRecord) -> list[str]:
    """Why ways of torch's did not run, each reason once, and which ways were the fastest."""
    found: Counter[tuple[str, str]] = Counter()
    for ways in record.ways:
        for way in ways.ways:
            if way.reason:
                found[way.how, way.reason] += 1
    chosen = Counter(row.torch_how for row in record.rows if row.torch_how)
    lines = [
        f"torch without {how} in {count} of {len(record.ways)} cases: {reason}"
        for (how, reason), count in found.items()
    ]
    if chosen:
        counts = ", ".join(f"{how} {count}" for how, count in chosen.most_common())
        lines.append(f"torch's fastest way: {counts}")
    return lines


def failures(record: LinearRecord) -> list[str]:
    """What was wrong or skipped, one line each."""
    wrong = [f"FAILED {named(row)}: {row.error}" for row in record.rows if row.error is not None]
    return wrong + [
        f"skipped {item.layer.name} {item.problem.dtype} M={item.problem.m}: {item.reason}"
        for item in record.skipped
    ]


def _linears(record: LinearRecord, dtype: DType) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("linear", no_wrap=True)
    for column in ("N", "K", "M", "torch us"):
        table.add_column(column, justify="right", no_wrap=True)
    for pattern in record.patterns:
        table.add_column(f"{pattern} us", justify="right", no_wrap=True)
    lines: dict[tuple[str, int], list[LinearRow]] = {}
    for row in record.rows:
        if row.problem.dtype is dtype:
            lines.setdefault((row.layer.name, row.tokens), []).append(row)
    before = ""
    for (name, tokens), rows in lines.items():
        if before not in ("", name):
            table.add_section()
        before = name
        by_pattern = {row.problem.pattern: row for row in rows}
        first = by_pattern.get(record.patterns[0])
        found = (by_pattern.get(pattern) for pattern in record.patterns)
        table.add_row(
            *(name, str(rows[0].problem.n), str(rows[0].problem.k), str(tokens)),
            _us(first.torch.median_us) if first and first.torch else "-",
            *("-" if row is None else _cell(row) for row in found),
        )
    return table


def _cell(row: LinearRow) -> str:
    if row.ours is None:
        return "failed"
    time = _us(row.ours.median_us)
    if row.ratio is None:
        return time
    return f"{time} {row.ratio:.2f}" + (" " if row.clear else "=")


def _us(us: float) -> str:
    return f"{us:,.0f}" if us >= 1000 else f"{us:.1f}"


def _totals(record: LinearRecord, dtype: DType) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"all linears, {dtype}", no_wrap=True)
    for column in ("torch ms", *map(str, record.patterns)):
        table.add_column(column, justify="right", no_wrap=True)
    for tokens in dict.fromkeys(row.tokens for row in record.rows if row.problem.dtype is dtype):
        both = [record.totals(dtype, tokens, pattern) for pattern in record.patterns]
        table.add_row(
            f"M = {tokens}",
            "-" if both[0] is None else f"{both[0][0] / 1e3:.2f}",
            *("-" if pair is None else f"{pair[0] / pair[1]:.2f}" for pair in both),
        )
    return table


def _legend(record: LinearRecord) -> list[str]:
    cold = "cold L2, CUDA graphs" if record.fingerprint.is_gpu else "warm caches"
    first = record.patterns[0] if record.patterns else "dense"
    return [
        f"Medians of interleaved runs, {cold}: {record.settings['timed']}. Behind ours: torch / "
        "ours on the same pruned weights, above 1 ours is faster, '=' where the difference is "
        f"within the spread. torch us and ms: on {first} weights."
    ]
