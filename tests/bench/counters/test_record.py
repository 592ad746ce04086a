"""Result files of load benchmarks: read back as written, damaged ones refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from counters_records import MODEL, found, record
from damage import Change, damage_said

from slidesparse.bench.counters import record as module
from slidesparse.bench.counters.record import LoadFigures, read_json, write_json
from slidesparse.bench.sweep.job import Mode
from slidesparse.bench.sweep.runner import Kind
from slidesparse.problem import DType


def test_a_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    made, path = record(), tmp_path / "counters.json"
    write_json(made, path)
    assert read_json(path) == made
    data = json.loads(path.read_text())
    assert (data["kind"], data["schema_version"]) == ("slidesparse-counters", 1)
    cell = data["cells"][2]
    assert (cell["mode"], cell["concurrency"]) == ("eager", 1024)
    figures = cell["figures"]
    assert figures["quantities"]["sm_active"]["mean"] == 60.0
    assert figures["cut"] == {"lead_s": 5.5, "lead_tokens": 1000, "dropped": 1024}
    assert figures["source"] == "gpm"
    assert len(figures["cost"]["without"]) == 6
    assert data["settings"]["concurrency"] == [1, 256, 1024]
    assert data["settings"]["max_tokens"] == 512


def test_figures_follow_from_the_window() -> None:
    figures = LoadFigures.of(found(256, 5000.0))
    assert (figures.tokens, figures.seconds, figures.tokens_per_s) == (5000, 1.0, 5000.0)
    assert figures.rates == (4950.0, 5000.0, 5050.0)
    assert figures.spread == 50.0
    assert figures.joules_per_token == 450.0 / 5000
    assert figures.cost is None
    assert figures.mean("sm_active") == 60.0
    assert figures.mean("fp64_active") is None


def test_the_cost_of_sampling_leaves_the_figures_to_the_sampled_time() -> None:
    figures = LoadFigures.of(found(1024, 16000.0, cost=2.5))
    assert figures.tokens_per_s == pytest.approx(15600.0)
    assert (figures.seconds, figures.window_s) == (6.0, 12.0)
    # Energy was counted all the time.
    assert figures.joules_per_token == pytest.approx(450.0 / 15800)
    cost = figures.cost
    assert cost is not None
    assert cost.percent == pytest.approx(2.5)
    assert cost.with_sampling == (15600.0,) * 6
    assert cost.without == (16000.0,) * 6
    assert cost.error == pytest.approx(0.0, abs=1e-9)


def test_a_record_knows_its_cells() -> None:
    made = record()
    assert [str(cell.key) for cell in made.cells[:2]] == [
        f"{MODEL} fp8_e4m3 eager C=1",
        f"{MODEL} fp8_e4m3 eager C=256",
    ]
    (failed,) = made.failed
    assert (failed.failure, failed.reason) == (Kind.MEMORY, "CUDA out of memory")
    assert len(made.measured) == 5
    graphs = made.figures(MODEL, DType.FP8, Mode.GRAPHS, 256)
    assert graphs is not None
    assert graphs.tokens_per_s == 10000
    assert made.figures(MODEL, DType.FP8, Mode.GRAPHS, 1024) is None
    assert made.figures(MODEL, DType.INT8, Mode.GRAPHS, 256) is None


def _figures(change: Change, cell: int = 0) -> Change:
    return lambda data: change(data["cells"][cell]["figures"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d["cells"][0].update(concurrency=0), "cells.0.concurrency"),
        (lambda d: d["cells"][0].update(mode="lazy"), "cells.0.mode"),
        (lambda d: d["cells"][0].update(figures=None), "either figures or a failure"),
        (lambda d: d["cells"][0].update(failure="crash"), "either figures or a failure"),
        (lambda d: d["cells"][0].update(session=1), "refers to a session or a build"),
        (lambda d: d["cells"].append(d["cells"][0]), "a cell is there twice"),
        (_figures(lambda f: f.update(tokens_per_s=9.0)), "tokens_per_s 9.0 is not 25.0"),
        (_figures(lambda f: f.update(spread=9.0)), "spread 9.0 is not"),
        (_figures(lambda f: f.update(rates=[])), "figures.rates"),
        (_figures(lambda f: f.update(tokens=0)), "figures.tokens"),
        (_figures(lambda f: f.update(source="nsight")), "figures.source"),
        (_figures(lambda f: f["quantities"].pop("kv_percent")), "kv_percent is missing"),
        (
            _figures(lambda f: f["quantities"]["sm_active"].update(mean=99.0)),
            "the mean 99.0 is",
        ),
        (_figures(lambda f: f["quantities"]["power_w"].update(mean="much")), "power_w.mean"),
        (_figures(lambda f: f["cut"].pop("dropped")), "dropped"),
        (_figures(lambda f: f["cost"].update(percent=0.1), 2), "percent 0.1 is not 0.5"),
        (_figures(lambda f: f["cost"]["without"].pop(), 2), "do not come in pairs"),
        (lambda d: d["fingerprint"].pop("sm"), "fingerprint"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Change, text: str) -> None:
    assert text in damage_said(module, record(), tmp_path, change)
