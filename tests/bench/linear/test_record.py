"""Result files of the linear benchmark: read back as written, damaged ones refused in one line."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from damage import Change, damage_said
from linear_records import DOWN, OUT, SIX, make_record, make_row, problem

from slidesparse.bench.linear import record as module
from slidesparse.bench.linear.record import read_json, write_csv, write_json
from slidesparse.pattern import DENSE
from slidesparse.problem import DType


def test_a_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    record, path = make_record(), tmp_path / "linear.json"
    write_json(record, path)
    assert read_json(path) == record
    data = json.loads(path.read_text())
    assert (data["kind"], data["schema_version"]) == ("slidesparse-linear-bench", 1)
    assert data["rows"][1]["problem"]["pattern"] == "6:8"
    assert data["rows"][1]["plan"] == "native tile 128x256"


def test_ratios_are_torchs_time_over_ours() -> None:
    row = make_row(OUT, 16, SIX, 40.0, 48.0)
    assert row.ratio == pytest.approx(1.2)
    assert row.clear, "8 us apart, half the larger spread is 1 us"
    assert not make_row(OUT, 16, SIX, 40.0, 40.9).clear
    assert make_row(OUT, 16, SIX, 40.0, None).ratio is None
    assert not make_row(OUT, 16, SIX, None, 40.0).clear


def test_totals_weigh_linears_by_their_count_and_need_all_of_them() -> None:
    record = make_record()
    assert record.dtypes == (DType.FP8, DType.INT8)
    assert record.patterns == (DENSE, SIX)
    assert record.totals(DType.FP8, 16, SIX) == (2 * 48.0 + 3 * 75.0, 2 * 40.0 + 3 * 100.0)
    assert record.totals(DType.FP8, 64, DENSE) is None, "down was skipped"
    assert record.totals(DType.FP8, 64, SIX) is None, "torch has no time"
    assert record.totals(DType.INT8, 16, SIX) is None, "ours failed"
    assert record.totals(DType.INT8, 16, DENSE) is None, "never measured"
    only = replace(record, rows=(), skipped=record.skipped)
    assert only.totals(DType.FP8, 64, DENSE) is None


def test_the_table_has_a_line_for_each_side(tmp_path: Path) -> None:
    path = tmp_path / "linear.csv"
    write_csv(make_record(), path)
    lines = list(csv.DictReader(io.StringIO(path.read_text())))
    assert len(lines) == 14
    ours, torch = lines[2:4]
    assert (ours["layer"], ours["count"], ours["pattern"], ours["what"]) == (
        *("o", "2", "6:8", "slidesparse"),
    )
    assert (ours["how"], ours["sparse"], ours["median_us"]) == (
        "native tile 128x256",
        "1",
        "40.000",
    )
    assert (torch["what"], torch["how"], torch["ratio_to_ours"]) == (
        *("torch", "torch.compile", "1.2000"),
    )
    assert lines[7]["reason"] == "no way of torch's ran"
    assert lines[12]["reason"].startswith("wrong result")
    assert lines[12]["median_us"] == lines[13]["ratio_to_ours"] == ""


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d["rows"][0].update(sets=0), "rows.0.sets: input should be greater than 0"),
        (lambda d: d["rows"][0]["ours"].update(median_us=-1.0), "rows.0.ours.median_us"),
        (lambda d: d["rows"][0]["problem"].update(m=0), "rows.0.problem"),
        (lambda d: d["rows"][0]["layer"].pop("n"), "rows.0.layer"),
        (lambda d: d["ways"][0]["ways"][0].update(how=""), "ways.0.ways.0.how"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Change, text: str) -> None:
    assert text in damage_said(module, make_record(), tmp_path, change)


def test_problems_know_their_bias() -> None:
    assert problem(DOWN, 16, SIX).bias
    assert not problem(OUT, 16, SIX).bias
