"""Result files of the attention benchmark: read back as written, damaged ones refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from attention_records import CAUSAL, FULL, make_record, make_row
from damage import Change, damage_said

from slidesparse.bench.attention import record as module
from slidesparse.bench.attention.record import KIND, read_json, write_json
from slidesparse.bench.kinds import read_results


def test_a_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    record, path = make_record(), tmp_path / "attention.json"
    write_json(record, path)
    assert read_json(path) == record
    data = json.loads(path.read_text())
    assert (data["kind"], data["schema_version"]) == ("slidesparse-attention", 1)
    assert data["rows"][0]["problem"]["dtype"] == "bf16"
    assert data["bounds"][0]["targets"][0]["reachable"] == "no"


def test_bounds_of_a_gpu_that_is_not_here_have_no_fingerprint(tmp_path: Path) -> None:
    record, path = replace(make_record(), fingerprint=None, rows=()), tmp_path / "bound.json"
    write_json(record, path)
    found = read_results(path)
    assert found.fingerprint is None
    assert found.machine == "H200 SXM 141 GB (bound only)"
    assert found.command == KIND.command
    with pytest.raises(ValueError, match="measured on no machine"):
        replace(make_record(), fingerprint=None)


def test_what_was_measured_has_a_bound() -> None:
    record = make_record()
    with pytest.raises(ValueError, match="S=4096 D=128 bf16 causal is not among the bounds"):
        replace(record, bounds=record.bounds[:1])
    assert record.of(FULL) == list(record.rows[:2])
    bound = record.bound_of(CAUSAL)
    assert bound is not None
    assert record.percent_of_bound(record.rows[2]) == pytest.approx(100 * bound.us / 11000)
    assert make_row(FULL, "flash", 223.57 * 96).tflops == pytest.approx(614.7, abs=0.1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d["rows"][0].update(median_us=0), "rows.0.median_us"),
        (lambda d: d["rows"][0]["problem"].update(kv_heads=7), "cannot share 7 K/V heads"),
        (lambda d: d["rows"][0]["sustained"].update(us=-1.0), "rows.0.sustained.us"),
        (lambda d: d["left_out"][0].update(kind="lost"), "left_out.0.kind"),
        (lambda d: d.update(rates={}), "rates"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Change, text: str) -> None:
    assert text in damage_said(module, make_record(), tmp_path, change)
