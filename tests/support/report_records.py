"""Result files for reports: one of every kind that has figures, measured by nobody."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import accuracy_records
import allocation_records
import bench_records
import linear_records
import search_records
from sweep_records import BLOCK, H200, OURS, OURS_SIX, STOCK, make_heading, make_sweep, time_of

from slidesparse.bench.accuracy import record as accuracy_record
from slidesparse.bench.allocation import record as allocation_record
from slidesparse.bench.counters import record as counters_record
from slidesparse.bench.counters.record import (
    CountersRecord,
    Cut,
    LoadCell,
    LoadFigures,
    Quantity,
)
from slidesparse.bench.counters.sampler import Source
from slidesparse.bench.kernels import record as kernel_record
from slidesparse.bench.kinds import read_results
from slidesparse.bench.linear import record as linear_record
from slidesparse.bench.rows import ResultFile
from slidesparse.bench.search import record
from slidesparse.bench.sweep import record as sweep_record
from slidesparse.bench.sweep.book import SweepBook
from slidesparse.bench.sweep.job import CellTime, Mode, Variant
from slidesparse.bench.sweep.plan import Key
from slidesparse.bench.sweep.record import Session, SweepRecord
from slidesparse.bench.sweep.runner import Outcome
from slidesparse.problem import DType

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
"""A name that breaks a page which does not escape it."""

MS = (512, 1024, 4096, 16384, 65536)

LOADS = {
    (Mode.EAGER, 1): (25.0, 3.6, 0.6, 0.3, 1.8, 0.1),
    (Mode.EAGER, 256): (5569.0, 20.0, 6.7, 3.0, 5.3, 13.7),
    (Mode.EAGER, 1024): (16610.0, 55.3, 19.2, 11.6, 21.9, 46.7),
    (Mode.GRAPHS, 1): (194.0, 27.5, 4.6, 2.0, 13.6, 0.0),
    (Mode.GRAPHS, 256): (15703.0, 60.1, 19.7, 10.1, 24.3, 0.1),
    (Mode.GRAPHS, 1024): (14903.0, 50.0, 17.1, 10.6, 21.4, 0.0),
}
"""Tokens per second, then SM active, SM occupancy, tensor, DRAM and KV cache in percent."""


def make_sweep_record(model: str = BLOCK.model) -> SweepRecord:
    """Five M: 6:8 is 0.9 to 1.25 times as fast as stock; at M=1024 it is no different."""
    sweep = make_sweep(ms=MS, models=(BLOCK.model,))
    book = SweepBook(make_heading(sweep))
    gains = {OURS: (1.0, 1.01, 1.02, 1.02, 1.03), OURS_SIX: (0.9, 1.0, 1.12, 1.2, 1.25)}
    for variant, again in ((STOCK, False), (OURS, False), (OURS_SIX, False), (STOCK, True)):
        for index, m in enumerate(MS):
            gain = gains.get(variant, (1.0,) * len(MS))[index]
            us = 2.0 * m / gain
            book.add(_outcome(variant, m, us, 0.004 * us, again))
    found = book.record(interrupted=False)
    cells = tuple(replace(cell, model=model) for cell in found.cells)
    return replace(found, cells=cells, models={model: "7B"})


def _outcome(variant: Variant, m: int, us: float, spread: float, again: bool) -> Outcome:
    shares = {"gemm": 0.66, "fused": 0.1, "attention": 0.18, "other": 0.06}
    if not variant.pattern.dense:
        shares = {"gemm": 0.58, "fused": 0.13, "attention": 0.22, "other": 0.07}
    taken: CellTime = replace(time_of(m, us, spread), shares=shares)
    return Outcome(Key(BLOCK, variant, again, m), taken, {"vllm": "0.25.1"})


def make_counters(counted: bool = True) -> CountersRecord:
    """Eager and graphs at three concurrencies.

    Args:
        counted: whether the GPU has hardware counters.
    """
    cells = tuple(
        LoadCell("qwen3-30b-a3b", DType.FP8, mode, c, 0, 0, _load(values, c, counted), None, "")
        for (mode, c), values in LOADS.items()
    )
    return CountersRecord(
        fingerprint=H200,
        versions={"slidesparse": "0.1.0", "vllm": "0.25.1"},
        settings={"seed": 7, "prompt": 30, "outputs": 512},
        models={"qwen3-30b-a3b": "48 layers"},
        interrupted=False,
        sessions=(Session("2026-03-03T10:00:00+00:00", "0123456789abcdef", 600.0, ("a board",)),),
        ran=({"vllm": "0.25.1"},),
        cells=cells,
        commit="0123456789abcdef",
        created="2026-03-03T10:00:00+00:00",
    )


def _load(values: tuple[float, ...], concurrency: int, counted: bool) -> LoadFigures:
    rate, *percents = values
    names = ("sm_active", "sm_occupancy", "tensor_active", "dram_active")
    quantities = {
        "running": _quantity(float(concurrency)),
        "waiting": _quantity(0.0),
        "kv_percent": _quantity(percents[-1]),
        "power_w": _quantity(135.0 + concurrency / 4),
    }
    if counted:
        quantities |= {n: _quantity(v) for n, v in zip(names, percents[:-1], strict=True)}
    return LoadFigures(
        tokens=round(rate * 10),
        seconds=10.0,
        steps=100,
        tokens_per_s=round(rate * 10) / 10.0,
        rates=(rate,),
        spread=0.0,
        cut=Cut(5.0, 1000, concurrency),
        quantities=quantities,
        samples=100,
        joules_per_token=0.03,
        finished=10,
        preemptions=0,
        window_s=10.0,
        kv_tokens=1_000_000,
        power_limit_w=700.0,
        source=Source.GPM if counted else Source.NONE,
        why="" if counted else "the GPU has no GPM",
        cost=None,
    )


def _quantity(value: float) -> Quantity:
    return Quantity(value, 0.0, value, value)


def write_results(folder: Path, model: str = BLOCK.model) -> list[Path]:
    """Write a file of every kind.

    Args:
        folder: that they go into.
        model: of the sweep.
    """
    writers = {
        "sweep": (sweep_record.write_json, make_sweep_record(model)),
        "linear": (linear_record.write_json, linear_records.make_record()),
        "search": (record.write_json, search_records.make_record()),
        "kernels": (kernel_record.write_json, bench_records.make_record()),
        "counters": (counters_record.write_json, make_counters()),
        "accuracy": (accuracy_record.write_json, accuracy_records.make_accuracy()),
        "allocation": (allocation_record.write_json, allocation_records.make_record()),
    }
    paths = []
    for name, (write, made) in writers.items():
        paths.append(folder / f"{name}.json")
        write(made, paths[-1])  # type: ignore[operator]
    return paths


@cache
def hostile_page() -> str:
    """A page with figures of every kind, a name in which is HOSTILE; made once for all tests."""
    from slidesparse.bench.report.assemble import build_report
    from slidesparse.bench.report.draw import Drawing
    from slidesparse.bench.report.page import to_html

    with tempfile.TemporaryDirectory() as folder:
        files = read_all(write_results(Path(folder), model=HOSTILE))
    report = build_report(files, f"Report {HOSTILE}")
    return to_html(report, {chart.key: Drawing(chart) for chart in report.charts})


def read_all(paths: list[Path]) -> list[ResultFile]:
    """The files as a report takes them."""
    return [read_results(path) for path in paths]
