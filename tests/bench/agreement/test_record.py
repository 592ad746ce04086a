"""Result files of `bench agreement`: read back as written, damaged ones refused in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from agreement_records import EAGER, GRAPHS, OURS, STOCK, make_checkpoint, make_record, make_served
from damage import Change, damage_said

from slidesparse.bench.agreement import record as module
from slidesparse.bench.agreement.record import read_json, write_json
from slidesparse.bench.sweep.runner import Kind


def test_a_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    record, path = make_record(), tmp_path / "agreement.json"
    write_json(record, path)
    assert read_json(path) == record
    data = json.loads(path.read_text())
    assert (data["kind"], data["schema_version"]) == ("slidesparse-agreement", 1)
    (checkpoint,) = data["checkpoints"]
    assert checkpoint["served"][1]["requests"]["differing"] == [9, 31]
    assert checkpoint["pairs"][0]["agreement"] == 0.996
    assert data["limits"] == {"agreement": 0.99, "perplexity": 0.005, "load": None}


def test_a_failure_reads_back(tmp_path: Path) -> None:
    failed: dict[str, Any] = {
        **{"ran": {}, "load_s": None, "start_s": None, "tokens": 0, "loss": None},
        **{"requests": None, "failure": Kind.CRASH, "reason": "killed by SIGSEGV"},
    }
    record = make_record(make_checkpoint(**failed))
    write_json(record, tmp_path / "out.json")
    served = read_json(tmp_path / "out.json").checkpoints[0].one(OURS, GRAPHS)
    assert served == make_served(OURS, GRAPHS, **failed)
    assert served.perplexity is None


def test_a_checkpoint_knows_its_parts() -> None:
    checkpoint = make_checkpoint()
    stock = checkpoint.one(STOCK, EAGER)
    assert stock is not None
    assert (str(stock), stock.perplexity) == ("stock, eager", math.exp(3.25))
    assert [str(pair) for pair in checkpoint.pairs] == [
        "ours against stock, graphs",
        "ours against stock, eager",
        "stock, graphs against eager",
        "ours, graphs against eager",
    ]
    assert checkpoint.noise() == checkpoint.pairs[2]
    requests = checkpoint.served[1].requests
    assert requests is not None
    assert requests.sequences.same == 48


def served(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["checkpoints"][0]["served"][0]
    return found


def pair(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["checkpoints"][0]["pairs"][0]
    return found


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: served(d).update(system="theirs"), "checkpoints.0.served.0.system"),
        (lambda d: served(d).update(tokens=0), "loss is 3.25 over 0 tokens"),
        (lambda d: served(d).update(loss=None), "loss is None over 2044 tokens"),
        (lambda d: served(d).update(failure="crash"), "a failure has a reason"),
        (lambda d: served(d).update(reason="why"), "a failure has a reason"),
        (lambda d: served(d).update(load_s=-1.0), "load_s: input should be greater than 0"),
        (lambda d: served(d)["requests"].update(broken=501), "25 aborted and 501 broken of 500"),
        (lambda d: served(d)["requests"].update(compared=1), "2 differing of 1 compared of 500"),
        (lambda d: served(d)["requests"].update(compared=501), "501 compared of 500"),
        (lambda d: pair(d).update(agreement=1.5), "agreement: input should be less than"),
        (lambda d: pair(d).update(ties=9), "9 ties of 2000 tokens at 0.996"),
        (lambda d: pair(d).update(perplexity=-2.0), "perplexity: input should be greater than -1"),
        (lambda d: d["limits"].update(agreement=99), "limits.agreement"),
        (lambda d: d["fingerprint"].pop("sm"), "fingerprint"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Change, text: str) -> None:
    assert text in damage_said(module, make_record(), tmp_path, change)
