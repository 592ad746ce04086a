"""A result file in words, as data and as CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from result_files import KINDS, write_kind

from slidesparse.bench.kinds import read_results
from slidesparse.bench.results_text import as_data, describe, write_csv


def test_a_sweep_in_words(tmp_path: Path) -> None:
    path = write_kind("slidesparse-sweep", tmp_path)
    head, where, versions, steps, count = describe(read_results(path))
    assert head == f"{path}: slidesparse-sweep (slidesparse bench prefill or decode)"
    assert where.startswith("  NVIDIA H200, 20")
    assert ", commit " in where
    assert "vllm 0.25.1" in versions
    assert steps == ("  step: 5 x throughput, 455,111 to 588,506 tok/s, m 512 to 4096, measured")
    assert count == "  5 rows"


def test_what_is_not_known_is_said(root: Path) -> None:
    path = next((root / "bench" / "results" / "nvidia-h200").glob("effort-*.json"))
    assert describe(read_results(path))[1].startswith("  NVIDIA H200, time unknown, commit 448cd")


def test_figures_of_several_sources_say_so(tmp_path: Path) -> None:
    lines = describe(read_results(write_kind("slidesparse-search", tmp_path)))
    (gemms,) = [line for line in lines if line.startswith("  gemm:")]
    assert gemms == "  gemm: 3 x time, 8 to 10 us, m 16, bundled and measured"


def test_every_row_is_in_the_csv_and_the_json(tmp_path: Path) -> None:
    found = [read_results(write_kind(kind, tmp_path)) for kind in KINDS]
    path = tmp_path / "all.csv"
    write_csv(found, path)
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [(result, row) for result in found for row in result.rows]
    assert len(lines) == len(rows)
    for line, (result, row) in zip(lines, rows, strict=True):
        assert (line["kind"], line["machine"]) == (result.kind, result.machine)
        assert (float(line["value"]), line["unit"]) == (row.value, row.unit)
        assert line["provenance"] == str(row.provenance)
        for name, value in row.workload.items():
            assert line[name] == str(value)
        for name, value in row.variant.items():
            assert line[f"variant_{name}"] == str(value)
    data = json.loads(json.dumps([as_data(result) for result in found]))
    assert [len(each["rows"]) for each in data] == [len(result.rows) for result in found]
    assert data[0]["rows"][0]["provenance"] in ("measured", "bundled")
    assert data[0]["fingerprint"]["name"] == "NVIDIA H200"
    assert data[-1]["fingerprint"] is None
