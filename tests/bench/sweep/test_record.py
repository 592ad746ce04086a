"""Result files of sweeps: read back as written, damaged ones refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from damage import Change, damage_said
from sweep_records import BLOCK, make_record, time_of

from slidesparse.bench.sweep import record as module
from slidesparse.bench.sweep.record import Figures, read_json, write_json
from slidesparse.bench.sweep.runner import Kind


def test_a_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    record, path = make_record(), tmp_path / "sweep.json"
    write_json(record, path)
    assert read_json(path) == record
    data = json.loads(path.read_text())
    assert (data["kind"], data["schema_version"]) == ("slidesparse-sweep", 1)
    cell = data["cells"][4]
    assert (cell["system"], cell["pattern"], cell["m"], cell["again"]) == (
        "ours",
        "6:8",
        512,
        False,
    )
    assert cell["figures"]["median_us"] == 870.0
    assert cell["figures"]["step_us"] == [860.0, 865.0, 870.0, 875.0, 880.0]
    assert data["ran"][cell["ran"]]["linears"] == "ours 6:8"
    assert data["settings"]["seed"] == 7
    assert data["versions"]["vllm"] == "0.25.1"


def test_figures_follow_from_the_samples() -> None:
    figures = Figures.of(time_of(4096, 8000.0, 40.0))
    assert (figures.median_us, figures.spread_us) == (8000.0, 40.0)
    assert figures.tokens_per_s == pytest.approx(512_000.0)
    assert sum(figures.shares.values()) == pytest.approx(1.0)


def test_a_record_knows_its_cells() -> None:
    record = make_record()
    assert record.blocks == (BLOCK,)
    assert len(record.of(BLOCK)) == 8
    (failed,) = record.failed
    assert (failed.failure, failed.reason) == (Kind.CRASH, "killed by SIGSEGV")
    assert failed.median_us is None
    assert len(record.measured) == 7
    assert [cell.wide for cell in record.cells] == [*[False] * 7, True]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d["cells"][0].update(m=0), "cells.0.m: input should be greater than 0"),
        (lambda d: d["cells"][0].update(pattern="5:8"), "cells.0.pattern"),
        (lambda d: d["cells"][0].update(mode="lazy"), "cells.0.mode"),
        (lambda d: d["cells"][0].update(figures=None), "either figures or a failure"),
        (lambda d: d["cells"][0].update(failure="crash"), "either figures or a failure"),
        (lambda d: d["cells"][0].update(wide=True), "wide is True, largest 1"),
        (lambda d: d["cells"][0].update(session=1), "refers to a session or a build"),
        (lambda d: d["cells"][0].update(ran=9), "refers to a session or a build"),
        (lambda d: d["cells"].append(d["cells"][0]), "a cell is there twice"),
        (lambda d: d["cells"][0]["figures"].update(median_us=1.0), "median_us 1.0 is not 1000.0"),
        (lambda d: d["cells"][0]["figures"].update(spread_us=0.0), "spread_us 0.0 is not 20.0"),
        (lambda d: d["cells"][0]["figures"].update(step_us=[]), "figures.step_us"),
        (lambda d: d["cells"][0]["figures"]["shares"].update(gemm=7.0), "figures.shares.gemm"),
        (lambda d: d["cells"][0]["figures"].update(power_w="much"), "figures.power_w"),
        (lambda d: d["fingerprint"].pop("sm"), "fingerprint"),
        (lambda d: d.update(stage="warm-up"), "stage"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Change, text: str) -> None:
    assert text in damage_said(module, make_record(), tmp_path, change)
