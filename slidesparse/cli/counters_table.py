"""The tables of `slidesparse bench decode --counters`: load, eager beside graphs, headroom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from slidesparse.bench.counters.headroom import graphs_over_eager, headroom, short_of
from slidesparse.bench.counters.record import MOST_COST, CountersRecord, LoadCell, LoadFigures
from slidesparse.bench.counters.sampler import Source
from slidesparse.bench.sweep.job import Mode
from slidesparse.counters import METRICS
from slidesparse.monitor import Telemetry

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NOT_TOLD = "n/a"

COUNTERS = (
    ("SM", "sm_active"),
    ("occ.", "sm_occupancy"),
    ("tensor", "tensor_active"),
    ("int tensor", "imma_active"),
    ("DRAM", "dram_active"),
)
"""Columns in percent: heading and quantity."""

REST = (
    ("W", "power_w", ",.0f"),
    ("temp.", "temperature_c", ".0f"),
    ("SM MHz", "sm_mhz", ",.0f"),
    ("KV %", "kv_percent", ".1f"),
    ("ran", "running", ",.0f"),
    ("wait", "waiting", ",.0f"),
)


def print_load(record: CountersRecord, console: Console) -> None:
    """Print the tables of a load benchmark and what belongs below them."""
    console.print(_cells(record))
    if record.measured:
        console.print(_beside(record))
        console.print(_headroom(record))
    for line in (*_legend(record), *_notes(record), *_ran(record), *_failures(record)):
        console.print(line, soft_wrap=True, markup=False)
    console.print(
        f"{len(record.measured)} of {len(record.cells)} cells in {record.seconds:.1f} s, seed "
        f"{record.settings['seed']}",
        soft_wrap=True,
        markup=False,
    )


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _cells(record: CountersRecord) -> Table:
    heads = [head for head, _ in COUNTERS] + [head for head, *_ in REST]
    table = _table("Load, means over the window", "", "C", "tok/s", "spread", *heads, "preempt.")
    for cell in record.cells:
        name, concurrency = _name(record, cell), f"{cell.concurrency:,}"
        it = cell.figures
        if it is None:
            table.add_row(name, concurrency, str(cell.failure))
            continue
        table.add_row(
            name,
            concurrency,
            f"{it.tokens_per_s:,.0f}",
            f"{100 * it.spread / it.tokens_per_s:.1f} %",
            *(_told(it.mean(quantity), ".1f") for _, quantity in COUNTERS),
            *(_told(it.mean(quantity), form) for _, quantity, form in REST),
            f"{it.preemptions:,}",
        )
    return table


def _beside(record: CountersRecord) -> Table:
    table = _table(
        "Eager beside CUDA graphs", "", "C", "eager tok/s", "graphs tok/s", "ratio", "J/tok"
    )
    shown = set()
    for cell in record.cells:
        place = (cell.model, cell.dtype, cell.concurrency)
        if place in shown:
            continue
        shown.add(place)
        both = [record.figures(cell.model, cell.dtype, mode, cell.concurrency) for mode in Mode]
        rates = [_each(it, lambda it: f"{it.tokens_per_s:,.0f}") for it in both]
        joules = " / ".join(_each(it, lambda it: _told(it.joules_per_token, ".3g")) for it in both)
        ratio = graphs_over_eager(record, cell)
        spelled = "-" if ratio is None else f"{ratio.value:.2f}{'' if ratio.clear else '='}"
        name = _name(record, cell, mode=False)
        table.add_row(name, f"{cell.concurrency:,}", *rates, spelled, joules)
    return table


def _headroom(record: CountersRecord) -> Table:
    table = _table(
        "Headroom: what is left of each resource by itself",
        *("", "C", "SM %", "DRAM %", "power W", "KV %", "KV tokens"),
    )
    for cell in record.measured:
        assert cell.figures is not None
        left = headroom(cell.figures)
        table.add_row(
            _name(record, cell),
            f"{cell.concurrency:,}",
            _told(left.sm_percent, ".1f"),
            _told(left.dram_percent, ".1f"),
            _told(left.power_w, ",.0f"),
            _told(left.kv_percent, ".1f"),
            _told(left.kv_tokens, ",.0f"),
        )
    return table


def _legend(record: CountersRecord) -> list[str]:
    settings = record.settings
    return [
        f"A closed loop: C requests of {settings['prompt']} + {settings['max_tokens']} tokens are "
        "there all the time; tok/s are generated tokens of the steady state, start and drain cut "
        "off. spread: interquartile range of its parts. =: inside the spreads.",
        "SM: SMs with a warp; occ.: resident warps of the most that fit; tensor: tensor pipe, all "
        "types; int tensor: integer products alone, which does not see FP8; DRAM: of the "
        "theoretical bandwidth; all in percent. temp.: of the chip in degrees Celsius. ran, wait: "
        "sequences. J/tok: eager / graphs. Eager leaves out torch.compile as well as CUDA graphs.",
        "Headroom is not additive: SM time that one kernel leaves may be of no use to another, and "
        "at the power limit whatever is added slows both down.",
    ]


def _notes(record: CountersRecord) -> Iterator[str]:
    """What is peculiar to single cells, one line each."""
    yield from _not_told(record)
    for cell in record.measured:
        it = cell.figures
        assert it is not None
        yield (
            f"{cell.key}: cut off {it.cut.lead_s:.1f} s and {it.cut.lead_tokens:,} tokens before "
            f"the window of {it.window_s:.1f} s, {it.cut.dropped:,} unfinished requests after it; "
            f"{it.samples} samples, {it.finished:,} requests ended"
        )
        short = short_of(it, cell.concurrency)
        if short:
            yield f"{cell.key}: {short}"
        if it.cost is not None:
            yield f"{cell.key}: {cost_line(it)}"


def _not_told(record: CountersRecord) -> Iterator[str]:
    """Why columns say n/a, one line for each reason."""
    silent: dict[tuple[str, str], list[str]] = {}
    for cell in record.measured:
        it = cell.figures
        assert it is not None
        told = set(it.quantities)
        for teller, names in ((it.source, tuple(METRICS)), ("NVML", Telemetry._fields)):
            missing = [name for name in names if name not in told]
            if teller is Source.NONE:
                text = f"No hardware counters: {it.why or '--counter-source none'}."
                silent.setdefault((text, ""), [])
            elif missing:
                text = f"n/a: {teller} did not tell {', '.join(missing)}"
                silent.setdefault((text, " of "), []).append(str(cell.key))
    for (text, of), keys in silent.items():
        yield f"{text}{of}{', '.join(keys)}"


def cost_line(figures: LoadFigures) -> str:
    """What sampling cost in a cell where that was measured."""
    cost = figures.cost
    assert cost is not None
    text = (
        f"sampling costs {cost.percent:+.2f} % of the throughput (median of {len(cost.without)} "
        f"pairs of stretches with and without it, spread {cost.spread:.2f} %, standard error "
        f"{cost.error:.2f} %)"
    )
    if cost.percent - 2 * cost.error > MOST_COST:
        return f"{text}: MORE than {MOST_COST:g} %, raise --sample-ms"
    if cost.percent + 2 * cost.error > MOST_COST:
        return f"{text}: whether it is less than {MOST_COST:g} % is inside the error"
    return f"{text}: less than {MOST_COST:g} %"


def _ran(record: CountersRecord) -> Iterator[str]:
    """What was built, one line for each build."""
    for index, built in enumerate(record.ran):
        whose: dict[str, list[str]] = {}
        for cell in record.cells:
            if cell.ran == index:
                name = f"{cell.model} {cell.dtype} {cell.mode}"
                whose.setdefault(name, []).append(str(cell.concurrency))
        said = "; ".join(f"{name}: {text}" for name, text in built.items())
        for name, concurrencies in whose.items():
            yield f"{name} C={','.join(concurrencies)}: {said}"


def _failures(record: CountersRecord) -> list[str]:
    return [f"FAILED {it.key}: {it.failure}: {it.reason}" for it in record.failed]


def _name(record: CountersRecord, cell: LoadCell, mode: bool = True) -> str:
    """A cell's row, without what all rows share."""
    parts = [cell.model] if len({it.model for it in record.cells}) > 1 else []
    if len({it.dtype for it in record.cells}) > 1:
        parts.append(str(cell.dtype))
    if mode:
        parts.append(str(cell.mode))
    return " ".join(parts) or cell.model


def _each(figures: LoadFigures | None, say: Callable[[LoadFigures], str]) -> str:
    return "-" if figures is None else say(figures)


def _told(value: float | None, form: str) -> str:
    return NOT_TOLD if value is None else format(value, form)
