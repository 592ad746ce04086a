"""Result files of scripts/compare_efforts.py: both schema versions are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from effort_records import make_record

from slidesparse.bench.search.effort_record import (
    KIND,
    EffortRecord,
    read_json,
    rows,
    write_json,
)
from slidesparse.errors import UsageError


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "effort.json"
    write_json(make_record(), path)
    return path


def as_version_1(path: Path, **changes: Any) -> None:
    """Make the file what the tool wrote before it stamped version and time."""
    data = json.loads(path.read_text())
    for name in ("version", "created", "settings"):
        del data[name]
    path.write_text(json.dumps({**data, "schema_version": 1, **changes}))


def test_a_record_comes_back_whole(written: Path) -> None:
    record = read_json(written)
    assert record == replace(make_record(), created=record.created, commit=record.commit)
    assert json.loads(written.read_text())["schema_version"] == KIND.schema_version == 2
    assert record.created.endswith("+00:00")


def test_figures_follow_from_the_races() -> None:
    record = make_record()
    assert (record.problems, record.same_winner, record.within_2_percent) == (3, 1, 1)
    assert (record.worst_ratio, record.median_ratio) == (1.03, pytest.approx(1.015))


def test_a_file_of_the_first_version_says_that_it_does_not_know(written: Path) -> None:
    as_version_1(written)
    record = read_json(written)
    assert (record.version, record.created, record.settings) == ("unknown", "unknown", {})
    assert record.rows == make_record().rows


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"created": None}, "created: input should be a valid string"),
        ({"rows": 3}, "rows: input should be"),
        ({"more": 1}, "more: unexpected"),
    ],
)
def test_damage_in_a_file_of_the_first_version(
    written: Path, change: dict[str, Any], reason: str
) -> None:
    as_version_1(written, **change)
    with pytest.raises(UsageError) as caught:
        read_json(written)
    assert str(caught.value).startswith(f"{written} is damaged: {reason}")


def test_a_second_version_needs_its_stamps(written: Path) -> None:
    data = json.loads(written.read_text())
    del data["created"]
    written.write_text(json.dumps(data))
    with pytest.raises(UsageError, match="it lacks 'created'"):
        read_json(written)


def test_a_row_has_a_ratio_or_a_failure(written: Path) -> None:
    data = json.loads(written.read_text())
    data["rows"][0]["failure"] = "both"
    written.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"rows\.0: a row has either a ratio or a failure"):
        read_json(written)


def test_rows_are_of_the_problems_that_were_raced() -> None:
    found = {row.workload["m"]: row for row in rows(make_record())}
    assert {m: row.value for m, row in found.items()} == {16: 1.0, 64: 1.03}
    assert found[64].how == "cublaslt id=1 against torch"
    assert dict(found[64].variant) == {"efforts": "normal over full"}


def test_nothing_raced_is_no_record() -> None:
    it = make_record()
    with pytest.raises(ValueError, match="none of 0 problems has a ratio"):
        EffortRecord.of(it.fingerprint, {}, ("normal", "full"), (1.0, 2.0), ())
