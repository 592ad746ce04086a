"""Published figures of MoE decode under load, to stand beside measured ones and labelled so.

They are document B of the reports that this project started from; nobody of this project measured
them, and their vLLM, weights and prompts are other ones.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

from slidesparse.bench.counters.record import CountersRecord, LoadFigures
from slidesparse.bench.rows import model_name
from slidesparse.bench.sweep.job import Mode

FILE = "decode_load_h200.json"

SHOWN = (
    ("tokens_per_s", "tok/s", ",.0f"),
    ("sm_active", "SM active", ".1f"),
    ("sm_occupancy", "SM occupancy", ".1f"),
    ("tensor_active", "tensor", ".1f"),
    ("dram_active", "DRAM", ".1f"),
    ("power_w", "power W", ",.0f"),
    ("kv_percent", "KV %", ".1f"),
    ("running", "ran", ",.0f"),
)
"""Columns: field, heading, format."""


class Published(NamedTuple):
    """One published row.

    Args:
        model: a preset's name.
        mode: eager or graphs.
        concurrency: as the document has it.
        values: by the names of LoadFigures' quantities, and tokens_per_s; None is not told.
    """

    model: str
    mode: Mode
    concurrency: int
    values: dict[str, float | None]


@lru_cache(maxsize=1)
def published() -> tuple[Published, ...]:
    """Every row of the document, in its order."""
    data = json.loads((resources.files("slidesparse") / "data" / FILE).read_bytes())
    columns = data["columns"]
    return tuple(
        Published(load["model"], Mode(load["mode"]), row[0], dict(zip(columns, row, strict=True)))
        for load in data["loads"]
        for row in load["rows"]
    )


def beside_published(record: CountersRecord) -> str:
    """A Markdown table: each measured cell, and below it the document's row where it has one.

    Args:
        record: of a load benchmark.
    """
    lines = _head()
    for cell in record.cells:
        name = f"{model_name(cell.model)}, {cell.mode}"
        if cell.figures is None:
            empty = " |" * len(SHOWN)
            lines.append(f"| {name} | {cell.concurrency:,} | {cell.failure} |{empty}")
            continue
        lines.append(_line(name, cell.concurrency, "measured", _values(cell.figures)))
        for row in published():
            key = (model_name(cell.model), cell.mode, cell.concurrency)
            if (row.model, row.mode, row.concurrency) == key:
                lines.append(_line("", cell.concurrency, "published", row.values))
    return "\n".join([*lines, "", _source(record)])


def published_alone(model: str) -> str:
    """The same table of the document's rows alone, for as long as nothing was measured.

    Args:
        model: a preset's name.
    """
    rows = [
        _line(f"{row.model}, {row.mode}", row.concurrency, "published", row.values)
        for row in published()
        if row.model == model
    ]
    said = "Not measured yet. Published: document B, not measured here."
    return "\n".join([*_head(), *rows, "", said])


def _head() -> list[str]:
    """The first two lines of a table."""
    heads = [heading for _, heading, _ in SHOWN]
    return [
        f"| model, mode | C | | {' | '.join(heads)} |",
        f"| --- | ---: | --- |{' ---: |' * len(heads)}",
    ]


def _line(name: str, concurrency: int, whose: str, values: dict[str, float | None]) -> str:
    cells = []
    for field, _, form in SHOWN:
        value = values.get(field)
        cells.append("-" if value is None else format(value, form))
    return f"| {name} | {concurrency:,} | {whose} | {' | '.join(cells)} |"


def _values(figures: LoadFigures) -> dict[str, float | None]:
    means: dict[str, float | None] = {name: figures.mean(name) for name in figures.quantities}
    return {**means, "tokens_per_s": figures.tokens_per_s}


def _source(record: CountersRecord) -> str:
    settings, versions = record.settings, record.versions
    costs = [
        f"{it.cost.percent:+.2f} % ({cell.mode}, C={cell.concurrency:,})"
        for cell in record.measured
        if (it := cell.figures) is not None and it.cost is not None
    ]
    cost = f" Sampling cost {', '.join(costs)}." if costs else ""
    return (
        "Percent of the peak for SM active, SM occupancy, tensor and DRAM. Measured: "
        f"{record.fingerprint.name}, vLLM {versions.get('vllm', 'of unknown version')}, prompts of "
        f"{settings['prompt']} tokens, {settings['max_tokens']} new ones each, a window of "
        f"{settings['seconds']:g} s in a closed loop, random weights, on {record.created[:10]} "
        f"(commit {record.commit[:12]}).{cost} Published: document B, not measured here."
    )
