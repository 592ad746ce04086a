"""Workers that really die, hang and lose their parent; each costs one request, told precisely."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cli_runs import gone

from slidesparse.devices import CPU
from slidesparse.errors import CandidateError, SearchError
from slidesparse.worker import (
    Worker,
    WorkerCancelled,
    WorkerDied,
    WorkerOutOfMemory,
    WorkerTimeout,
    describe_exit,
    first_line,
)

HERE = Path(__file__).resolve().parent
SESSION = "fake_sessions:Session"


@pytest.fixture
def start_worker(monkeypatch):
    """Make workers on the CPU that are stopped after the test."""
    monkeypatch.syspath_prepend(str(HERE))
    workers = []

    def make(factory=SESSION, *arguments, children=False):
        workers.append(Worker(CPU, factory, *arguments, children=children))
        return workers[-1]

    yield make
    for worker in workers:
        worker.stop()


def started(worker):
    """The process id of the worker, which now runs."""
    return worker.call("count", timeout=60)[1]


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


def test_the_session_is_made_once_with_the_arguments(start_worker):
    worker = start_worker(SESSION, ("cpu",), 7)
    assert not worker.alive
    assert worker.call("start", timeout=60) == ("cpu", (("cpu",), 7))
    assert [worker.call("count", timeout=60)[0] for _ in range(3)] == [1, 2, 3]


def test_what_costs_a_request_leaves_the_worker_alive(start_worker):
    """Refused, out of memory, a defect: one process goes through all of them."""
    worker = start_worker()
    pid = started(worker)
    with pytest.raises(CandidateError, match=r"^no such tile$"):
        worker.call("refuse", "no such tile", timeout=60)
    with pytest.raises(SearchError, match=r"refuse_with_two: TwoArguments: no such tile: 256$"):
        worker.call("refuse_with_two", timeout=60)
    with pytest.raises(WorkerOutOfMemory, match=r"^host memory: cannot allocate 1 PiB$"):
        worker.call("host_memory", timeout=60)
    with pytest.raises(WorkerOutOfMemory, match=r"^host memory: "):
        worker.call("huge_tensor", timeout=60)
    with pytest.raises(WorkerOutOfMemory, match=r"^CUDA out of memory\. Tried to allocate 1 TiB$"):
        worker.call("device_memory", timeout=60)
    with pytest.raises(SearchError) as caught:
        worker.call("defect", timeout=60)
    assert str(caught.value) == (
        "the worker for cpu failed in defect: ZeroDivisionError: a defect of the session"
    )
    assert worker.alive
    assert worker.call("count", timeout=60) == (2, pid)
    worker.stop()
    assert not worker.alive
    assert gone(pid)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("segfault", "killed by SIGSEGV"),
        ("exit", "exit code 3"),
        ("lost_device", "RuntimeError: CUDA error: an illegal memory access was encountered"),
    ],
)
def test_a_death_is_told_and_the_next_call_has_a_new_process(start_worker, method, reason):
    worker = start_worker()
    pid = started(worker)
    with pytest.raises(WorkerDied) as caught:
        worker.call(method, timeout=60)
    assert str(caught.value) == reason
    assert not worker.alive
    assert gone(pid)
    if method == "segfault":  # Once is enough: a start takes seconds.
        count, second = worker.call("count", timeout=60)
        assert (count, second != pid) == (1, True)


def test_hangs_and_kills_from_outside(start_worker):
    worker = start_worker()
    pid = started(worker)
    start = time.monotonic()
    with pytest.raises(WorkerTimeout, match=r"^no answer within 1 s$"):
        worker.call("hang", timeout=1.0)
    assert time.monotonic() - start < 5
    assert gone(pid)

    pid = started(worker)
    os.kill(pid, signal.SIGKILL)  # As the kernel's out-of-memory killer does, while it is idle.
    with pytest.raises(WorkerDied, match=r"^killed by SIGKILL$"):
        worker.call("count", timeout=60)


def test_cancel_from_another_thread_ends_a_call_that_hangs(start_worker):
    worker = start_worker()
    pid = started(worker)
    threading.Timer(0.3, worker.cancel).start()
    start = time.monotonic()
    with pytest.raises(WorkerCancelled):
        worker.call("hang", timeout=60)
    assert time.monotonic() - start < 10
    assert gone(pid)
    with pytest.raises(WorkerCancelled):
        worker.call("count", timeout=60)


def call_again_and_again(worker):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        started(worker)


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.4])
def test_cancel_while_the_worker_starts_is_a_cancellation(start_worker, after_s):
    """Ctrl-C in the first second must not read as "the worker did not start"."""
    worker = start_worker()
    threading.Timer(after_s, worker.cancel).start()
    start = time.monotonic()
    with pytest.raises(WorkerCancelled):
        call_again_and_again(worker)
    assert time.monotonic() - start < 15
    assert not worker.alive


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        ("fake_sessions:FailsToStart", "OSError: libfake.so.1 cannot be loaded"),
        ("fake_sessions:DiesAtStart", "exit code 5"),
        ("no_such_module:Session", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("fake_sessions:None_", "AttributeError: module 'fake_sessions' has no attribute 'None_'"),
    ],
)
def test_start_up_failures_reach_the_parent(start_worker, factory, text):
    worker = start_worker(factory)
    with pytest.raises(SearchError) as caught:
        started(worker)
    assert str(caught.value) == f"the worker for cpu did not start: {text}"
    assert not worker.alive


def test_a_session_that_says_why_it_cannot_start_is_quoted(start_worker):
    with pytest.raises(CandidateError, match=r"^cpu has no such unit; use another device$"):
        started(start_worker("fake_sessions:RefusesToStart"))


def test_a_worker_that_never_comes_up_is_given_up(start_worker, monkeypatch):
    monkeypatch.setattr("slidesparse.worker.START_TIMEOUT", 0.2)
    worker = start_worker()
    with pytest.raises(SearchError, match=r"^the worker for cpu did not start within 0 s$"):
        started(worker)
    assert not worker.alive


def test_ctrl_c_does_not_reach_the_worker(start_worker):
    """Neither while Python starts nor later: the terminal sends it to the whole group."""
    worker = start_worker()
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
    pid = started(worker)
    thread.join()
    os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    assert codes == [None]
    assert worker.alive
    # The mask was the child's business; this process still hears Ctrl-C.
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


PARENT = """
import sys
from slidesparse.devices import CPU
from slidesparse.worker import Worker

if __name__ == "__main__":
    worker = Worker(CPU, "fake_sessions:Session")
    print(worker.call("count", timeout=60)[1], flush=True)
    if sys.argv[1] == "busy":
        worker.call("hang", sys.argv[2], timeout=600)
    sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_the_worker_ends_when_its_parent_is_killed(tmp_path, state):
    script, mark = tmp_path / "parent.py", tmp_path / "mark"
    script.write_text(PARENT)
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    parent = subprocess.Popen(
        [sys.executable, str(script), state, str(mark)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        pid = int(parent.stdout.readline())
        if state == "busy":
            while not mark.exists():
                time.sleep(0.05)
        assert Path(f"/proc/{pid}").exists()
    finally:
        parent.kill()
        parent.communicate()
    assert gone(pid)


PARENT_OF_PARENT = """
import sys
from slidesparse.devices import CPU
from slidesparse.worker import Worker

if __name__ == "__main__":
    worker = Worker(CPU, "fake_sessions:Parent", children=True)
    worker.call("hang_with_child", sys.argv[1], timeout=600)
"""


def family(worker):
    """The process ids of a worker and of the process that it started."""
    return worker.call("start_child", timeout=60)


def test_without_leave_a_worker_has_no_children(start_worker):
    with pytest.raises(SearchError, match="daemonic processes are not allowed to have children"):
        family(start_worker("fake_sessions:Parent"))


@pytest.mark.parametrize("end", ["stop", "cancel", "exit", "hang", "kill"])
def test_a_worker_and_its_children_end_together(start_worker, end):
    worker = start_worker("fake_sessions:Parent", children=True)
    pid, child = family(worker)
    assert os.getpgid(child) == pid != os.getpgid(0), "Ctrl-C does not reach them"
    if end == "kill":
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match=r"^killed by SIGKILL$"):
            worker.call("count", timeout=60)
    elif end == "exit":
        with pytest.raises(WorkerDied, match=r"^exit code 3$"):
            worker.call("exit", timeout=60)
    elif end == "hang":
        with pytest.raises(WorkerTimeout):
            worker.call("hang", timeout=0.5)
    else:
        getattr(worker, end)()
    # At once, but for a cancellation, which waits for nothing: memory is free for the next one.
    assert gone(child, within=10.0 if end == "cancel" else 0.1)
    assert gone(pid)


def test_children_end_when_the_parent_is_killed(tmp_path):
    script, mark = tmp_path / "parent.py", tmp_path / "mark"
    script.write_text(PARENT_OF_PARENT)
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    parent = subprocess.Popen(
        [sys.executable, str(script), str(mark)], env={**os.environ, "PYTHONPATH": path}
    )
    try:
        while not (mark.exists() and len(mark.read_text().split()) == 2):
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    assert all(gone(int(pid)) for pid in mark.read_text().split())


def test_stop_is_safe_at_any_time():
    worker = Worker(CPU, SESSION)
    worker.stop()
    worker.cancel()
    worker.stop()
    with pytest.raises(WorkerCancelled):
        worker.call("count", timeout=1)
