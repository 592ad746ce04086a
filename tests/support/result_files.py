"""A result file of each kind, none of them measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import accuracy_records
import agreement_records
import allocation_records
import attention_records
import bench_records
import capacity_records
import counters_records
import effort_records
import linear_records
import published_tables
import search_records
import sweep_records
from click.testing import CliRunner

from slidesparse.bench.accuracy import record as accuracy_record
from slidesparse.bench.agreement import record as agreement_record
from slidesparse.bench.allocation import record as allocation_record
from slidesparse.bench.attention import record as attention_record
from slidesparse.bench.capacity import check_record as capacity_check_record
from slidesparse.bench.counters import record as counters_record
from slidesparse.bench.kernels import record as kernel_record
from slidesparse.bench.linear import record as linear_record
from slidesparse.bench.published import record as published_record
from slidesparse.bench.published.tables import import_table
from slidesparse.bench.search import effort_record, record
from slidesparse.bench.sweep import record as sweep_record
from slidesparse.cli.main import cli

WRITERS: dict[str, tuple[Callable[[Any, Path], None], Callable[[], Any]]] = {
    "slidesparse-search": (record.write_json, search_records.make_record),
    "slidesparse-kernels-bench": (kernel_record.write_json, bench_records.make_record),
    "slidesparse-linear-bench": (linear_record.write_json, linear_records.make_record),
    "slidesparse-sweep": (sweep_record.write_json, sweep_records.make_record),
    "slidesparse-accuracy": (accuracy_record.write_json, accuracy_records.make_accuracy),
    "slidesparse-allocation": (allocation_record.write_json, allocation_records.make_record),
    "slidesparse-agreement": (agreement_record.write_json, agreement_records.make_record),
    "slidesparse-attention": (attention_record.write_json, attention_records.make_record),
    "slidesparse-capacity-check": (capacity_check_record.write_json, capacity_records.make_check),
    "slidesparse-counters": (counters_record.write_json, counters_records.record),
    "slidesparse-effort-comparison": (effort_record.write_json, effort_records.make_record),
}
"""By kind, what writes it and what makes the record."""

PUBLISHED = "slidesparse-published"
COMPARISON = "slidesparse-comparison"
CAPACITY = "slidesparse-capacity"
KINDS = (*WRITERS, PUBLISHED, COMPARISON, CAPACITY)


def write_kind(kind: str, folder: Path) -> Path:
    """Write a file of a kind."""
    path = folder / f"{kind}.json"
    if kind == PUBLISHED:
        steps = import_table(published_tables.write_table(folder, published_tables.STEPS), "H100")
        gemms = import_table(published_tables.write_table(folder, published_tables.GEMMS), "H100")
        both = replace(steps.record, gemms=gemms.record.gemms)
        published_record.write_json(both, path)
        return path
    if kind == CAPACITY:
        return _made_by("plan", "--model", "qwen3-8b", "--gpu", "h200", path=path)
    if kind == COMPARISON:
        sweep = write_kind("slidesparse-sweep", folder)
        other = shutil.copy(sweep, folder / "other.json")
        return _made_by("compare", str(sweep), str(other), path=path)
    write, make = WRITERS[kind]
    write(make(), path)
    return path


def _made_by(*arguments: str, path: Path) -> Path:
    """What a command writes that needs no GPU."""
    done = CliRunner().invoke(cli, [*arguments, "--json", str(path)])
    assert path.is_file(), done.output
    return path
