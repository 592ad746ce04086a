"""One bad candidate costs one candidate; the good one wins; what is finished is not repeated."""

import pytest

from slidesparse.candidate import Candidate, Failure
from slidesparse.search.backend import Effort
from slidesparse.search.journal import Journal
from slidesparse.search.strategy import OutOfTime, ProblemSearch, ProblemSkipped

MISBEHAVING = "fake_backends:Misbehaving"
GOOD = Candidate("misbehaving", {"path": "float32"})


def search(worker, problem, folder=None, effort=Effort.QUICK, **options):
    return ProblemSearch(worker, problem, effort, 0, Journal(folder, problem), **options)


def tried(log):
    """The candidates that were prepared since the last look, in order."""
    lines = log.read_text().split("\n")[:-1]
    log.write_text("")
    return [line.split(" ", 1)[1] for line in lines]


def test_every_bad_candidate_is_recorded_and_the_good_one_wins(
    start_worker, problem, fakes, tmp_path, monkeypatch
):
    monkeypatch.setattr("slidesparse.search.strategy.SCREEN_TIMEOUT", 1.5)
    bad = (
        "segfault,wrong,host_memory,unwritten,device_memory,lost_device,"
        "refused,hang,defect,exit,killed"
    )
    monkeypatch.setenv("FAKE_CANDIDATES", bad)
    ticks = []
    journal = tmp_path / "journal"
    result = search(start_worker(MISBEHAVING), problem(), journal, tick=ticks.append).run()

    assert [m.candidate for m in result.ranked] == [GOOD]
    assert [m.candidate for m in result.defaults] == [GOOD]
    assert result.baseline.candidate == GOOD
    assert result.best.samples == 15
    assert not result.tie
    assert result.tried == 12
    assert (result.effort, result.seed) == ("quick", 0)
    wrong = {f.candidate.params["path"]: (f.kind, f.reason) for f in result.failures}
    limits = " (limit 6.31e-03), worst element off by "
    assert wrong.pop("wrong")[1].startswith("wrong result: relative error ")
    kind, reason = wrong.pop("unwritten")
    assert kind == "wrong"
    assert reason == f"wrong result: relative error nan{limits}nan of the rms (limit 2.71e-02)"
    assert wrong == {
        "segfault": ("crash", "the worker died: killed by SIGSEGV"),
        "host_memory": ("memory", "host memory: cannot allocate 1 PiB"),
        "device_memory": ("memory", "CUDA out of memory. Tried to allocate 1 TiB"),
        "lost_device": (
            "crash",
            "the worker died: RuntimeError: CUDA error: an illegal memory access was encountered",
        ),
        "refused": ("refused", "the library refuses this candidate"),
        "hang": ("timeout", "no answer within 2 s"),
        "defect": (
            "refused",
            "the worker for cpu failed in screen: ZeroDivisionError: a defect of the backend",
        ),
        "exit": ("crash", "the worker died: exit code 3"),
        "killed": ("crash", "the worker died: killed by SIGKILL"),
    }
    # Each bad one once; the good one again for the worker that came after the last death.
    log = tried(fakes)
    assert log[:12] == ["float32", *bad.split(",")]
    assert log[12:] == ["float32"]
    assert [t.done for t in ticks] == list(range(12))
    assert {t.total for t in ticks} == {12}
    assert ticks[0].best_us is None
    assert all(t.best_us > 0 for t in ticks[1:])
    # On disk is all of it: the next search of the same problem tries nothing but the race.
    assert len(Journal(journal, problem()).read()) == 12
    again = search(start_worker(MISBEHAVING), problem(), journal).run()
    assert tried(fakes) == ["float32"]
    assert len(again.failures) == 11
    assert again.best.candidate == GOOD


def test_remembered_failures_are_not_tried_again(start_worker, problem, fakes, monkeypatch):
    monkeypatch.setenv("FAKE_CANDIDATES", "segfault,refused")
    known = Failure(Candidate("misbehaving", {"path": "segfault"}), "crash", "as last time")
    result = search(start_worker(MISBEHAVING), problem(), remembered=[known]).run()
    assert tried(fakes) == ["float32", "refused"]
    assert known in result.failures
    assert {f.kind for f in result.failures} == {"crash", "refused"}


def test_a_candidate_that_crashes_only_in_the_race_is_out(
    start_worker, problem, fakes, monkeypatch
):
    monkeypatch.setenv("FAKE_CANDIDATES", "late_segfault")
    result = search(start_worker(MISBEHAVING), problem()).run()
    assert [m.candidate for m in result.ranked] == [GOOD]
    assert result.best.samples == 15
    (failure,) = result.failures
    assert failure.candidate.params["path"] == "late_segfault"
    assert (failure.kind, failure.reason) == ("crash", "the worker died: killed by SIGSEGV")


def test_one_that_crashes_in_the_heats_is_out_too(start_worker, problem, fakes, monkeypatch):
    """Five good candidates and a late crash: more than finalists, so halving meets it first."""
    monkeypatch.setenv("FAKE_CANDIDATES", "late_segfault,bfloat16")
    monkeypatch.setattr("slidesparse.search.strategy.SCHEDULES", wide_field(finalists=1))
    result = search(start_worker(MISBEHAVING), problem()).run()
    assert "late_segfault" not in [m.candidate.params["path"] for m in result.ranked]
    assert [f.candidate.params["path"] for f in result.failures] == ["late_segfault"]


def wide_field(finalists):
    from dataclasses import replace

    from slidesparse.search.strategy import SCHEDULES

    return {e: replace(s, within=1e6, finalists=finalists) for e, s in SCHEDULES.items()}


def test_no_candidate_that_works_is_a_reason(in_process, problem, monkeypatch):
    monkeypatch.setenv("FAKE_CANDIDATES", "refused")
    known = Failure(GOOD, "crash", "the worker died: killed by SIGSEGV")
    with pytest.raises(ProblemSkipped) as caught:
        search(in_process(MISBEHAVING), problem(), remembered=[known]).run()
    assert str(caught.value) in (
        "none of 2 candidates works: the worker died: killed by SIGSEGV",
        "none of 2 candidates works: the library refuses this candidate",
    )


def test_backends_that_take_no_part_say_why(in_process, problem):
    specs = ("fake_backends:Unavailable", "cpu", "fake_backends:Hungry")
    worker = in_process(*specs)
    result = search(worker, problem()).run()
    assert result.left_out == {"unavailable": "its library is not installed; pip install it"}
    assert {m.candidate.backend for m in result.ranked} <= {"cpu", "hungry"}
    result = search(worker, problem(m=129)).run()
    assert result.left_out == {
        "unavailable": "its library is not installed; pip install it",
        "hungry": "M=129 is over 100",
    }
    assert {m.candidate.backend for m in result.ranked} == {"cpu"}


def test_no_backend_at_all_is_a_reason(in_process, problem):
    worker = in_process("fake_backends:Unavailable", "fake_backends:Hungry")
    with pytest.raises(ProblemSkipped) as caught:
        search(worker, problem(m=129)).run()
    assert str(caught.value) == (
        "no candidate supports it (unavailable: its library is not installed; pip install it; "
        "hungry: M=129 is over 100)"
    )
    with pytest.raises(ProblemSkipped) as caught:
        search(worker, problem(pattern="6:8")).run()
    assert str(caught.value) == "no candidate supports it (no backend takes part)"


def test_a_problem_that_does_not_fit_is_skipped_and_the_worker_lives(start_worker, problem):
    worker = start_worker("cpu")
    with pytest.raises(ProblemSkipped, match=r"^the operands do not fit the memory \(host memory:"):
        search(worker, problem(m=2**40)).run()
    assert worker.alive
    assert search(worker, problem()).run().best is not None


def test_a_problem_that_no_library_can_size_is_skipped(start_worker, problem):
    worker = start_worker("cpu")
    with pytest.raises(ProblemSkipped, match=r"^the worker could not open it \("):
        search(worker, problem(m=10**18)).run()
    assert search(worker, problem()).run().best is not None


def test_a_worker_that_dies_before_the_first_candidate(start_worker, problem):
    worker = start_worker("fake_backends:BrokenImport")
    with pytest.raises(ProblemSkipped) as caught:
        search(worker, problem(pattern="6:8")).run()
    assert str(caught.value) == "the worker could not open it (exit code 7)"


def test_challengers_race_on_the_pruned_weight_and_are_the_baseline(in_process, problem, fakes):
    """The best sparse way stands in the race although every dense one is faster."""
    dense = Candidate("cpu", {"path": "float32"})
    worker = in_process("cpu", "fake_backends:SlowSlid")
    result = search(worker, problem(pattern="6:8"), challengers=[dense]).run()
    assert result.baseline.candidate == dense
    assert result.ranked[0].candidate == dense
    sparse = [m.candidate.params["ms"] for m in result.ranked if m.candidate.sparse]
    assert sparse == [20, 100], "the best and the default"
    assert [m.candidate.params["ms"] for m in result.defaults] == [100]
    assert {m.samples for m in result.ranked} == {15}
    # Verified against the reference of the pruned weight, which an unpruned one would fail.
    assert result.baseline.error < 6e-3


def test_variations_of_the_leaders_are_tried_from_normal_effort_on(in_process, problem):
    worker = in_process("fake_backends:Variations")
    quick = search(worker, problem()).run()
    assert [m.candidate.params["ms"] for m in quick.ranked] == [20]
    normal = search(worker, problem(), effort=Effort.NORMAL).run()
    assert [m.candidate.params["ms"] for m in normal.ranked] == [0, 20]
    assert [m.candidate.params["ms"] for m in normal.defaults] == [20]
    assert normal.tried == 3
    assert not normal.tie


def test_a_worker_that_dies_listing_variations_costs_only_those(start_worker, problem, caplog):
    worker = start_worker("fake_backends:NoNeighbours")
    result = search(worker, problem(), effort=Effort.NORMAL).run()
    assert result.best is not None
    assert result.failures == ()
    assert "no variations of no-neighbours path=float32: the worker died: exit code 9" in (
        caplog.text
    )


def test_finished_candidates_are_not_screened_again(in_process, problem, fakes, tmp_path):
    """Half a journal, as a killed search leaves it: only the other half is screened."""
    first = search(in_process("fake_backends:Slow"), problem(), tmp_path).run()
    assert first.best.candidate.params["i"] == 19
    assert tried(fakes) == [str(i) for i in range(20)]
    (path,) = tmp_path.glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:13]) + lines[13][:30])

    again = search(in_process("fake_backends:Slow"), problem(), tmp_path).run()
    assert again.best.candidate.params["i"] == 19
    assert again.tried == 20
    log = tried(fakes)
    assert log[:8] == [str(i) for i in range(12, 20)]
    assert log[8:] == ["0"], "the default is prepared again for the race, nothing else"


def test_out_of_time_keeps_what_is_measured_and_needs_one(in_process, problem, fakes):
    worker = in_process("fake_backends:Slow")
    result = search(worker, problem(), deadline=0.0).run()
    assert tried(fakes) == ["0"]
    assert result.tried == 1
    assert result.best.candidate.params["i"] == 0
    known = [
        Failure(Candidate("slow", {"path": "float32", "i": i}), "crash", "no") for i in range(20)
    ]
    with pytest.raises(OutOfTime):
        search(worker, problem(), deadline=0.0, remembered=known).run()


def test_a_clear_winner_settles_early_and_equals_are_a_tie(in_process, problem, monkeypatch):
    worker = in_process("fake_backends:Slow")
    # Far enough apart for a machine that does other things meanwhile.
    monkeypatch.setenv("FAKE_STEP_MS", "6")
    clear = search(worker, problem()).run()
    assert not clear.tie
    assert clear.best.samples == 15
    monkeypatch.setattr("slidesparse.search.strategy.settled", lambda *_: False)
    monkeypatch.setenv("FAKE_STEP_MS", "0")
    tied = search(worker, problem(), effort=Effort.NORMAL).run()
    assert tied.tie
    assert len(tied.ranked) in {3, 4}, "three finalists and the default"
    assert {m.samples for m in tied.ranked} == {45}
