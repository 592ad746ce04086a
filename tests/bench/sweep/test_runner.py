"""Processes of a sweep that really crash, hang and run out of memory: each costs its cell only."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_runs import gone
from sweep_engines import LOG, SCRIPT, calls, pids
from sweep_records import make_sweep

from slidesparse.bench.sweep.job import CellTime
from slidesparse.bench.sweep.runner import ENGINES, EngineKind, Failure, Kind, Limits, SweepRunner
from slidesparse.devices import CPU

SCRIPTED = EngineKind("sweep_engines:Scripted", "stock", "all", children=False)
TURNS = make_sweep(ms=(1, 2, 4)).turns()
SIX = TURNS[2]

Run = Callable[..., dict[int, CellTime | Failure]]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log"
    monkeypatch.setenv(LOG, str(path))
    return path


@pytest.fixture
def run(log: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one turn by a script: what became of each M."""

    def runs(
        script: dict[str, str], limits: Limits | None = None, engine: EngineKind = SCRIPTED
    ) -> dict[int, CellTime | Failure]:
        monkeypatch.setenv(SCRIPT, json.dumps(script))
        runner = SweepRunner(CPU, engine, limits or Limits())
        return {it.key.m: it.found for it in runner.run([SIX])}

    return runs


def test_one_process_measures_all_m_the_largest_last(run: Run, log: Path) -> None:
    found = run({})
    assert {m: it.step_us[0] for m, it in found.items() if isinstance(it, CellTime)} == {
        1: 80.0,
        2: 160.0,
        4: 320.0,
    }
    assert calls(log) == ["ours 6:8 build 1,2,4", *(f"ours 6:8 M={m}" for m in (1, 2, 4))]
    assert len(set(pids(log))) == 1
    assert gone(pids(log)[0])


@pytest.mark.parametrize(
    ("what", "kind", "reason"),
    [
        ("exit", Kind.CRASH, "exit code 3"),
        ("kill", Kind.CRASH, "killed by SIGKILL"),
        ("memory", Kind.MEMORY, "CUDA out of memory. Tried to allocate 9 TiB"),
        ("raise", Kind.ERROR, "the worker for cpu failed in run: ZeroDivisionError: a defect"),
        ("nothing", Kind.ERROR, "the engine gave no time of M=2 but None"),
        ("nan", Kind.ERROR, "the engine gave figures that cannot be"),
    ],
)
def test_what_fails_is_marked_and_the_rest_goes_on_in_a_fresh_process(
    what: str, kind: Kind, reason: str, run: Run, log: Path
) -> None:
    found = run({"ours 6:8 M=2": what})
    assert [isinstance(found[m], CellTime) for m in (1, 2, 4)] == [True, False, True]
    failure = found[2]
    assert isinstance(failure, Failure)
    assert failure.kind is kind
    assert failure.reason.startswith(reason)
    assert "\n" not in failure.reason
    builds = [call for call in calls(log) if "build" in call]
    assert builds == ["ours 6:8 build 1,2,4", "ours 6:8 build 4"]
    assert len(set(pids(log))) == 2


def test_a_hang_is_killed(run: Run, log: Path) -> None:
    found = run({"ours 6:8 M=4": "hang"}, limits=Limits(cell=3.0))
    assert found[4] == Failure(Kind.HANG, "no answer within 3 s")
    assert isinstance(found[2], CellTime)
    assert len([call for call in calls(log) if "build" in call]) == 1, "nothing was left to do"
    assert gone(pids(log)[0])


def test_what_an_engine_refuses_leaves_its_process_alone(run: Run, log: Path) -> None:
    found = run({"* M=2": "refuse"})
    assert found[2] == Failure(
        Kind.ERROR, "sequences of 9 tokens are too long; use a smaller --prompt"
    )
    assert isinstance(found[4], CellTime)
    assert len(set(pids(log))) == 1


@pytest.mark.parametrize(
    ("what", "kind", "reason"),
    [
        ("refuse", Kind.ERROR, "building: sequences of 9 tokens are too long"),
        ("exit", Kind.CRASH, "building: exit code 3"),
        ("hang", Kind.HANG, "building: no answer within 3 s"),
    ],
)
def test_a_model_that_cannot_be_built_marks_all_its_cells(
    what: str, kind: Kind, reason: str, run: Run, log: Path
) -> None:
    found = run({"* build": what}, limits=Limits(build=3.0 if what == "hang" else 60.0))
    assert list(found) == [1, 2, 4]
    for failure in found.values():
        assert isinstance(failure, Failure)
        assert (failure.kind, failure.reason.startswith(reason)) == (kind, True), failure
    assert len(calls(log)) == 1


def test_a_model_too_large_with_the_largest_m_is_built_for_the_others(run: Run, log: Path) -> None:
    found = run({"* build": "memory above 2"})
    failure = found[4]
    assert isinstance(failure, Failure)
    assert failure.kind is Kind.MEMORY
    assert failure.reason == "building: host memory: 9 TiB are not there"
    assert isinstance(found[1], CellTime)
    assert isinstance(found[2], CellTime)
    assert [call for call in calls(log) if "build" in call] == [
        *("ours 6:8 build 1,2,4", "ours 6:8 build 1,2"),
    ]


def test_a_model_that_never_fits_fails_each_cell_once(run: Run) -> None:
    found = run({"* build": "memory"})
    assert {m: it.kind for m, it in found.items() if isinstance(it, Failure)} == dict.fromkeys(
        (1, 2, 4), Kind.MEMORY
    )


def test_every_turn_has_every_cell_whatever_fails(log: Path, monkeypatch) -> None:
    monkeypatch.setenv(SCRIPT, json.dumps({"stock M=2": "exit", "ours dense build": "refuse"}))
    told: list[str] = []
    runner = SweepRunner(CPU, SCRIPTED, Limits(), told.append)
    outcomes = list(runner.run(TURNS))
    assert [it.key for it in outcomes] == [
        *(TURNS[0].key(m) for m in (1, 2, 4)),
        *(TURNS[1].key(m) for m in (1, 2, 4)),
        *(TURNS[2].key(m) for m in (1, 2, 4)),
        *(TURNS[3].key(m) for m in (1, 2, 4)),
    ]
    failed = [it.key.label for it in outcomes if isinstance(it.found, Failure)]
    assert failed == ["stock", *["ours dense"] * 3, "stock again"]
    assert outcomes[0].ran["engine"] == "scripted"
    assert outcomes[3].ran == {}
    assert told[:2] == [f"{TURNS[0]}: building", f"{TURNS[0]} M=1"]


def test_with_the_budget_used_up_nothing_starts(run: Run, log: Path) -> None:
    found = run({}, limits=Limits(budget=1e-9))
    text = "the budget of 1e-09 s was used up; the same command goes on"
    assert found == dict.fromkeys((1, 2, 4), Failure(Kind.BUDGET, text))
    assert not log.exists()


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_the_budget_ends_no_process_that_runs(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building it took longer than its cells will."""
    clock = Clock()
    monkeypatch.setattr("slidesparse.bench.sweep.runner.time", clock)
    monkeypatch.setenv(SCRIPT, "{}")
    found = {}
    for outcome in SweepRunner(CPU, SCRIPTED, Limits(budget=60.0)).run([SIX, *TURNS[:1]]):
        found[outcome.key.label, outcome.key.m] = outcome.found
        clock.now += 59.0
    measured = [key for key, it in found.items() if isinstance(it, CellTime)]
    assert measured == [("ours 6:8", m) for m in (1, 2, 4)]
    rest = [it for it in found.values() if isinstance(it, Failure)]
    assert rest
    assert all(it.kind is Kind.BUDGET for it in rest)


def test_closing_the_iterator_leaves_no_process(log: Path, monkeypatch) -> None:
    monkeypatch.setenv(SCRIPT, "{}")
    outcomes = SweepRunner(CPU, SCRIPTED, Limits()).run([SIX])
    next(outcomes)
    (pid,) = set(pids(log))
    assert not gone(pid, within=0.2)
    outcomes.close()
    assert gone(pid)


def test_what_an_engine_started_ends_with_it(run: Run, log: Path) -> None:
    """A server's own processes would keep the GPU's memory from the next model."""
    found = run({"* M=2": "child"}, Limits(cell=5.0), replace(SCRIPTED, children=True))
    assert isinstance(found[2], Failure)
    assert found[2].kind is Kind.HANG
    assert isinstance(found[4], CellTime)
    (child,) = [int(call.rsplit(" ", 1)[1]) for call in calls(log) if "child" in call]
    assert gone(child)


def test_engines_are_named_after_modules_that_are_there() -> None:
    assert set(ENGINES) == {"linear", "vllm"}
    for name, kind in ENGINES.items():
        module, attribute = kind.factory.split(":")
        assert module == f"slidesparse.bench.sweep.{name}"
        assert attribute.endswith("Engine")
