"""The second pass, on a GPU that can: does overlapped launching help the winner?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_kernel_sessions as fake
import pytest
from tune_fakes import FASTEST, HOPPER, InProcess, Notes, Run, names, problem, requests

from slidesparse.cache import TuningCache
from slidesparse.candidate import Provenance
from slidesparse.kernels import tune
from slidesparse.kernels.config import Config
from slidesparse.kernels.tune import gain
from slidesparse.worker import WorkerDied


@pytest.fixture
def hopper(tmp_path: Path) -> TuningCache:
    return TuningCache(tmp_path / "hopper", HOPPER, bundled=tmp_path)


def filed(cache: TuningCache) -> Any:
    hit = cache.get_kernel(problem())
    assert hit is not None
    return hit.result


def test_where_it_helps_it_wins(run: Run, plan: dict[str, Any], hopper: TuningCache) -> None:
    plan["times"]["512/4+"] = 8.0
    result = run(problem(), cache=hopper).found[problem()].result
    assert requests(plan)[-2:] == ["16 512/4+", "16 race 512/4 512/4+ 1024/8"]
    # 2048/8 was in the race before: its time does not go with these.
    assert names(result.ranked) == ["512/4+", "512/4", "1024/8"]
    assert result.default == result.ranked[2]
    assert result.tried == 6
    assert gain(result) == pytest.approx(12 / 8)
    assert filed(hopper) == result


@pytest.mark.parametrize("us", [9.95, 10.0, 11.0])
def test_a_gain_inside_the_spread_is_none(
    us: float, run: Run, plan: dict[str, Any], hopper: TuningCache
) -> None:
    plan["times"]["512/4+"] = us
    result = run(problem(), cache=hopper).found[problem()].result
    assert names(result.ranked) == ["512/4", "512/4+", "1024/8"]
    assert filed(hopper) == result


def test_all_times_are_of_the_last_race(
    run: Run, plan: dict[str, Any], hopper: TuningCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is twice as slow by then, and the default faster than the winner."""
    usual = InProcess.call

    def call(worker: InProcess, method: str, *arguments: Any, timeout: float) -> Any:
        if method == "race" and any(Config.of(c).overlap for c in arguments[1]):
            plan["times"] |= {"512/4": 22.0, "512/4+": 21.5, "1024/8": 21.0}
        return usual(worker, method, *arguments, timeout=timeout)

    monkeypatch.setattr(InProcess, "call", call)
    result = run(problem(), cache=hopper).found[problem()].result
    assert names(result.ranked) == ["1024/8", "512/4+", "512/4"]
    assert [m.median_us for m in result.ranked] == [21.0, 21.5, 22.0]
    assert result.default == result.ranked[0]
    assert gain(result) == 1.0


def test_a_default_that_the_last_race_lost_is_no_measure(
    run: Run, plan: dict[str, Any], hopper: TuningCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = InProcess.call

    def call(worker: InProcess, method: str, *arguments: Any, timeout: float) -> Any:
        if method == "race" and any(Config.of(c).overlap for c in arguments[1]):
            plan["deeds"] = {"race": "forgetful"}
        return usual(worker, method, *arguments, timeout=timeout)

    plan["times"]["512/4+"] = 8.0
    monkeypatch.setattr(InProcess, "call", call)
    result = run(problem(), cache=hopper).found[problem()].result
    assert names(result.ranked) == ["512/4+", "512/4"]
    assert result.default is None
    assert gain(result) is None


@pytest.mark.parametrize(("us", "won"), [(11.0, 12 / 11), (13.0, 1.0)])
def test_a_default_that_won_is_its_own_measure(
    us: float, won: float, run: Run, plan: dict[str, Any], hopper: TuningCache
) -> None:
    plan["times"] = {"1024/8": 12.0, "1024/8+": us}
    result = run(problem(), cache=hopper).found[problem()].result
    assert requests(plan)[-1] == "16 race 1024/8 1024/8+"
    assert gain(result) == pytest.approx(won)


def test_what_fails_is_filed_beside_the_winner(
    run: Run, plan: dict[str, Any], hopper: TuningCache
) -> None:
    plan["deeds"] = {"512/4+": "wrong"}
    result = run(problem(), cache=hopper).found[problem()].result
    assert names(result.ranked)[0] == "512/4"
    assert [fake.name_of(f.candidate) for f in result.failures] == ["512/4+"]
    assert filed(hopper) == result


def test_without_memory_the_winner_stays(
    run: Run, plan: dict[str, Any], hopper: TuningCache
) -> None:
    plan["deeds"] = {"512/4+": "memory"}
    outcome = run(problem(16), problem(64), cache=hopper)
    assert [names(t.result.ranked)[0] for t in outcome.found.values()] == ["512/4"] * 2


def test_a_race_that_dies_leaves_the_winner(
    run: Run, plan: dict[str, Any], hopper: TuningCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = InProcess.call

    def call(worker: InProcess, method: str, *arguments: Any, timeout: float) -> Any:
        if method == "race" and any(Config.of(c).overlap for c in arguments[1]):
            raise WorkerDied("killed by SIGSEGV")
        return usual(worker, method, *arguments, timeout=timeout)

    monkeypatch.setattr(InProcess, "call", call)
    result = run(problem(), cache=hopper).found[problem()].result
    assert names(result.ranked)[0] == "512/4"
    assert [(fake.name_of(f.candidate), f.kind) for f in result.failures] == [("512/4+", "crash")]
    assert filed(hopper) == result


def test_a_race_that_loses_a_runner_decides_nothing(
    run: Run, plan: dict[str, Any], hopper: TuningCache
) -> None:
    plan["times"]["512/4+"] = 8.0
    plan["deeds"] = {"race": "forgetful"}
    result = run(problem(), cache=hopper).found[problem()].result
    assert names(result.ranked) == ["512/4", "2048/8"]
    assert [fake.name_of(f.candidate) for f in result.failures] == ["512/4+"]


def test_none_of_it_where_it_cannot_help(
    run: Run, plan: dict[str, Any], cache: TuningCache, hopper: TuningCache
) -> None:
    """On an older GPU, for many rows, and for what saw it before."""
    notes = Notes()
    run(problem(), cache=cache, listener=notes)
    run(problem(m=tune.OVERLAP_M + 1), cache=hopper, listener=notes)
    assert not any("+" in line for line in requests(plan))
    assert "overlapping" not in {event[0] for event in notes.events}
    run(problem(), cache=hopper)
    assert any("+" in line for line in requests(plan))
    run(problem(), cache=hopper)
    assert requests(plan) == []


@pytest.mark.parametrize("us", [8.0, 11.0])
@pytest.mark.parametrize("deed", ["fine", "wrong"])
def test_what_a_spent_budget_left_the_next_run_does_once(
    us: float, deed: str, run: Run, plan: dict[str, Any], hopper: TuningCache
) -> None:
    plan["times"]["512/4+"] = us
    plan["deeds"] = dict.fromkeys(FASTEST, "slow") | {"512/4+": deed}
    outcome = run(problem(), cache=hopper, budget_s=0.2)
    assert list(outcome.found) == [problem()]
    assert not any("+" in line for line in requests(plan))

    notes = Notes()
    tuned = run(problem(), cache=hopper, listener=notes).found[problem()]
    assert [line for line in requests(plan) if "race" not in line] == ["16 512/4+"]
    assert notes.events == [
        ("finished", 16, "cached"),
        ("overlapping", 0, 1),
        ("overlapping", 1, 1),
    ]
    # Times of this run or those of the cache.
    wanted = Provenance.CACHED if deed == "wrong" else Provenance.MEASURED
    assert tuned.provenance is wanted
    assert filed(hopper) == tuned.result
    assert tuned.result.tried == 6

    run(problem(), cache=hopper)
    assert requests(plan) == []


def test_what_ctrl_c_left_the_next_run_does(
    run: Run, plan: dict[str, Any], hopper: TuningCache
) -> None:
    class Interrupts(Notes):
        def overlapping(self, done: int, total: int) -> None:
            if done == 1:
                raise KeyboardInterrupt

    problems = [problem(m) for m in (16, 64, 256)]
    assert run(*problems, cache=hopper, listener=Interrupts()).interrupted
    assert {line.split()[0] for line in requests(plan) if "+" in line} == {"16"}
    run(*problems, cache=hopper)
    assert {line.split()[0] for line in requests(plan)} == {"64", "256"}


def test_a_bundled_winner_stays_as_it_is(
    run: Run, plan: dict[str, Any], hopper: TuningCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan["deeds"] = {"512/4+": "memory"}
    run(problem(), cache=hopper)
    hit = hopper.get_kernel(problem())
    assert hit is not None
    monkeypatch.setattr(
        hopper, "get_kernel", lambda problem: hit._replace(provenance=Provenance.BUNDLED)
    )
    requests(plan)
    outcome = run(problem(), cache=hopper)
    assert outcome.found[problem()].provenance is Provenance.BUNDLED
    assert requests(plan) == []
