"""Sessions that misbehave for real, made by worker processes as "fake_sessions:NAME"."""

import ctypes
import multiprocessing
import os
import time
from pathlib import Path

import torch

from slidesparse.errors import CandidateError


class TwoArguments(CandidateError):
    """An error that pickle cannot make again."""

    def __init__(self, reason, size):
        super().__init__(f"{reason}: {size}")


class Session:
    """Answers well, or fails in one of the ways there are."""

    def __init__(self, device, *arguments):
        self._start = (str(device), arguments)
        self._calls = 0

    def start(self):
        return self._start

    def count(self):
        self._calls += 1
        return self._calls, os.getpid()

    def refuse(self, reason):
        raise CandidateError(reason)

    def refuse_with_two(self):
        raise TwoArguments("no such tile", 256)

    def defect(self):
        raise ZeroDivisionError("a defect of the session\nwith more lines")

    def host_memory(self):
        raise MemoryError("cannot allocate 1 PiB")

    def huge_tensor(self):
        torch.empty(2**60, dtype=torch.int8)

    def device_memory(self):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    def lost_device(self):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def segfault(self):
        ctypes.string_at(0)

    def exit(self):
        os._exit(3)

    def hang(self, mark=None):
        if mark is not None:
            Path(mark).touch()
        time.sleep(3600)


class Parent(Session):
    """A session with a process of its own, as a server has."""

    def start_child(self):
        child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(3600,))
        child.daemon = True
        child.start()
        return os.getpid(), child.pid

    def hang_with_child(self, mark):
        Path(mark).write_text(" ".join(map(str, self.start_child())))
        time.sleep(3600)


class FailsToStart:
    """A session that cannot be made."""

    def __init__(self, device):
        raise OSError("libfake.so.1 cannot be loaded")


class RefusesToStart:
    """A session that says why it cannot be made."""

    def __init__(self, device):
        raise CandidateError(f"{device} has no such unit; use another device")


class DiesAtStart:
    """A session that takes its process along when it is made in a worker."""

    def __init__(self, device):
        if multiprocessing.parent_process() is not None:
            os._exit(5)
