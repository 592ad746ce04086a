"""Result files of `slidesparse allocate`: what is written is read back, damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from allocation_records import make_record as make
from damage import Change, damage_said

from slidesparse.bench.allocation import record as module
from slidesparse.bench.allocation.record import read_json, write_json


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_json(make(), path)
    assert read_json(path) == make()
    assert (make().dense.name, make().chosen.name) == ("dense", "chosen")


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_json(make(), path)
    data = json.loads(path.read_text())
    assert (data["kind"], data["schema_version"]) == ("slidesparse-allocation", 1)
    assert data["groups"][0]["us"] == {"dense": 6.0, "6:8": 5.0}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.update(tokens="100"), "tokens: input should be a valid integer"),
        (lambda d: d["groups"][0].update(n=0), "groups.0.n: input should be greater than 0"),
        (lambda d: d["groups"][0]["kl"].update({"6:8": -1.0}), "groups.0.kl.6:8: input should be"),
        (lambda d: d["outcomes"].pop(), "outcomes: tuple should have at least 2 items"),
        (lambda d: d["outcomes"][0].update(us=0), "outcomes.0.us: input should be greater than 0"),
        (lambda d: d["fingerprint"].pop("name"), "fingerprint"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Change, text: str) -> None:
    assert text in damage_said(module, make(), tmp_path, change)
