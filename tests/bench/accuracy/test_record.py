"""Result files of an evaluation: there and back, and nothing damaged is believed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accuracy_records import P68, make_accuracy

from slidesparse.accuracy.evaluate import Outcome, Variant
from slidesparse.accuracy.metrics import Metrics
from slidesparse.bench.accuracy.record import AccuracyRow, read_json, text_source, write_json
from slidesparse.errors import UsageError
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


def test_a_stamp_says_when_and_of_which_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDESPARSE_COMMIT", "abc")
    stamped = replace(make_accuracy(), commit="", created="").stamped()
    assert stamped.commit == "abc"
    assert stamped.created.endswith("+00:00")


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (("rows", 0, "kl"), -0.1, "rows.0.kl: input should be greater than or equal to 0"),
        (("rows", 0, "agreement"), 1.5, "rows.0.agreement: input should be less than or equal"),
        (("rows", 0, "tokens"), "many", "rows.0.tokens: input should be a valid integer"),
        (("rows", 0, "pattern"), "3:8", "rows.0.pattern: pattern 3:8 is not of the"),
        (("rows", 0, "method"), "obs", "rows.0.method: input should be 'magnitude', 'wanda' or"),
        (("rows", 0, "extra"), 1, "rows.0.extra: "),
        (("rows", 0, "loss"), float("nan"), "rows.0.loss: "),
        (("fingerprint", "sm"), "90", "fingerprint"),
        (("evaluation",), None, "evaluation"),
    ],
)
def test_damage_is_named(tmp_path: Path, place: tuple[Any, ...], value: Any, problem: str) -> None:
    path = tmp_path / "a.json"
    write_json(make_accuracy(), path)
    data = json.loads(path.read_text())
    part = data
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path} is damaged: {problem}"), caught.value


@pytest.mark.parametrize("field", ["rows", "commit", "created", "version", "model"])
def test_what_is_missing_is_named(tmp_path: Path, field: str) -> None:
    path = tmp_path / "a.json"
    write_json(make_accuracy(), path)
    data = json.loads(path.read_text())
    del data[field]
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=f"is damaged: it lacks '{field}'"):
        read_json(path)


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"kind": "slidesparse-search"}')
    with pytest.raises(UsageError, match="is not a result file of slidesparse eval"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UsageError, match=r"cannot read .*b.json: No such file"):
        read_json(tmp_path / "b.json")


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
