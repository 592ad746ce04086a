"""Tuning: the fastest right configuration wins, and what misbehaves costs itself only."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_kernel_sessions as fake
import pytest
from tune_fakes import (
    CONFIGS,
    FASTEST,
    GPU,
    InProcess,
    Notes,
    Run,
    names,
    problem,
    reopened,
    requests,
)

from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Provenance
from slidesparse.devices import Device
from slidesparse.errors import CacheError, SearchError
from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.kernels import config as config_module
from slidesparse.kernels import tune
from slidesparse.kernels.config import Config, Table, chosen, load
from slidesparse.kernels.tune import TuneListener, TuneOptions, Tuner, gain
from slidesparse.pattern import Pattern
from slidesparse.problem import DType


def test_the_fastest_wins_and_the_close_ones_race_the_default(
    run: Run, plan: dict[str, Any], seed: int
) -> None:
    notes = Notes()
    outcome = run(problem(), listener=notes)
    result = outcome.found[problem()].result
    # 11.5 is more than a tenth over 10; 12, the default, races whatever its time.
    assert requests(plan) == [
        *(f"16 {name}" for name in FASTEST),
        "16 race 512/4 2048/8 1024/8",
    ]
    assert names(result.ranked) == ["512/4", "2048/8", "1024/8"]
    assert result.default == result.ranked[2]
    assert {m.samples for m in result.ranked} == {tune.ROUNDS}
    assert (result.tried, result.failures, result.seed) == (5, (), seed)
    assert gain(result) == pytest.approx(1.2)
    assert outcome.found[problem()].provenance is Provenance.MEASURED
    assert (outcome.interrupted, outcome.skipped) == (False, {})
    assert notes.events == [("started", 16, 5), ("finished", 16, "measured")]


def test_no_more_than_the_finalists_race_however_close(run: Run, plan: dict[str, Any]) -> None:
    plan["times"] = {"1024/8": 10.3, "512/4": 10.8, "2048/8": 10.2, "512/16": 10.1, "1024/4": 10.0}
    result = run(problem()).found[problem()].result
    assert requests(plan)[-1] == "16 race 1024/4 512/16 2048/8 1024/8", "not 512/4, the fifth"
    assert names(result.ranked)[0] == "1024/4"
    assert result.default == result.ranked[3]


def test_the_default_races_beside_the_finalists(run: Run, plan: dict[str, Any]) -> None:
    plan["times"] = {"1024/8": 10.9, "512/4": 10.8, "2048/8": 10.2, "512/16": 10.1, "1024/4": 10.0}
    result = run(problem()).found[problem()].result
    assert requests(plan)[-1] == "16 race 1024/4 512/16 2048/8 512/4 1024/8"
    assert result.default is not None
    assert result.default.median_us == 10.9


def test_a_default_that_wins_gains_nothing(run: Run, plan: dict[str, Any]) -> None:
    plan["times"] = {"1024/8": 5.0}
    result = run(problem()).found[problem()].result
    assert requests(plan)[-1] == "16 race 1024/8"
    assert gain(result) == 1.0


def test_without_the_default_there_is_no_gain(run: Run, plan: dict[str, Any]) -> None:
    plan["deeds"] = {"1024/8": "wrong"}
    result = run(problem()).found[problem()].result
    assert result.default is None
    assert gain(result) is None


def test_what_misbehaves_costs_itself(
    start_worker: Any,
    plan: dict[str, Any],
    cache: TuningCache,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """In a real process: it dies, is killed and hangs, and the rest of the work is done."""
    monkeypatch.setattr(tune, "TIMEOUT", 2.0)
    plan["deeds"] = {
        "2048/8": "refused",
        "16 512/4": "exit",
        "16 512/16": "wrong",
        "64 512/4": "hang",
        "256 512/16": "memory",
        "1024 race": "kill",
        **{f"4096 {name}": "wrong" for name in FASTEST},
    }
    problems = [problem(m) for m in (16, 64, 256, 1024, 4096, 16384)]
    notes = Notes()
    outcome = Tuner(problems, GPU, cache, TuneOptions(seed=seed), start_worker()).run(notes)

    assert [p.m for p in outcome.found] == [16, 64, 1024, 16384]
    assert outcome.skipped == {
        problem(256): "out of memory: host memory: no 96 GiB",
        problem(4096): "no configuration works: 1024/8 is wrong",
    }
    kinds = {
        p.m: [(fake.name_of(f.candidate), f.kind, f.reason) for f in tuned.result.failures]
        for p, tuned in outcome.found.items()
    }
    refused = ("2048/8", "refused", "2048/8 is refused")
    assert kinds == {
        16: [
            ("512/4", "crash", "exit code 3"),
            refused,
            ("512/16", "wrong", "512/16 is wrong"),
        ],
        64: [("512/4", "timeout", "no answer within 2 s"), refused],
        1024: [refused],
        16384: [refused],
    }
    winners = {p.m: names(tuned.result.ranked) for p, tuned in outcome.found.items()}
    assert winners[16] == winners[64] == ["1024/4", "1024/8"]
    # The default for so many rows is none of the five.
    assert winners[16384] == ["512/4"]
    # The race died: the first times have to do.
    assert winners[1024] == ["512/4"]
    assert {m.samples for m in outcome.found[problem(1024)].result.ranked} == {3}
    filed = reopened(cache, tmp_path).user_kernels()
    assert {r.problem: r for r in filed.values()} == {
        p: tuned.result for p, tuned in outcome.found.items()
    }
    assert [event[2] for event in notes.events if event[0] == "finished"][2:5] == [
        "out of memory: host memory: no 96 GiB",
        "measured",
        "no configuration works: 1024/8 is wrong",
    ]


def test_a_race_that_loses_a_runner_ranks_the_others(run: Run, plan: dict[str, Any]) -> None:
    """As where it had to be verified again in a new process and failed."""
    plan["deeds"] = {"race": "forgetful"}
    result = run(problem()).found[problem()].result
    assert names(result.ranked) == ["512/4", "2048/8"]
    assert result.default is None


def test_a_race_without_memory_leaves_the_first_times(run: Run, plan: dict[str, Any]) -> None:
    plan["deeds"] = {"race": "memory"}
    result = run(problem()).found[problem()].result
    assert names(result.ranked) == ["512/4", "2048/8", "1024/8"]
    assert result.default == result.ranked[2]
    assert {m.samples for m in result.ranked} == {3}, "of the same screening"


def test_a_defect_of_the_session_ends_it_and_finished_work_is_kept(
    run: Run, plan: dict[str, Any], cache: TuningCache
) -> None:
    plan["deeds"] = {"64 512/4": "defect"}
    with pytest.raises(SearchError, match="failed in screen: a defect of the session"):
        run(problem(16), problem(64))
    assert [r.problem.m for r in cache.user_kernels().values()] == [16]


def test_a_cache_that_cannot_be_written_is_an_error(run: Run, cache: TuningCache) -> None:
    cache.root.write_text("in the way")
    with pytest.raises(CacheError, match="cannot write the tuning cache"):
        run(problem())


def test_the_budget_lets_what_has_begun_finish(run: Run, plan: dict[str, Any]) -> None:
    plan["deeds"] = dict.fromkeys(FASTEST, "slow")
    problems = [problem(m) for m in (16, 64, 256)]
    start = time.monotonic()
    outcome = run(*problems, budget_s=0.3)
    assert time.monotonic() - start < 2
    assert list(outcome.found) == problems[:1]
    assert outcome.found[problem()].result.tried == 5
    spent = "the budget of 0.3 s is spent"
    assert outcome.skipped == dict.fromkeys(problems[1:], spent)
    assert not outcome.interrupted


class Interrupts(Notes):
    """Ctrl-C at an event of a problem."""

    def __init__(self, event: str, m: int) -> None:
        super().__init__()
        self._at = (event, m)

    def started(self, problem: KernelProblem, configs: int) -> None:
        self._interrupt("started", problem)

    def finished(self, problem: KernelProblem, tuned: Any, reason: str) -> None:
        self._interrupt("finished", problem)

    def _interrupt(self, event: str, problem: KernelProblem) -> None:
        if self._at == (event, problem.m):
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("event", "kept"), [("started", [16]), ("finished", [16, 64])], ids=["before", "after"]
)
def test_ctrl_c_keeps_finished_work_and_the_next_run_does_the_rest(
    event: str, kept: list[int], run: Run, plan: dict[str, Any], cache: TuningCache
) -> None:
    problems = [problem(m) for m in (16, 64, 256)]
    outcome = run(*problems, listener=Interrupts(event, 64))
    assert outcome.interrupted
    assert [p.m for p in outcome.found] == kept
    assert [r.problem.m for r in cache.user_kernels().values()] == kept
    requests(plan)
    again = run(*problems)
    assert {line.split()[0] for line in requests(plan)} == {"64", "256"} - {str(m) for m in kept}
    assert list(again.found) == problems
    assert not again.interrupted


def test_ctrl_c_while_what_is_cached_is_listed(run: Run) -> None:
    run(problem())
    assert run(problem(), listener=Interrupts("finished", 16)).interrupted


def test_ctrl_c_while_a_configuration_hangs(
    start_worker: Any, plan: dict[str, Any], cache: TuningCache, seed: int
) -> None:
    """The real signal, and a real process that has to go."""
    plan["deeds"] = {"64 512/4": "hang"}

    def press() -> None:
        while "64 512/4" not in Path(plan["log"]).read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    worker = start_worker()
    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    start = time.monotonic()
    tuner = Tuner([problem(16), problem(64)], GPU, cache, TuneOptions(seed=seed), worker)
    outcome = tuner.run()
    thread.join()
    assert time.monotonic() - start < 30
    assert outcome.interrupted
    assert [p.m for p in outcome.found] == [16]
    assert not worker.alive


def test_ctrl_c_while_kernels_are_compiled_starts_no_worker(
    cache: TuningCache, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_parallel(jobs: Any, device: Device, done: Any, deadline: Any) -> list[str]:
        assert deadline is None
        done(1)
        raise KeyboardInterrupt

    told = []

    class Counts(TuneListener):
        def compiling(self, done: int, total: int) -> None:
            told.append((done, total))

    monkeypatch.setattr(tune, "compile_parallel", compile_parallel)
    # Three M are one kernel; two widths are two.
    problems = [problem(m, k) for m in (16, 64, 256) for k in (576, 640)]
    tuner = Tuner(problems, GPU, cache, TuneOptions())
    outcome = tuner.run(Counts())
    assert outcome.interrupted
    assert (outcome.found, outcome.skipped) == ({}, {})
    assert told == [(1, 2 * len(CONFIGS))]
    assert requests(plan) == []


def test_a_few_kernels_are_left_to_the_worker(
    cache: TuningCache, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starting processes for them takes longer than compiling them one by one."""
    monkeypatch.setattr(tune, "compile_parallel", None)
    monkeypatch.setattr(tune, "Worker", lambda *arguments: InProcess(plan))
    outcome = Tuner([problem()], GPU, cache, TuneOptions()).run()
    assert list(outcome.found) == [problem()]


def test_compiling_ahead_takes_half_of_the_budget_and_the_rest_is_tuned(
    cache: TuningCache, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def compile_parallel(jobs: Any, device: Device, done: Any, deadline: float) -> list[str]:
        given.append(deadline - time.monotonic())
        return []

    monkeypatch.setattr(tune, "compile_parallel", compile_parallel)
    monkeypatch.setattr(tune, "Worker", lambda *arguments: InProcess(plan))
    problems = [problem(k=k) for k in (576, 640)]
    outcome = Tuner(problems, GPU, cache, TuneOptions(budget_s=60)).run()
    assert list(outcome.found) == problems
    assert given == [pytest.approx(30, abs=1)]


def test_what_is_cached_is_not_measured_again_unless_fresh(
    run: Run, plan: dict[str, Any], cache: TuningCache
) -> None:
    first = run(problem(16), problem(64))
    requests(plan)
    notes = Notes()
    second = run(problem(16), problem(64), listener=notes)
    assert requests(plan) == []
    assert [t.provenance for t in second.found.values()] == [Provenance.CACHED] * 2
    assert [t.result for t in second.found.values()] == [t.result for t in first.found.values()]
    assert [event[0] for event in notes.events] == ["finished"] * 2

    plan["times"]["1024/4"] = 2.0
    third = run(problem(16), fresh=True)
    assert len(requests(plan)) == 6
    hit = cache.get_kernel(problem(16))
    assert hit is not None
    assert hit.result == third.found[problem(16)].result
    assert names(hit.result.ranked) == ["1024/4", "1024/8"]
    assert cache.get_kernel(problem(64)) is not None, "the other entry stays"


def test_what_was_found_is_in_the_order_of_the_problems(run: Run) -> None:
    run(problem(256))
    outcome = run(problem(16), problem(256), problem(1024))
    assert [p.m for p in outcome.found] == [16, 256, 1024]


@pytest.mark.parametrize("other", [problem(m=9), problem(k=570)], ids=["M", "K"])
def test_another_size_of_the_same_bucket_is_measured(
    other: KernelProblem, run: Run, plan: dict[str, Any]
) -> None:
    assert other.key == problem().key
    run(problem())
    requests(plan)
    assert run(other).found[other].provenance is Provenance.MEASURED
    assert len(requests(plan)) == 6


def test_a_cached_winner_that_no_launch_can_take_is_a_miss(
    run: Run, plan: dict[str, Any], cache: TuningCache
) -> None:
    result = run(problem()).found[problem()].result
    strange = replace(result.ranked[0], candidate=Candidate("triton", {"block": 512}))
    cache.put_kernels([replace(result, ranked=(strange,))])
    assert run(problem()).found[problem()].provenance is Provenance.MEASURED


def test_a_launch_takes_what_was_tuned(
    run: Run, cache: TuningCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not cache.kernels_path.exists()
    run(problem())
    assert cache.kernels_path.is_file()
    hits = reopened(cache, tmp_path).kernel_entries().values()
    table = Table(hit.result for hit in hits)
    assert table.find(problem()) == Config(512, 4)

    config_module.forget()
    load(GPU.index, table)
    try:
        wanted = (Op.QUANTIZE, 16, 576, DType.BF16, DType.FP8, Pattern.parse("6:8"), False)
        assert chosen(GPU.index, *wanted) == Config(512, 4)
    finally:
        config_module.forget()


def test_the_seed_is_drawn_unless_told(cache: TuningCache) -> None:
    def made(seed: int | None) -> int:
        return Tuner([problem()], GPU, cache, TuneOptions(seed=seed)).outcome.seed

    assert made(5) == 5
    assert len({made(None) for _ in range(4)}) > 1


def test_full_effort_tries_more(cache: TuningCache) -> None:
    many = problem(m=4096)
    spaces = [Tuner([many], GPU, cache, TuneOptions(full=full)).space(many) for full in (0, 1)]
    assert len(spaces[1]) > 3 * len(spaces[0])
    assert spaces[0][0] == spaces[1][0]
    assert set(spaces[0]) < set(spaces[1])
