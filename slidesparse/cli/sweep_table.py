"""The tables of `slidesparse bench prefill` and `decode`: every cell, the speedups, what failed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from slidesparse.bench.sweep.compare import KINDS, STOCK, Comparison, Ratio

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from slidesparse.bench.sweep.job import Variant
    from slidesparse.bench.sweep.plan import Block
    from slidesparse.bench.sweep.record import Cell, SweepRecord

WIDE = "*"
"""Behind an M whose tensors pass 2^31 - 1 elements."""


def print_sweep(record: SweepRecord, console: Console) -> None:
    """Print the tables of a sweep and what belongs below them."""
    for block in record.blocks:
        console.print(_cells(record, block))
    for block in record.blocks:
        console.print(_speedups(record, block))
    for line in (*_legend(record), *ran(record), *failures(record), verdict(record)):
        console.print(line, soft_wrap=True, markup=False)
    console.print(
        f"{len(record.measured)} of {len(record.cells)} cells in {record.seconds:.1f} s, seed "
        f"{record.settings['seed']}",
        soft_wrap=True,
        markup=False,
    )


def verdict(record: SweepRecord) -> str:
    """In how many cells ours is faster, slower and neither, and the worst of them."""
    found = [
        (block, variant, m, ratio)
        for block in record.blocks
        for compared in (Comparison(record, block),)
        for variant, m in itertools.product(compared.variants, compared.ms)
        if str(variant.system) == "ours"
        if (ratio := compared.ratio(variant, m)) is not None
    ]
    fast = [it for it in found if it[3].clear and it[3].value > 1]
    slow = [it for it in found if it[3].clear and it[3].value < 1]
    text = (
        f"ours is faster than stock in {len(fast)} of {len(found)} cells, slower in {len(slow)}, "
        f"no different in {len(found) - len(fast) - len(slow)}"
    )
    if not slow:
        return text
    block, variant, m, ratio = min(slow, key=lambda it: it[3].value)
    return f"{text}; the worst: {block} {variant} M={m}, {ratio.value:.2f}"


def failures(record: SweepRecord) -> list[str]:
    """Why cells have no time, one line each."""
    return [f"FAILED {it.key}: {it.failure}: {it.reason}" for it in record.failed]


def ran(record: SweepRecord) -> list[str]:
    """What was built, one line per variant; what all of them share is said once."""
    every = [set(it.items()) for it in record.ran]
    shared = set.intersection(*every) if len(every) > 1 else set()
    lines = [_named(record.ran[0], shared)] if shared else []
    for index, built in enumerate(record.ran):
        own = _named(built, set(built.items()) - shared)
        whose: dict[str, None] = {}
        for block in record.blocks:
            labels = dict.fromkeys(it.key.label for it in record.of(block) if it.ran == index)
            if labels:
                whose[f"{block} ({', '.join(labels)})"] = None
        if whose and own:
            lines.append(f"{', '.join(whose)}: {own}")
    return lines


def _named(built: dict[str, str], wanted: set[tuple[str, str]]) -> str:
    """Names before their texts; those of one text together."""
    by_text: dict[str, list[str]] = {}
    for name, text in built.items():
        if (name, text) in wanted:
            by_text.setdefault(text, []).append(name)
    return "; ".join(f"{', '.join(names)} {text}" for text, names in by_text.items())


def _legend(record: SweepRecord) -> Iterator[str]:
    if not record.measured:
        return
    what = "tokens" if str(record.stage) == "prefill" else "sequences"
    yield (
        f"M: {what} of a step. Speedups: the mean of both runs of stock over ours, above 1 ours is "
        "faster; '=' where the difference is within the spread and the drift of stock, '~' where "
        "stock ran once only and no drift is known. Drift: how much slower the second run of stock "
        "was."
    )
    if record.settings.get("same_weights"):
        yield "Behind a slash: stock on the same pruned weights over ours."
    if any(cell.wide for cell in record.cells):
        yield f"M{WIDE}: a tensor of the step has more than 2^31 - 1 elements."


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _cells(record: SweepRecord, block: Block) -> Table:
    """One line per cell; what no cell of the block has, for want of a GPU, is no column."""
    cells = record.of(block)
    found = [it.figures for it in cells if it.figures is not None]
    columns = ["M", "ms", "spread", "tokens/s"]
    if any(it.clock_mhz is not None for it in found):
        columns += ["MHz", "W"]
    if any(it.joules_per_token is not None for it in found):
        columns.append("mJ/token")
    kinds = [kind for kind in KINDS if any(kind in it.shares for it in found)]
    table = _table(f"{record.stage}, {block}", "", *columns, *(f"{kind} %" for kind in kinds))
    for label, group in itertools.groupby(cells, key=lambda cell: cell.key.label):
        for cell in group:
            given = _measured(cell)
            table.add_row(label, *(given.get(column, "-") for column in [*columns, *kinds]))
        table.add_section()
    return table


def _m(cell: Cell) -> str:
    return f"{cell.m}{WIDE}" if cell.wide else str(cell.m)


def _measured(cell: Cell) -> dict[str, str]:
    """What is known of a cell, by column."""
    it = cell.figures
    if it is None:
        return {"M": _m(cell), "ms": str(cell.failure)}
    found = {
        "M": _m(cell),
        "ms": f"{it.median_us / 1e3:,.3f}",
        "spread": f"{100 * it.spread_us / it.median_us:.1f} %",
        "tokens/s": f"{it.tokens_per_s:,.0f}",
        **{kind: f"{100 * share:.0f}" for kind, share in it.shares.items()},
    }
    if it.clock_mhz is not None and it.power_w is not None:
        found |= {"MHz": f"{it.clock_mhz:.0f}", "W": f"{it.power_w:.0f}"}
    if it.joules_per_token is not None:
        found["mJ/token"] = f"{1e3 * it.joules_per_token:.3g}"
    return found


def _speedups(record: SweepRecord, block: Block) -> Table:
    """One line per M: stock, its drift, and what everything else gains over it."""
    compared = Comparison(record, block)
    ours = [variant for variant in compared.variants if str(variant.system) == "ours"]
    columns = ("speedup", "stock tokens/s", "drift", *map(str, ours))
    table = _table(f"{record.stage}, {block}", *columns)
    for m in compared.ms:
        baseline, rate = compared.baseline(m), "-"
        if baseline.us is not None:
            rate = f"{1e6 * m / baseline.us:,.0f}"
        known = [cell for it in (STOCK, *compared.variants) if (cell := compared.cell(it, m))]
        wide = WIDE if any(cell.wide for cell in known) else ""
        drift = "-" if baseline.drift is None else f"{100 * baseline.drift:+.1f} %"
        gains = (_gain(compared, variant, m) for variant in ours)
        table.add_row(f"M = {m}{wide}", rate, drift, *gains)
    return table


def _gain(compared: Comparison, variant: Variant, m: int) -> str:
    cell, ratio = compared.cell(variant, m), compared.ratio(variant, m)
    if cell is None:
        return "-"
    if cell.figures is None:
        return str(cell.failure)
    if ratio is None:
        return "?"
    text = _spelled(ratio, compared.baseline(m).drift is None)
    harder = compared.harder(variant, m)
    return text if harder is None else f"{text}/ {_spelled(harder, False)}"


def _spelled(ratio: Ratio, undrifted: bool) -> str:
    mark = "=" if not ratio.clear else "~" if undrifted else " "
    return f"{ratio.value:.2f}{mark}"
