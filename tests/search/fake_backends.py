"""Backends that misbehave for real, loaded by worker processes as "fake_backends:NAME"."""

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from slidesparse.candidate import Candidate
from slidesparse.errors import CandidateError
from slidesparse.search.backend import Availability, Runner
from slidesparse.search.cpu import CpuReference, CpuSlid


def _segfault(index, stream):
    ctypes.string_at(0)


def _hang(index, stream):
    time.sleep(3600)


def _host_memory(index, stream):
    raise MemoryError("cannot allocate 1 PiB")


def _device_memory(index, stream):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")


def _lost_device(index, stream):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _defect(index, stream):
    raise ZeroDivisionError("a defect of the backend")


def _unwritten(index, stream):
    pass


LAUNCHES: dict[str, Callable[[int, int], None]] = {
    "segfault": _segfault,
    "hang": _hang,
    "host_memory": _host_memory,
    "device_memory": _device_memory,
    "lost_device": _lost_device,
    "unwritten": _unwritten,
    "defect": _defect,
}


class Misbehaving(CpuReference):
    """The reference, and beside it the candidates named in FAKE_CANDIDATES (comma-separated)."""

    name = "misbehaving"

    def candidates(self, problem, effort):
        names = os.environ["FAKE_CANDIDATES"].split(",")
        good = Candidate(self.name, {"path": "float32"})
        return [good, *(Candidate(self.name, {"path": name}) for name in names)]

    def prepare(self, problem, candidate, operands):
        path = candidate.params["path"]
        _log(f"{problem.m} {path}")
        if path == "refused":
            raise CandidateError("the library refuses this candidate")
        launch = LAUNCHES.get(path)
        if path == "wrong":
            return self._off_by_one_element(problem, operands)
        return Runner(launch) if launch else super().prepare(problem, candidate, operands)

    def _off_by_one_element(self, problem, operands):
        good = super().prepare(problem, Candidate(self.name, {"path": "float32"}), operands)

        def launch(index, stream):
            good.launch(index, stream)
            operands.out(0)[problem.m - 1, problem.n - 1] += 100

        return Runner(launch)


class Slow(CpuReference):
    """Twenty candidates that take 50 ms each; what was tried is appended to FAKE_LOG."""

    name = "slow"

    def candidates(self, problem, effort):
        return [Candidate(self.name, {"path": "float32", "i": i}) for i in range(20)]

    def prepare(self, problem, candidate, operands):
        good = super().prepare(problem, candidate, operands)

        def launch(index, stream):
            time.sleep(0.05)
            good.launch(index, stream)

        _log(f"{problem.m} {candidate.params['i']}")
        return Runner(launch)


class Unavailable(CpuReference):
    """A backend whose library is missing."""

    name = "unavailable"

    def availability(self, device):
        return Availability(False, "its library is not installed", "pip install it")


class Hungry(CpuReference):
    """A backend whose candidates cannot even be listed for M over 100."""

    name = "hungry"

    def refusal(self, problem, device):
        return f"M={problem.m} is over 100" if problem.m > 100 else None


class BrokenImport(CpuSlid):
    """A sparse backend that dies with its process when it is asked for candidates."""

    name = "broken"

    def candidates(self, problem, effort):
        os._exit(7)


def _log(line):
    path = os.environ.get("FAKE_LOG")
    if path:
        with Path(path).open("a") as file:
            file.write(line + "\n")
