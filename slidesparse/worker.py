"""A worker process per device: what crashes, hangs or runs out of memory there costs one candidate.

The parent sends one request at a time and waits with a deadline. A worker that dies or overruns is
killed and replaced; the parent knows which candidate it was at.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import pkgutil
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from slidesparse.devices import Device
from slidesparse.errors import SearchError, SlideSparseError

LOST_DEVICE = (
    "cuda error",
    "cuda_error",
    # What Triton passes on of the driver's words; after others of its errors the device is sound.
    "illegal memory access",
    "misaligned address",
    "illegal instruction",
    "unspecified launch failure",
    "device-side assert",
)
"""Words of errors after which a CUDA context serves nobody."""

START_TIMEOUT = 180.0
"""Seconds for a worker to import its libraries and open the device."""

GROUP_TIMEOUT = 10.0
"""Seconds to wait for processes that a killed worker left: a GPU's memory is free after them."""


class WorkerDied(SearchError):
    """The worker ended without an answer.

    Args:
        reason: how it ended, for example "killed by SIGSEGV".
    """


class WorkerTimeout(SearchError):
    """The worker gave no answer in time and was killed."""


class WorkerOutOfMemory(SearchError):
    """The request needed more memory than the device has; the worker lives on."""


class WorkerCancelled(Exception):
    """The work is being stopped; whatever was in flight is nobody's fault."""


@dataclass(frozen=True)
class _Request:
    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _Reply:
    kind: str
    """"ok", "memory" (out of it), "fault" (the device is lost, the worker ends), "error"."""
    value: Any


class Worker:
    """The parent's handle on one worker process, in which one session object answers.

    Args:
        device: the worker's device.
        factory: "module:attribute" of what makes the session there: factory(device, *arguments).
        arguments: picklable.
        children: whether the session may start processes of its own. The worker and all of them
            are one process group then, and end together however the worker ends.
    """

    def __init__(
        self, device: Device, factory: str, *arguments: Any, children: bool = False
    ) -> None:
        """Remember what to start; the process starts with the first call."""
        self.device = device
        self._children = children
        self._group: int | None = None
        self._start_arguments = (children, device, factory, arguments)
        self._context = multiprocessing.get_context("spawn")
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._cancelled = False

    def call(self, method: str, *arguments: Any, timeout: float) -> Any:
        """Run a method of the session in the worker.

        Args:
            method: name of a public method of the session.
            arguments: picklable.
            timeout: in seconds.

        Raises:
            WorkerDied: the process ended, or its device is lost and it ended itself.
            WorkerTimeout: no answer in time; the process was killed.
            WorkerOutOfMemory: the device's memory did not suffice.
            WorkerCancelled: `cancel` was called, before or meanwhile.
            SearchError: the request raised an error in the worker that is a defect of ours.
        """
        reply = self._exchange(_Request(method, arguments), timeout)
        if reply.kind == "ok":
            return reply.value
        if reply.kind == "memory":
            raise WorkerOutOfMemory(reply.value)
        if reply.kind == "fault":
            self._bury()
            raise WorkerDied(reply.value)
        if isinstance(reply.value, SlideSparseError):
            raise reply.value
        raise SearchError(f"the worker for {self.device} failed in {method}: {reply.value}")

    @property
    def alive(self) -> bool:
        """Whether the process runs and holds its state."""
        return self._process is not None and self._process.is_alive()

    def cancel(self) -> None:
        """End the process at once, from any thread; pending and later calls raise."""
        self._cancelled = True
        process = self._process
        if process is not None and process.is_alive():
            process.kill()
        self._kill_group()

    def stop(self) -> None:
        """End the process, gently if it is idle; safe to call at any time."""
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                self._pipe.close()
        if self._process is not None:
            self._process.join(timeout=2.0)
            self._kill()
        self._end_group()
        self._process = self._pipe = None

    def _exchange(self, request: _Request, timeout: float) -> _Reply:
        if self._cancelled:
            raise WorkerCancelled
        if self._process is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send(request)
            return self._receive(timeout)
        except (EOFError, OSError) as error:
            end = self._bury()
            if self._cancelled:
                raise WorkerCancelled from error
            raise WorkerDied(end) from error

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        # Python lets no daemon have children.
        process = self._context.Process(
            target=_serve, args=(theirs, *self._start_arguments), daemon=not self._children
        )
        _start_without_sigint(process)
        self._process = process
        self._group = process.pid if self._children else None
        theirs.close()
        if self._cancelled:  # `cancel` sees the process, or this sees `cancel`.
            self._bury_killed()
            raise WorkerCancelled
        try:
            hello = self._receive(START_TIMEOUT)
        except (EOFError, OSError) as error:
            end = self._bury()
            if self._cancelled:
                raise WorkerCancelled from error
            raise SearchError(f"the worker for {self.device} did not start: {end}") from error
        except WorkerTimeout as error:
            raise SearchError(
                f"the worker for {self.device} did not start within {START_TIMEOUT:.0f} s"
            ) from error
        if hello.kind != "ok":
            self._bury()
            if isinstance(hello.value, SlideSparseError):
                raise hello.value
            raise SearchError(f"the worker for {self.device} did not start: {hello.value}")

    def _receive(self, timeout: float) -> _Reply:
        assert self._pipe is not None
        if not self._pipe.poll(timeout):
            self._bury_killed()
            raise WorkerTimeout(f"no answer within {timeout:.0f} s")
        reply = self._pipe.recv()
        assert isinstance(reply, _Reply)
        return reply

    def _bury(self) -> str:
        process, self._process, self._pipe = self._process, None, None
        if process is None:
            return "it is gone"
        process.join(timeout=10.0)
        if process.is_alive():
            process.kill()
            process.join()
        self._end_group()
        return describe_exit(process.exitcode)

    def _bury_killed(self) -> None:
        self._kill()
        self._end_group()
        self._process = self._pipe = None

    def _kill(self) -> None:
        if self._process is not None and self._process.is_alive():
            self._process.kill()
            self._process.join(timeout=30.0)

    def _kill_group(self) -> None:
        if self._group is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, signal.SIGKILL)

    def _end_group(self) -> None:
        """Kill what the worker started and wait until it is gone."""
        group, deadline = self._group, time.monotonic() + GROUP_TIMEOUT
        self._kill_group()
        self._group = None
        while group is not None and _group_lives(group) and time.monotonic() < deadline:
            time.sleep(0.02)


def describe_exit(code: int | None) -> str:
    """How a process ended, from its exit code: "killed by SIGSEGV", "exit code 3"."""
    if code is None:
        return "still running"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # Most real-time signals have no name.
        return f"killed by signal {-code}"


def _start_without_sigint(process: multiprocessing.process.BaseProcess) -> None:
    """Start a process that Ctrl-C does not reach, not even before its first line runs.

    Ctrl-C goes to the whole process group; only the parent decides what to do about it. A child
    inherits the signal mask of the thread that starts it.
    """
    # Starting its first process, multiprocessing starts this too and unblocks SIGINT after it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _group_lives(group: int) -> bool:
    """Whether a process group has a process that holds anything: a zombie does not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, its_group = path.read_text().rsplit(")", 1)[1].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


def _end_with_parent(children: bool) -> None:
    """End this process when its parent is gone, even in the middle of a candidate that hangs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    if children:
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _serve(
    pipe: Connection, children: bool, device: Device, factory: str, arguments: tuple[Any, ...]
) -> None:
    """Answer requests until the parent closes the pipe or a fault makes the device unusable."""
    if children:
        os.setsid()
    threading.Thread(target=_end_with_parent, args=(children,), daemon=True).start()
    try:
        session = pkgutil.resolve_name(factory)(device, *arguments)
    except Exception as error:  # Anything here must reach the parent, which has the terminal.
        pipe.send(_Reply("error", _portable(error)))
        return
    pipe.send(_Reply("ok", os.getpid()))
    while True:
        try:
            request = pipe.recv()
        except (EOFError, OSError):
            return
        reply = _answer(session, request)
        try:
            pipe.send(reply)
        except OSError:
            return
        if reply.kind == "fault":
            os._exit(1)  # A lost CUDA context can hang in its own clean-up.


def _answer(session: Any, request: _Request) -> _Reply:
    import torch

    try:
        return _Reply("ok", getattr(session, request.method)(*request.arguments))
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return _Reply("memory", first_line(error))
    except MemoryError as error:
        return _Reply("memory", f"host memory: {first_line(error)}")
    except SlideSparseError as error:
        return _Reply("error", _portable(error))
    except Exception as error:  # Whatever a library throws costs its candidate only.
        text = first_line(error)
        if "DefaultCPUAllocator" in str(error):
            return _Reply("memory", f"host memory: {text}")
        return _Reply("fault" if is_device_fault(error) else "error", _portable(error))


def is_device_fault(error: Exception) -> bool:
    """Whether the device is lost to this process, which then has to end."""
    text = str(error).lower()
    return any(sign in text for sign in LOST_DEVICE) or "acceleratorerror" in repr(error).lower()


def _portable(error: Exception) -> SlideSparseError | str:
    """An error that survives the pipe: ours as it is, anything else as one line."""
    if isinstance(error, SlideSparseError):
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # One with arguments of its own fails in the parent's hands.
            return f"{type(error).__name__}: {first_line(error)}"
        return error
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 300 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
