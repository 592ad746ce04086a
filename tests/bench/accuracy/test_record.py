"""Result files of an evaluation: there and back, and nothing damaged is believed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from accuracy_records import P68, make_accuracy
from damage import Change, damage_said, put

from slidesparse.accuracy.evaluate import Outcome, Variant
from slidesparse.accuracy.metrics import Metrics
from slidesparse.bench.accuracy import record as module
from slidesparse.bench.accuracy.record import AccuracyRow, read_json, text_source, write_json
from slidesparse.pattern import DENSE
from slidesparse.problem import DType
from slidesparse.recipe import Method


def test_there_and_back(tmp_path: Path) -> None:
    record = make_accuracy()
    write_json(record, tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == record
    data = json.loads((tmp_path / "a.json").read_text())
    assert (data["kind"], data["schema_version"]) == ("slidesparse-accuracy", 1)
    assert data["rows"][4]["pattern"] == "6:8"
    assert data["rows"][4]["method"] == "wanda"
    assert data["rows"][1]["dtype"] == "fp8_e4m3"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (put(-0.1, "rows", 0, "kl"), "rows.0.kl: input should be greater than or equal to 0"),
        (put(1.5, "rows", 0, "agreement"), "rows.0.agreement: input should be less than or equal"),
        (put("many", "rows", 0, "tokens"), "rows.0.tokens: input should be a valid integer"),
        (put("3:8", "rows", 0, "pattern"), "rows.0.pattern: pattern 3:8 is not of the"),
        (put("obs", "rows", 0, "method"), "rows.0.method: input should be 'magnitude', 'wanda' or"),
        (put(1, "rows", 0, "extra"), "rows.0.extra: "),
        (put(float("nan"), "rows", 0, "loss"), "rows.0.loss: "),
        (put("90", "fingerprint", "sm"), "fingerprint"),
        (put(None, "evaluation"), "evaluation"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Change, problem: str) -> None:
    assert damage_said(module, make_accuracy(), tmp_path, change).startswith(problem)


def test_rows_are_found_by_what_they_are() -> None:
    record = make_accuracy()
    row = record.row(P68, Method.WANDA, None)
    assert row is not None
    assert row.perplexity == 31.06, "not the recipe's"
    assert record.row(DENSE, Method.WANDA, DType.FP8) == record.rows[1]
    assert record.row(P68, Method.SPARSEGPT, None) is None


def test_an_outcome_becomes_a_row() -> None:
    metrics = Metrics(tokens=10, loss=800.0, increase=797.0, error=0.5, agreement=0.1, kl=2.0)
    row = AccuracyRow.of(Outcome(Variant(P68, Method.WANDA), metrics, 0.25, 1.0, 2.0))
    assert row.perplexity is None, "JSON has no infinity"
    assert (row.loss, row.zeros, row.method, row.recipe) == (800.0, 0.25, Method.WANDA, False)
    mixed = Variant(DENSE, Method.WANDA, None, {"a": P68})
    assert AccuracyRow.of(Outcome(mixed, metrics, 0.1, 0.0, 1.0)).recipe
    assert AccuracyRow.of(Outcome(Variant(DENSE, Method.WANDA), metrics, 0.0, 0, 1)).method is None


def test_texts_are_named_by_their_content(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_bytes(b"prose")
    found = text_source(str(path), 7)
    assert (found.name, found.tokens) == ("some.txt", 7)
    assert found.sha256 == hashlib.sha256(b"prose").hexdigest()
    assert text_source("dataset:org/name", 7).sha256 == ""
