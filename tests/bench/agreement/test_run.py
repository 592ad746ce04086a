"""A run of `bench agreement`: real worker processes, an engine that does what it is told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement_engines import FACTORY, SCRIPT
from two_four_models import save_both

from slidesparse.bench.agreement.plan import AgreementOptions
from slidesparse.bench.agreement.record import AgreementRecord, Limits, read_json, write_json
from slidesparse.bench.agreement.run import AgreementRun
from slidesparse.bench.agreement.verdict import problems
from slidesparse.bench.sweep.job import Mode, System
from slidesparse.bench.sweep.runner import Kind
from slidesparse.devices import CPU, detect

STOCK, OURS, GRAPHS, EAGER = System.STOCK, System.OURS, Mode.GRAPHS, Mode.EAGER

Run = Callable[..., AgreementRecord]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_both(tmp_path, torch.float8_e4m3fn)[1]


@pytest.fixture
def options(folder: Path, tmp_path: Path) -> AgreementOptions:
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([3 + index % 90 for index in range(300)]))
    return AgreementOptions(
        folders=(folder,),
        text=str(ids),
        tokenizer=None,
        tokens=100,
        length=32,
        modes=(GRAPHS, EAGER),
        tp=1,
        requests=40,
        longest=40,
        outputs=8,
        aborts=0.1,
        alone=20,
        seed=3,
        timeout=60.0,
        limits=Limits(),
    )


@pytest.fixture
def run(options: AgreementOptions, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The record of a run of the scripted engine."""

    def made(script: dict[str, str] | None = None, **changes: Any) -> AgreementRecord:
        monkeypatch.setenv(SCRIPT, json.dumps(script or {}))
        running = AgreementRun(replace(options, **changes), CPU, detect(CPU), factory=FACTORY)
        for _ in running.run(running.prepare()):
            pass
        return running.record(interrupted=False)

    return made


@pytest.mark.slow
def test_every_system_runs_in_every_mode(run: Run, tmp_path: Path) -> None:
    record = run()
    (checkpoint,) = record.checkpoints
    assert [str(it) for it in checkpoint.served] == [
        "stock, graphs",
        "ours, graphs",
        "stock, eager",
        "ours, eager",
    ]
    assert [str(it) for it in checkpoint.pairs] == [
        "ours against stock, graphs",
        "ours against stock, eager",
        "stock, graphs against eager",
        "ours, graphs against eager",
    ]
    assert all((it.agreement, it.perplexity, it.tokens) == (1, 0, 124) for it in checkpoint.pairs)
    for it in checkpoint.served:
        assert (it.tokens, it.loss, it.failure) == (124, 1.0, None)
        assert it.ran["linears"] == f"{it.system} kernel"
        # Mixed requests run in the first mode.
        assert (it.requests is None) is (it.mode is EAGER)
        if it.requests is not None:
            assert (it.requests.count, it.requests.aborted, it.requests.compared) == (40, 4, 20)
            assert (it.requests.broken, it.requests.differing) == (0, ())
    assert checkpoint.name == "dense"
    assert (record.text.name, record.text.tokens) == ("ids.json", 124)
    assert problems(record) == []
    write_json(record, tmp_path / "out.json")
    assert read_json(tmp_path / "out.json") == record
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()


@pytest.mark.slow
def test_what_differs_is_in_the_record_and_in_the_verdict(run: Run) -> None:
    script = {"ours eager score": "differ", "ours eager alone": "differ"}
    record = run(script, modes=(EAGER,))
    (pair,) = record.checkpoints[0].pairs
    # Each tenth of 124 tokens; the reference's own choice was a near tie.
    assert (pair.agreement, pair.ties) == (pytest.approx(111 / 124), 13)
    requests = record.checkpoints[0].served[1].requests
    assert requests is not None
    assert len(requests.differing) == requests.compared == 20
    second, first = sorted(problems(record))
    assert "0 of 20 requests gave the same tokens together as alone, with stock 20 of 20" in first
    assert "the same token is likeliest for 89.52 % of 124" in second


@pytest.mark.slow
def test_perplexity_and_broken_requests_are_noticed(run: Run) -> None:
    script = {"ours graphs score": "worse", "ours graphs together": "break"}
    record = run(script, modes=(GRAPHS,))
    (pair,) = record.checkpoints[0].pairs
    assert pair.perplexity == pytest.approx(0.10517, abs=1e-5)
    assert pair.difference == pytest.approx(0.1)
    broken, off = sorted(problems(record), key=lambda text: "perplexity" in text)
    assert "1 of 40 mixed requests went wrong" in broken
    assert broken.endswith("ended (abort) early")
    assert "perplexity is off by +10.52 %" in off


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "kind", "reason"),
    [
        ({"stock graphs build": "kill"}, Kind.CRASH, "killed by SIGKILL"),
        ({"stock graphs score": "raise"}, Kind.ERROR, "ZeroDivisionError: a defect"),
        ({"stock graphs build": "refuse"}, Kind.ERROR, "vLLM did not load the plug-in"),
    ],
)
def test_what_fails_costs_itself_only(
    script: dict[str, str], kind: Kind, reason: str, run: Run
) -> None:
    record = run(script, requests=0)
    (checkpoint,) = record.checkpoints
    failed = checkpoint.one(STOCK, GRAPHS)
    assert failed is not None
    assert (failed.failure, failed.loss) == (kind, None)
    assert reason in failed.reason
    assert [str(it) for it in checkpoint.pairs] == [
        "ours against stock, eager",
        "ours, graphs against eager",
    ]
    assert problems(record) == [f"dense: stock, graphs failed ({kind}): {failed.reason}"]


@pytest.mark.slow
def test_what_hangs_is_ended_and_keeps_its_scores(run: Run) -> None:
    begun = time.monotonic()
    record = run({"ours graphs together": "hang"}, modes=(GRAPHS,), timeout=3.0)
    assert time.monotonic() - begun < 60
    (checkpoint,) = record.checkpoints
    assert len(checkpoint.pairs) == 1
    ours = checkpoint.one(OURS, GRAPHS)
    assert ours is not None
    assert (ours.failure, ours.requests, ours.loss) == (Kind.HANG, None, 1.0)


def test_a_run_without_an_engine_is_an_empty_record(options: AgreementOptions) -> None:
    running = AgreementRun(options, CPU, detect(CPU), factory=FACTORY)
    running.prepare()
    record = running.record(interrupted=True)
    assert (record.checkpoints, record.interrupted, problems(record)) == ((), True, [])
