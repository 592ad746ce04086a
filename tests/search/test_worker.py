"""Workers that really die, hang and lose their parent; each costs one request, told precisely."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from slidesparse.candidate import Candidate, Failure, Measurement
from slidesparse.devices import CPU
from slidesparse.errors import SearchError, UsageError
from slidesparse.search.backend import Effort
from slidesparse.search.worker import (
    Worker,
    WorkerCancelled,
    WorkerDied,
    WorkerOutOfMemory,
    WorkerTimeout,
    describe_exit,
    first_line,
)

MISBEHAVING = "fake_backends:Misbehaving"
GOOD = Candidate("misbehaving", {"path": "float32"})


def bad(path):
    return Candidate("misbehaving", {"path": path})


def opened(worker, problem):
    opening = worker.call("open", problem, Effort.QUICK, timeout=60)
    return opening, worker._process.pid


def gone(pid, within=10.0):
    """Whether a process that may not be our child ends in time; a zombie is gone."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-11, "killed by SIGSEGV"),
        (-9, "killed by SIGKILL"),
        (-40, "killed by signal 40"),
        (None, "still running"),
    ],
)
def test_describe_exit(code, text):
    assert describe_exit(code) == text


def test_first_line_is_short_and_never_empty():
    assert first_line(ValueError("  one\ntwo")) == "one"
    assert first_line(ValueError("x" * 999)) == "x" * 300
    assert first_line(MemoryError()) == "MemoryError"


def test_what_costs_a_candidate_leaves_the_worker_alive(start_worker, problem):
    """Wrong, refused, unwritten, out of memory, a defect: one process goes through all of them."""
    worker = start_worker(MISBEHAVING)
    assert not worker.alive
    opening, pid = opened(worker, problem())
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
    assert worker.alive
    assert worker._process.pid == pid
    race = worker.call("race", [GOOD], 5, timeout=60)
    assert len(race.samples[0]) == 5
    worker.stop()
    assert not worker.alive
    assert gone(pid)


def test_a_huge_problem_is_out_of_memory_and_not_a_defect(start_worker, problem):
    worker = start_worker("cpu")
    with pytest.raises(WorkerOutOfMemory, match=r"^host memory: "):
        worker.call("open", problem(m=2**40), Effort.QUICK, timeout=60)
    opening, _ = opened(worker, problem())
    assert [c.params["path"] for c in opening.candidates] == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("segfault", "killed by SIGSEGV"),
        ("exit", "exit code 3"),
        ("lost_device", "RuntimeError: CUDA error: an illegal memory access was encountered"),
    ],
)
def test_a_death_is_told_and_the_next_call_has_a_new_process(start_worker, problem, path, reason):
    worker = start_worker(MISBEHAVING)
    _, pid = opened(worker, problem())
    with pytest.raises(WorkerDied) as caught:
        worker.call("screen", bad(path), timeout=60)
    assert str(caught.value) == reason
    assert not worker.alive
    assert gone(pid)
    if path == "segfault":  # Once is enough: a start takes seconds.
        _, second = opened(worker, problem())
        assert second != pid
        assert isinstance(worker.call("screen", GOOD, timeout=60), Measurement)


def test_hangs_and_kills_from_outside(start_worker, problem):
    worker = start_worker(MISBEHAVING)
    _, pid = opened(worker, problem())
    start = time.monotonic()
    with pytest.raises(WorkerTimeout, match=r"^no answer within 1 s$"):
        worker.call("screen", bad("hang"), timeout=1.0)
    assert time.monotonic() - start < 5
    assert gone(pid)

    _, pid = opened(worker, problem())
    os.kill(pid, signal.SIGKILL)  # As the kernel's out-of-memory killer does, while it is idle.
    with pytest.raises(WorkerDied, match=r"^killed by SIGKILL$"):
        worker.call("screen", GOOD, timeout=60)


def test_cancel_from_another_thread_ends_a_candidate_that_hangs(start_worker, problem):
    worker = start_worker(MISBEHAVING)
    _, pid = opened(worker, problem())
    threading.Timer(0.3, worker.cancel).start()
    start = time.monotonic()
    with pytest.raises(WorkerCancelled):
        worker.call("screen", bad("hang"), timeout=60)
    assert time.monotonic() - start < 10
    assert gone(pid)
    with pytest.raises(WorkerCancelled):
        worker.call("screen", GOOD, timeout=60)


def open_again_and_again(worker, problem):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        opened(worker, problem)


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.4])
def test_cancel_while_the_worker_starts_is_a_cancellation(start_worker, problem, after_s):
    """Ctrl-C in the first second must not read as "the worker did not start"."""
    worker = start_worker("cpu")
    threading.Timer(after_s, worker.cancel).start()
    start = time.monotonic()
    with pytest.raises(WorkerCancelled):
        open_again_and_again(worker, problem())
    assert time.monotonic() - start < 15
    assert not worker.alive


def test_start_up_failures_reach_the_parent(start_worker, problem):
    with pytest.raises(UsageError, match=r"^unknown backend 'cpv', did you mean 'cpu'; known: "):
        opened(start_worker("cpv"), problem())
    with pytest.raises(SearchError) as caught:
        opened(start_worker("fake_backends:FailsToStart"), problem())
    assert str(caught.value) == (
        "the worker for cpu did not start: OSError: libfake.so.1 cannot be loaded"
    )


def test_a_worker_that_dies_while_it_starts_is_told(start_worker, problem):
    with pytest.raises(SearchError) as caught:
        opened(start_worker("fake_backends:DiesAtStart"), problem())
    assert str(caught.value) == "the worker for cpu did not start: exit code 5"


def test_a_worker_that_never_comes_up_is_given_up(start_worker, problem, monkeypatch):
    monkeypatch.setattr("slidesparse.search.worker.START_TIMEOUT", 0.2)
    worker = start_worker("cpu")
    with pytest.raises(SearchError, match=r"^the worker for cpu did not start within 0 s$"):
        opened(worker, problem())
    assert not worker.alive


def test_ctrl_c_does_not_reach_the_worker(start_worker, problem):
    """Neither while Python starts nor later: the terminal sends it to the whole group."""
    worker = start_worker("cpu")
    codes = []

    def interrupt_early():
        while worker._process is None or worker._process.pid is None:
            time.sleep(0.001)
        for _ in range(20):
            os.kill(worker._process.pid, signal.SIGINT)
            time.sleep(0.02)
        codes.append(worker._process.exitcode)

    thread = threading.Thread(target=interrupt_early)
    thread.start()
    _, pid = opened(worker, problem())
    thread.join()
    os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    assert codes == [None]
    assert worker.alive
    # The mask was the child's business; this process still hears Ctrl-C.
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


PARENT = """
import sys
from slidesparse.candidate import Candidate
from slidesparse.devices import CPU
from slidesparse.problem import DType, GemmProblem
from slidesparse.search.backend import Effort
from slidesparse.search.worker import Worker

if __name__ == "__main__":
    worker = Worker(CPU, ("fake_backends:Misbehaving",), 0)
    problem = GemmProblem(7, 64, 136, DType.FP8, DType.BF16)
    worker.call("open", problem, Effort.QUICK, timeout=60)
    print(worker._process.pid, flush=True)
    if sys.argv[1] == "busy":
        worker.call("screen", Candidate("misbehaving", {"path": "hang"}), timeout=600)
    sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_the_worker_ends_when_its_parent_is_killed(fakes, tmp_path, state):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    parent = subprocess.Popen(
        [sys.executable, str(script), state],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        pid = int(parent.stdout.readline())
        if state == "busy":
            while "hang" not in fakes.read_text():
                time.sleep(0.05)
        assert Path(f"/proc/{pid}").exists()
    finally:
        parent.kill()
        parent.communicate()
    assert gone(pid)


def test_stop_is_safe_at_any_time(problem):
    worker = Worker(CPU, ("cpu",), 0)
    worker.stop()
    worker.cancel()
    worker.stop()
    with pytest.raises(WorkerCancelled):
        worker.call("open", problem(), Effort.QUICK, timeout=1)
