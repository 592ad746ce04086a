"""What the result file of `slidesparse bench decode --counters` says, as rows and as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from slidesparse.bench.counters.record import (
    FORM,
    CountersRecord,
    LoadCell,
    LoadFigures,
    read_json,
)
from slidesparse.bench.result_file import as_cell, write_rows
from slidesparse.bench.rows import Row, Value, model_name
from slidesparse.candidate import Provenance
from slidesparse.counters import METRICS

__all__ = ["FORM", "read_json", "rows", "write_csv"]

QUANTITIES = (
    *METRICS,
    *("power_w", "temperature_c", "sm_mhz", "memory_mhz", "running", "waiting", "kv_percent"),
)
"""In the order of the CSV's columns."""

CSV_COLUMNS = (
    *("model", "dtype", "mode", "concurrency", "tokens_per_s", "spread"),
    *QUANTITIES,
    *("joules_per_token", "preemptions", "finished", "kv_tokens", "power_limit_w"),
    *("seconds", "steps", "samples", "lead_s", "lead_tokens", "dropped"),
    *("counter_source", "sampling_cost_percent", "sampling_cost_spread", "failure", "reason"),
)


def rows(record: CountersRecord) -> tuple[Row, ...]:
    """Tokens per second of every cell that was measured.

    What the counters say is no row: more activity is neither better nor worse by itself.
    """
    return tuple(
        _row(record, cell, cell.figures) for cell in record.cells if cell.figures is not None
    )


def load_workload(record: CountersRecord, cell: LoadCell) -> dict[str, Value]:
    """What must be equal for two loads to be compared; the mode is in the variant."""
    settings = record.settings
    return {
        "what": "load",
        "engine": "vllm",
        "model": model_name(cell.model),
        "tp": int(settings.get("tp", 1)),
        "dtype": str(cell.dtype),
        "concurrency": cell.concurrency,
        "prompt": int(settings.get("prompt", 0)),
        "max_tokens": int(settings.get("max_tokens", 0)),
    }


def _row(record: CountersRecord, cell: LoadCell, figures: LoadFigures) -> Row:
    ran = None if cell.ran is None or not record.ran else record.ran[cell.ran]
    return Row(
        workload=load_workload(record, cell),
        variant={"system": "stock", "mode": str(cell.mode)},
        metric="throughput",
        unit="tok/s",
        value=figures.tokens_per_s,
        better="higher",
        provenance=Provenance.MEASURED,
        spread=figures.spread,
        tokens_per_s=figures.tokens_per_s,
        joules_per_token=figures.joules_per_token,
        power_w=figures.mean("power_w"),
        how="" if ran is None else ran.get("linears", ""),
    )


def write_csv(record: CountersRecord, path: Path) -> None:
    """Write one line per cell.

    Raises:
        UsageError: the file cannot be written.
    """
    write_rows(path, CSV_COLUMNS, _lines(record))


def _lines(record: CountersRecord) -> Iterator[Sequence[object]]:
    for cell in record.cells:
        failure = "" if cell.failure is None else str(cell.failure)
        yield [
            *(cell.model, cell.dtype, cell.mode, cell.concurrency),
            *_figures(cell.figures),
            *(failure, cell.reason),
        ]


def _figures(it: LoadFigures | None) -> Iterator[str]:
    """The columns from tokens_per_s on, empty where the cell failed or a quantity is not there."""
    if it is None:
        yield from [""] * (CSV_COLUMNS.index("failure") - CSV_COLUMNS.index("tokens_per_s"))
        return
    yield from (f"{it.tokens_per_s:.2f}", f"{it.spread:.2f}")
    yield from (as_cell(it.mean(name)) for name in QUANTITIES)
    yield as_cell(it.joules_per_token)
    yield from (str(it.preemptions), str(it.finished), str(it.kv_tokens))
    yield as_cell(it.power_limit_w)
    yield from (f"{it.seconds:.3f}", str(it.steps), str(it.samples), f"{it.cut.lead_s:.3f}")
    yield from (str(it.cut.lead_tokens), str(it.cut.dropped), str(it.source))
    yield "" if it.cost is None else f"{it.cost.percent:.4f}"
    yield "" if it.cost is None else f"{it.cost.spread:.4f}"
