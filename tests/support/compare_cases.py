"""Result files for tests of comparisons: rows as records give them, on two GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import sweep_records
from sweep_records import OURS, OURS_SIX, STOCK, make_heading, make_sweep, outcome

from slidesparse.bench.rows import ResultFile, Row, Value
from slidesparse.bench.sweep.book import SweepBook
from slidesparse.bench.sweep.record import write_json
from slidesparse.candidate import Provenance
from slidesparse.devices import Fingerprint

H200 = sweep_records.H200
H100 = replace(H200, name="NVIDIA H100 80GB HBM3", memory_mib=81079, driver="575")

STEP: Mapping[str, Value] = {"what": "step", "model": "qwen2.5-7b", "dtype": "fp8_e4m3", "m": 512}


def row(
    value: float,
    spread: float | None = None,
    workload: Mapping[str, Value] = STEP,
    variant: Mapping[str, Value] | None = None,
    metric: str = "time",
    unit: str = "us",
    better: Literal["lower", "higher"] = "lower",
    **others: Any,
) -> Row:
    return Row(
        workload=workload,
        variant={"system": "stock"} if variant is None else variant,
        metric=metric,
        unit=unit,
        value=value,
        better=better,
        provenance=others.pop("provenance", Provenance.MEASURED),
        spread=spread,
        **others,
    )


def rate(value: float, **others: Any) -> Row:
    return row(value, metric="throughput", unit="tok/s", better="higher", **others)


def file(
    *rows: Row,
    name: str = "a.json",
    fingerprint: Fingerprint | None = H200,
    machine: str = "",
    settings: Mapping[str, Any] | None = None,
    kind: str = "slidesparse-sweep",
    command: str = "slidesparse bench prefill or decode",
    versions: Mapping[str, str] | None = None,
    commit: str = "0123456789abcdef",
) -> ResultFile:
    return ResultFile(
        path=Path(name),
        kind=kind,
        command=command,
        fingerprint=fingerprint,
        machine=machine or (fingerprint.name if fingerprint else "H100 (published)"),
        versions={"slidesparse": "0.1.0"} if versions is None else versions,
        settings={"repeats": 3, "seed": 7} if settings is None else settings,
        commit=commit,
        created="2026-03-03T10:00:00+00:00",
        rows=rows,
        record=None,
    )


def published(*rows: Row, name: str = "p.json", machine: str = "H100 (published)") -> ResultFile:
    figures = tuple(replace(each, provenance=Provenance.PUBLISHED, spread=None) for each in rows)
    return file(*figures, name=name, fingerprint=None, machine=machine, settings={"table": "x"})


def write_sweep(
    path: Path, fingerprint: Fingerprint, factor: float, repeats: int = 3, seed: int = 7
) -> Path:
    """A real result file: stock, ours dense and ours 6:8 at M=512 and 4096.

    Args:
        path: of the file.
        fingerprint: of the machine.
        factor: what all times are multiplied with.
        repeats: as the settings say.
        seed: likewise.
    """
    sweep = make_sweep(repeats=repeats, seed=seed)
    book = SweepBook(make_heading(sweep, fingerprint=fingerprint))
    for variant, short, long in (
        (STOCK, 1000.0, 8000.0),
        (OURS, 990.0, 8000.0),
        (OURS_SIX, 800.0, 6400.0),
    ):
        book.add(outcome(variant, 512, short * factor, 10.0 * factor))
        book.add(outcome(variant, 4096, long * factor, 80.0 * factor))
    write_json(book.record(interrupted=False), path)
    return path
