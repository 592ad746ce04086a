"""Rows and CSV of load benchmarks, headroom, graphs beside eager, published rows beside ours."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from counters_records import MEANS, MODEL, found, record

from slidesparse.bench.counters.headroom import graphs_over_eager, headroom, short_of
from slidesparse.bench.counters.published import beside_published, published, published_alone
from slidesparse.bench.counters.record import LoadFigures, write_json
from slidesparse.bench.counters.rows import CSV_COLUMNS, rows, write_csv
from slidesparse.bench.kinds import read_results
from slidesparse.bench.sweep.job import Mode
from slidesparse.candidate import Provenance


def test_rows_are_throughputs_with_what_they_cost() -> None:
    made = rows(record())
    assert len(made) == 5
    row = made[1]
    assert dict(row.workload) == {
        "what": "load",
        "engine": "vllm",
        "model": MODEL,
        "tp": 1,
        "dtype": "fp8_e4m3",
        "concurrency": 256,
        "prompt": 30,
        "max_tokens": 512,
    }
    assert dict(row.variant) == {"system": "stock", "mode": "eager"}
    assert (row.metric, row.unit, row.value, row.spread) == ("throughput", "tok/s", 5000.0, 50.0)
    assert (row.better, row.provenance) == ("higher", Provenance.MEASURED)
    assert (row.power_w, row.joules_per_token) == (450.0, 0.09)
    # Eager and graphs are one workload.
    assert made[0].workload == made[3].workload
    assert len({row.key for row in made}) == 5


def test_any_reader_of_result_files_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "counters.json"
    write_json(record(), path)
    file = read_results(path)
    assert file.kind == "slidesparse-counters"
    assert file.rows == rows(record())
    assert file.machine == "NVIDIA H200"


def test_the_csv_has_a_line_per_cell(tmp_path: Path) -> None:
    path = tmp_path / "counters.csv"
    write_csv(record(), path)
    lines = list(csv.DictReader(io.StringIO(path.read_text())))
    assert len(lines) == 6
    assert tuple(lines[0]) == CSV_COLUMNS
    assert lines[1]["tokens_per_s"] == "5000.00"
    assert lines[1]["sm_active"] == "60"
    assert lines[1]["memory_mhz"] == "3201"
    assert lines[2]["sampling_cost_percent"] == "0.5000"
    assert (lines[5]["tokens_per_s"], lines[5]["failure"]) == ("", "memory")
    assert lines[5]["reason"] == "CUDA out of memory"


def test_headroom_is_what_is_left_of_each() -> None:
    left = headroom(LoadFigures.of(found(256, 5000.0)))
    assert (left.sm_percent, left.dram_percent, left.power_w) == (40.0, 75.0, 250.0)
    assert (left.kv_percent, left.kv_tokens) == (70.0, 630_000)


def test_what_was_not_told_has_no_headroom() -> None:
    figures = LoadFigures.of(found(256, 5000.0, means={}, power_limit_w=None))
    left = headroom(figures)
    assert (left.sm_percent, left.dram_percent, left.power_w) == (None, None, None)
    assert left.kv_percent == 70.0
    # A counter may read a little more than all of it; a board may draw more for a moment.
    hot = headroom(LoadFigures.of(found(1, 9.0, means={**MEANS, "sm_active": 100.2}, kv=100.0)))
    assert (hot.sm_percent, hot.kv_tokens) == (0.0, 0)
    assert headroom(LoadFigures.of(found(1, 9.0, power_limit_w=400.0))).power_w == -50.0


def test_graphs_are_set_beside_eager() -> None:
    made = record()
    eager, graphs = made.cells[1], made.cells[4]
    for cell in (eager, graphs):
        ratio = graphs_over_eager(made, cell)
        assert ratio is not None
        assert (ratio.value, ratio.clear) == (2.0, True)
    assert graphs_over_eager(made, made.cells[2]) is None
    figures = eager.figures
    assert figures is not None
    alike = replace(graphs, figures=figures)
    same = graphs_over_eager(replace(made, cells=(eager, alike)), eager)
    assert same is not None
    assert not same.clear


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"running": 1023.9}, ""),
        ({"running": 1004.0}, ""),
        (
            {"running": 905.0, "kv": 99.9, "preemptions": 17},
            "905 of 1,024 ran: the KV cache of 900,000 tokens was 100 % full, 17 preemptions",
        ),
        (
            {"running": 256.0},
            "256 of 1,024 ran, with 30 % of the KV cache in use: the scheduler admitted no more",
        ),
    ],
)
def test_sequences_that_did_not_run_are_explained(changes: dict[str, float], text: str) -> None:
    assert short_of(LoadFigures.of(found(1024, 6000.0, **changes)), 1024) == text


def test_the_published_rows_are_all_there() -> None:
    assert len(published()) == 14
    by_key = {(it.model, it.mode, it.concurrency): it.values for it in published()}
    assert by_key[MODEL, Mode.GRAPHS, 256]["tokens_per_s"] == 15703
    assert by_key["qwen3-next-80b-a3b", Mode.EAGER, 1024]["running"] == 905
    assert by_key[MODEL, Mode.EAGER, 1]["running"] is None


def test_measured_rows_stand_beside_published_ones() -> None:
    lines = beside_published(record()).splitlines()
    start = f"| {MODEL}, eager | 256 | measured | 5,000 | 60.0 | 20.0 | 10.0 | 25.0 | 450 | 30.0 |"
    place = next(index for index, line in enumerate(lines) if line.startswith(start))
    assert lines[place + 1] == (
        "|  | 256 | published | 5,569 | 20.0 | 6.7 | 3.0 | 5.3 | 216 | 13.7 | - |"
    )
    assert sum("| published |" in line for line in lines) == 5
    assert f"| {MODEL}, graphs | 1,024 | memory |" in "\n".join(lines)
    assert {line.count("|") for line in lines if line.startswith("|")} == {12}
    assert "Sampling cost +0.50 % (eager, C=1,024)." in lines[-1]
    assert lines[-1].endswith("Published: document B, not measured here.")


def test_published_rows_stand_alone_until_somebody_measures() -> None:
    lines = published_alone(MODEL).splitlines()
    assert sum("| published |" in line for line in lines) == 10
    assert lines[0] == beside_published(record()).splitlines()[0]
    assert lines[-1].startswith("Not measured yet.")
