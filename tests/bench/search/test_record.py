"""A result file of a search reads back as it was written; damage to it is named."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from damage import Change, damage_said, put
from search_records import make_record

from slidesparse.bench.search import record as module
from slidesparse.bench.search.record import CSV_COLUMNS, write_csv, write_json
from slidesparse.pattern import DENSE


def test_the_file_is_plain(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(make_record(), path)
    data = json.loads(path.read_text())
    assert (data["kind"], data["schema_version"]) == ("slidesparse-search", 1)
    assert data["results"][0]["provenance"] == "bundled"
    assert data["layers"][1]["problem"]["pattern"] == "6:8"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put(-1.0, "results", 0, "result", "ranked", 0, "median_us"), "ranked.0.median_us: "),
        (put("fast", "results", 0, "result", "ranked", 0, "median_us"), "ranked.0.median_us: "),
        (put(0, "results", 0, "result", "problem", "m"), "problem.m: "),
        (put("guessed", "results", 0, "provenance"), "results.0.provenance: input should be"),
        (put("x", "results", 0), "results.0: input should be"),
        (put(3, "results"), "results: input should be"),
        (put("90", "fingerprint", "sm"), "sm: "),
        (put("2:8", "layers", 0, "problem", "pattern"), "pattern: "),
        (put("red", "layers", 0, "layer", "colour"), "colour: extra inputs are not permitted"),
        (put("red", "layers", 0, "colour"), "layers.0.colour: extra inputs are not permitted"),
        (put("red", "colour"), "colour: extra inputs are not permitted"),
        (put("fp4", "skipped", 0, "problem", "dtype"), "dtype: "),
        (lambda d: d.pop("layers"), "it lacks 'layers'"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Change, reason: str) -> None:
    assert reason in damage_said(module, make_record(), tmp_path, change)


def test_csv_has_a_row_per_ranked_candidate(tmp_path: Path) -> None:
    path = tmp_path / "result.csv"
    write_csv(make_record(), path)
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    assert tuple(header) == CSV_COLUMNS
    head = ["expert_down", "28", "64", "16", "64", "96", "fp8_e4m3", "bf16", "tensor"]
    wanted = []
    for pattern, rank, backend, us, ratio in (
        ("dense", 1, "cublaslt", 10.0, ""),
        ("dense", 2, "torch", 12.5, ""),
        ("6:8", 1, "cusparselt", 8.0, "1.2500"),
        ("6:8", 2, "cublaslt", 10.0, "1.0000"),
    ):
        sparse = "1" if backend == "cusparselt" else "0"
        source = "bundled" if pattern == "dense" else "measured"
        rate = f"{2 * 16 * 64 * 96 / us / 1e6:.2f}"
        name = [pattern, str(rank), backend, sparse, f"{backend} tile=128x64"]
        wanted.append([*head, *name, f"{us:.3f}", "0.500", rate, ratio, "1.250e-03", source])
    assert rows == wanted
    assert make_record().layers[2].problem.pattern == DENSE  # Skipped: it has no row.
