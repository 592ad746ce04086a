"""The session in a real worker: what a bad candidate, problem or backend costs, and its words."""

import pytest

from slidesparse.candidate import Candidate, Failure, Measurement
from slidesparse.errors import SearchError, UsageError
from slidesparse.search.backend import Effort
from slidesparse.worker import WorkerDied, WorkerOutOfMemory

MISBEHAVING = "fake_backends:Misbehaving"
GOOD = Candidate("misbehaving", {"path": "float32"})


def bad(path):
    return Candidate("misbehaving", {"path": path})


def opened(worker, problem):
    return worker.call("open", problem, Effort.QUICK, timeout=60)


def test_what_costs_a_candidate_leaves_the_session_as_it_was(start_worker, problem):
    """Wrong, refused, unwritten, out of memory, a defect: one session goes through all of them."""
    worker = start_worker(MISBEHAVING)
    opening = opened(worker, problem())
    assert opening.candidates == (GOOD, bad("float32"))
    assert opening.defaults == (GOOD.key,)
    outcome = worker.call("screen", GOOD, timeout=60)
    assert isinstance(outcome, Measurement)
    assert outcome.median_us > 0
    assert outcome.error < 6e-3
    assert (outcome.launches, outcome.cold_l2, outcome.graph) == (1, False, False)

    for path, kind, text in (
        ("wrong", "wrong", "wrong result: relative error"),
        ("unwritten", "wrong", "wrong result: relative error nan"),
        ("refused", "refused", "the library refuses this candidate"),
        ("no such", "refused", "the misbehaving backend has no path 'no such'"),
    ):
        outcome = worker.call("screen", bad(path), timeout=60)
        assert isinstance(outcome, Failure)
        assert (outcome.kind, outcome.candidate) == (kind, bad(path))
        assert text in outcome.reason
    with pytest.raises(WorkerOutOfMemory, match=r"^host memory: cannot allocate 1 PiB$"):
        worker.call("screen", bad("host_memory"), timeout=60)
    with pytest.raises(WorkerOutOfMemory, match=r"^CUDA out of memory\. Tried to allocate 1 TiB$"):
        worker.call("screen", bad("device_memory"), timeout=60)
    with pytest.raises(SearchError) as caught:
        worker.call("screen", bad("defect"), timeout=60)
    assert str(caught.value) == (
        "the worker for cpu failed in screen: ZeroDivisionError: a defect of the backend"
    )
    race = worker.call("race", [GOOD], 5, timeout=60)
    assert len(race.samples[0]) == 5


def test_a_huge_problem_is_out_of_memory_and_not_a_defect(start_worker, problem):
    worker = start_worker("cpu")
    with pytest.raises(WorkerOutOfMemory, match=r"^host memory: "):
        opened(worker, problem(m=2**40))
    opening = opened(worker, problem())
    assert [c.params["path"] for c in opening.candidates] == ["float32", "bfloat16"]


def test_a_candidate_that_dies_is_told_and_the_next_problem_opens(start_worker, problem):
    worker = start_worker(MISBEHAVING)
    opened(worker, problem())
    with pytest.raises(WorkerDied, match=r"^killed by SIGSEGV$"):
        worker.call("screen", bad("segfault"), timeout=60)
    opened(worker, problem())
    assert isinstance(worker.call("screen", GOOD, timeout=60), Measurement)


def test_backends_that_cannot_be_made_reach_the_parent(start_worker, problem):
    with pytest.raises(UsageError, match=r"^unknown backend 'cpv', did you mean 'cpu'; known: "):
        opened(start_worker("cpv"), problem())
    with pytest.raises(SearchError) as caught:
        opened(start_worker("fake_backends:FailsToStart"), problem())
    assert str(caught.value) == (
        "the worker for cpu did not start: OSError: libfake.so.1 cannot be loaded"
    )
    with pytest.raises(SearchError) as caught:
        opened(start_worker("fake_backends:DiesAtStart"), problem())
    assert str(caught.value) == "the worker for cpu did not start: exit code 5"
