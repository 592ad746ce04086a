"""A result file of the kernels reads back as it was written; a damaged one says what is wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from bench_records import make_record
from damage import Change, damage_said, put

from slidesparse.bench.kernels import record as module
from slidesparse.bench.kernels.record import CSV_COLUMNS, write_csv, write_json


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    write_json(make_record(), path)
    return path


def test_the_file_is_plain(written: Path) -> None:
    data = json.loads(written.read_text())
    assert (data["kind"], data["schema_version"]) == ("slidesparse-kernels-bench", 1)
    assert data["rows"][0]["problem"]["pattern"] == "6:8"
    assert data["rows"][0]["config"]["block"] == 2048
    assert data["rows"][0]["error"] is None
    assert data["rows"][2]["median_us"] is None


def test_figures_follow_from_bytes_and_time() -> None:
    row = make_record().rows[1]
    assert row.gbs == pytest.approx(40_000 * 4096 / 50e-6 / 1e9)
    assert row.percent_of_copy == pytest.approx(row.gbs / 4000 * 100)
    assert row.floor_us == pytest.approx(1.5 + 40_000 * 4096 / 4000e9 * 1e6)


def test_the_fastest_way_of_an_alternative_is_its_ratio() -> None:
    small, large, wrong = make_record().rows
    assert small.ratio("vllm") == 3.0 / 4.0
    assert small.ratio("torch.compile") == 1.5
    assert large.ratio("vllm") is None
    assert wrong.ratio("vllm") is None
    assert make_record().names == ("vllm", "torch.compile")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put(-1.0, "rows", 0, "median_us"), "rows.0.median_us: "),
        (put("fast", "rows", 0, "median_us"), "rows.0.median_us: "),
        (put(float("nan"), "rows", 0, "median_us"), "rows.0.median_us: "),
        (put(1.5, "rows", 0, "bytes"), "rows.0.bytes: "),
        (put(0, "rows", 0, "problem", "m"), "rows.0.problem: m: "),
        (put("multiply", "rows", 0, "problem", "op"), "rows.0.problem: op: "),
        (put("", "rows", 0, "alternatives", 0, "name"), "rows.0.alternatives.0.name: "),
        (put(1, "rows", 0, "tuned"), "rows.0.tuned: "),
        (put("red", "rows", 0, "colour"), "rows.0.colour: "),
        (put(0, "ceilings", "copy_gbs"), "ceilings.copy_gbs: "),
        (put(-1, "fingerprint", "sm"), "fingerprint: sm: "),
        (put("fp8_e4m3", "skipped", 0, "problem", "out"), "skipped.0.problem: dequantize cannot "),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Change, reason: str) -> None:
    assert damage_said(module, make_record(), tmp_path, change).startswith(reason)


def test_csv_has_a_line_for_ours_and_for_each_alternative(tmp_path: Path) -> None:
    path = tmp_path / "result.csv"
    write_csv(make_record(), path)
    with path.open(newline="") as file:
        header, *lines = list(csv.reader(file))
    assert tuple(header) == CSV_COLUMNS
    assert {len(line) for line in lines} == {len(CSV_COLUMNS)}
    named = [dict(zip(header, line, strict=True)) for line in lines]
    assert [line["what"] for line in named] == [
        *("slidesparse", "vllm", "vllm", "torch.compile"),
        *("slidesparse", "torch.compile", "vllm"),
        "slidesparse",
    ]
    assert named[0]["op"] == "quantize"
    assert named[0]["tuned"] == "0"
    assert named[2]["ratio_to_ours"] == "0.750"
    assert named[6]["reason"] == "vLLM is not installed"
    assert (named[7]["median_us"], named[7]["reason"]) == ("", "3.00% of the values differ")
