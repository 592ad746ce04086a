"""Result files of `slidesparse allocate`: what is written is read back, damage is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from slidesparse.bench.allocation_record import (
    AllocationRecord,
    GroupRow,
    OutcomeRow,
    read_json,
    write_json,
)
from slidesparse.devices import Fingerprint
from slidesparse.errors import UsageError


def make() -> AllocationRecord:
    row = GroupRow(
        block=0,
        name="o",
        linears=("model.layers.0.self_attn.o_proj",),
        n=64,
        k=48,
        us={"dense": 6.0, "6:8": 5.0},
        kl={"6:8": 0.02},
        increases={"6:8": -0.01},
        chosen="6:8",
    )
    dense = OutcomeRow("dense", 6.0, 1.0, 0.0, 0.0, 2.5, 0.0, 0.0, True)
    chosen = OutcomeRow("chosen", 5.0, 1.2, 0.25, 0.02, 2.53, 0.03, 0.004, True)
    return AllocationRecord(
        model="tiny",
        fingerprint=Fingerprint("NVIDIA H200", 90, 132, 143156, "580.1", "13.1.0", "0.8.1"),
        settings={"m": ["64"], "target_speedup": 1.15, "keep": ["lm_head"]},
        seconds={"load": 1.5},
        gemm="fp8_e4m3 -> bf16, scales rowcol",
        provenance={"cached": 2},
        dense_loss=2.4,
        tokens=100,
        groups=(row,),
        left_out=("model.layers.0.mlp.experts.0.up_proj",),
        outcomes=(dense, chosen),
        verdicts=("is uniform 6:8",),
        commit="0123",
        created="2026-03-03T10:00:00+00:00",
    )


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
        (lambda d: d.pop("tokens"), "tokens: Field required"),
        (lambda d: d.update(tokens="100"), "tokens: Input should be a valid integer"),
        (lambda d: d.update(more=1), "more: Unexpected keyword argument"),
        (lambda d: d["groups"][0].update(n=0), "groups.0.n: Input should be greater than 0"),
        (lambda d: d["groups"][0]["kl"].update({"6:8": -1.0}), "groups.0.kl.6:8: Input should be"),
        (lambda d: d["outcomes"].pop(), "outcomes: Tuple should have at least 2 items"),
        (lambda d: d["outcomes"][0].update(us=0), "outcomes.0.us: Input should be greater than 0"),
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
