"""The tables of `slidesparse bench attention`: what each backend took, the bound, the targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from slidesparse.bench.attention.problem import AttentionProblem
    from slidesparse.bench.attention.record import (
        AttentionRecord,
        AttentionRow,
        ProblemBound,
    )

NONE = "-"
REACH = {"yes": "yes", "multiplied": "maybe", "no": "NO"}


def print_attention(record: AttentionRecord, console: Console) -> None:
    """Print the tables of a run and what belongs below them."""
    for known in record.bounds:
        if record.of(known.problem) or known.bound is not None:
            console.print(_times(record, known))
    if any(known.targets for known in record.bounds):
        console.print(_targets(record))
    for line in (*legend(record), *notes(record), *left_out(record), *verdicts(record)):
        console.print(line, soft_wrap=True, markup=False)
    if record.rows:
        console.print(
            f"{len(record.rows)} times in {record.seconds:.1f} s, seed {record.settings['seed']}",
            soft_wrap=True,
            markup=False,
        )


def legend(record: AttentionRecord) -> list[str]:
    """How to read the tables, and where the bound comes from."""
    lines = [
        "us/head: total / H; us/(B H): total / (batch x H). TFLOP/s: 4 B H S^2 D, causal with "
        "exactly S (S + 1) / 2 scores a head (half of S^2 but for 1 / S). GB/s: Q, K, V read once "
        "and O written once."
    ]
    if record.rows:
        measured = record.fingerprint is not None and record.fingerprint.is_gpu
        cold = "cold L2, CUDA graphs" if measured else "warm caches"
        long = [row.sustained.seconds for row in record.rows if row.sustained is not None]
        alone = (
            f" alone, tensor, DRAM, MHz, W: of each alone, {min(long):.1f} s without a pause."
            if long
            else ""
        )
        lines.append(
            f"Medians of interleaved runs, {cold}; spread is the interquartile range. error: of "
            "the worst row over its root mean square, against torch's math backend in float32 on "
            f"{record.rows[0].checked} of {_heads(record)} heads; up to twice that of plain torch "
            f"({max(row.plain_error for row in record.rows):.1e}) is right.{alone}"
        )
    if record.rates is None:
        lines.append(
            "No bound: the rates of this device are not known; --gpu NAME computes that of a GPU."
        )
    else:
        lines.append(f"Bound: the longest of the three floors. {record.rates}.")
        lines += [_floors(known) for known in record.bounds if known.bound is not None]
    return lines


def _floors(known: ProblemBound) -> str:
    it = known.bound
    assert it is not None
    return (
        f"Floors, {known.problem.mask}: tensor cores {it.tensor_us / 1e3:,.3f} ms, exponentials "
        f"{it.exponential_us / 1e3:,.3f} ms, memory {it.memory_us / 1e3:,.3f} ms; {it.resource} "
        "bound it."
    )


def notes(record: AttentionRecord) -> list[str]:
    """What is special about how a backend ran, and why there are no counters; each said once."""
    found: dict[str, None] = {}
    for row in record.rows:
        if row.how:
            found[f"{row.backend}: {row.how}"] = None
        if row.sustained is not None and row.sustained.no_counters:
            found[f"no tensor % and DRAM %: {row.sustained.no_counters}"] = None
    return list(found)


def left_out(record: AttentionRecord) -> list[str]:
    """Why backends have no time; one that says the same of every problem is named once."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for it in record.left_out:
        found.setdefault((it.backend, str(it.kind), it.reason), []).append(it.problem.mask)
    lines = []
    for (backend, kind, reason), masks in found.items():
        some = f" ({', '.join(masks)})" if len(masks) < len(record.bounds) else ""
        word = kind.upper() if kind == "wrong" else kind
        lines.append(f"{backend}{some} {word}: {reason}")
    return lines


def verdicts(record: AttentionRecord) -> list[str]:
    """Which targets the GPU cannot reach, and what they would need; one line per problem."""
    lines = []
    for known in record.bounds:
        bound = known.bound
        beyond = [it for it in known.targets if str(it.reachable) == "no"]
        if bound is not None and beyond:
            times = ", ".join(f"{it.target_us:g}" for it in beyond)
            rates = ", ".join(_rate(it.tflops) for it in beyond)
            factors = ", ".join(f"{it.factor:.1f}" for it in beyond if it.factor is not None)
            lines.append(
                f"OUT OF REACH, {known.problem.mask}: {times} {beyond[0].unit.text} would need "
                f"{rates}; the bound is {beyond[0].bound_us:.4g} us at "
                f"{_rate(known.problem.tflops(bound.us))}, {factors} times the target"
            )
        if bound is not None and any(str(it.reachable) == "multiplied" for it in known.targets):
            lines.append(
                f"maybe, {known.problem.mask}: the bound is that of the special-function units; "
                "code that multiplies some exponentials out instead is bound by "
                f"{bound.hard_us / 1e3:,.3f} ms only"
            )
    return lines


def _rate(tflops: float) -> str:
    """TFLOP/s, or PFLOP/s where there are thousands."""
    return f"{tflops / 1e3:.1f} PFLOP/s" if tflops >= 1e4 else f"{tflops:,.0f} TFLOP/s"


def _figure(rate: float) -> str:
    """A rate for a column: whole, or three digits of a small one."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.3g}"


def _heads(record: AttentionRecord) -> int:
    it = record.rows[0].problem
    return it.batch * it.heads


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=title,
        title_justify="left",
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _times(record: AttentionRecord, known: ProblemBound) -> Table:
    """A line per backend and one of the bound; what nobody told is no column."""
    rows = record.of(known.problem)
    given = [_measured(record, row) for row in rows]
    if known.bound is not None:
        it, us = known.problem, known.bound.us
        given.append({"": "bound", **_rates(it, us), "bound %": "100"})
    columns = [
        *("ms", "spread", "us/head", "us/(B H)", "TFLOP/s", "GB/s"),
        *("bound %", "alone ms", "tensor %", "DRAM %", "MHz", "W", "error"),
    ]
    shown = [column for column in columns if any(column in line for line in given)]
    table = _table(str(known.problem), "", *shown)
    for line in given:
        table.add_row(line[""], *(line.get(column, NONE) for column in shown))
    return table


def _rates(problem: AttentionProblem, us: float) -> dict[str, str]:
    return {
        "ms": f"{us / 1e3:,.3f}",
        "us/head": f"{problem.per_head(us):,.2f}",
        "us/(B H)": f"{problem.per_batch_head(us):,.3f}",
        "TFLOP/s": _figure(problem.tflops(us)),
        "GB/s": _figure(problem.gbs(us)),
    }


def _measured(record: AttentionRecord, row: AttentionRow) -> dict[str, str]:
    """What is known of a backend, by column."""
    found = {
        "": row.backend,
        **_rates(row.problem, row.median_us),
        "spread": f"{100 * row.spread_us / row.median_us:.1f} %",
        "error": f"{row.error:.1e}",
    }
    percent, long = record.percent_of_bound(row), row.sustained
    if percent is not None:
        found["bound %"] = f"{percent:.0f}"
    if long is None:
        return found
    found["alone ms"] = f"{long.us / 1e3:,.3f}"
    given = {
        "tensor %": long.counters.get("tensor_active"),
        "DRAM %": long.counters.get("dram_active"),
        "MHz": long.clock_mhz,
        "W": long.power_w,
    }
    return found | {name: f"{value:.0f}" for name, value in given.items() if value is not None}


def _targets(record: AttentionRecord) -> Table:
    """A line per problem and target."""
    first = next(it for known in record.bounds for it in known.targets)
    columns = ("target", "total ms", "TFLOP/s", "bound", "reachable", "bound/target")
    fastest = bool(record.rows)
    more = ("measured", "measured/target") if fastest else ()
    table = _table(f"Targets, {first.unit.text}", "", *columns, *more)
    for known in record.bounds:
        rows = record.of(known.problem)
        best = min((row.median_us for row in rows), default=None)
        for it in known.targets:
            cells = [f"{it.target_us:g}", f"{it.total_us / 1e3:,.4g}", _figure(it.tflops)]
            if it.bound_us is None or it.factor is None:
                cells += [NONE, "unknown", NONE]
            else:
                cells += [f"{it.bound_us:,.4g}", REACH[str(it.reachable)]]
                cells.append(f"{it.factor:,.2f}")
            if fastest and best is not None:
                each = best / it.unit.parts(known.problem)
                cells += [f"{each:,.4g}", f"{each / it.target_us:,.2f}"]
            elif fastest:
                cells += [NONE, NONE]
            table.add_row(known.problem.mask, *cells)
    return table
