"""Result files of `slidesparse allocate`: what is written is read back, damage is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from allocation_records import make_record as make

from slidesparse.bench.allocation.record import read_json, write_json
from slidesparse.errors import UsageError


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


def test_the_stamp() -> None:
    stamped = replace(make(), commit="", created="").stamped()
    assert stamped.commit
    assert stamped.created.endswith("+00:00")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("tokens"), "it lacks 'tokens'"),
        (lambda d: d.update(tokens="100"), "tokens: input should be a valid integer"),
        (lambda d: d.update(more=1), "more: unexpected keyword argument"),
        (lambda d: d["groups"][0].update(n=0), "groups.0.n: input should be greater than 0"),
        (lambda d: d["groups"][0]["kl"].update({"6:8": -1.0}), "groups.0.kl.6:8: input should be"),
        (lambda d: d["outcomes"].pop(), "outcomes: tuple should have at least 2 items"),
        (lambda d: d["outcomes"][0].update(us=0), "outcomes.0.us: input should be greater than 0"),
        (lambda d: d["fingerprint"].pop("name"), "fingerprint"),
    ],
)
def test_damage_is_named(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "out.json"
    write_json(make(), path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert message in str(caught.value)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text('{"kind": "slidesparse-search", "schema_version": 1}')
    with pytest.raises(UsageError, match="is not a result file of slidesparse allocate"):
        read_json(path)
