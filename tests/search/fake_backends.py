"""Backends that misbehave for real, loaded by worker processes as "fake_backends:NAME"."""

import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from slidesparse.candidate import Candidate
from slidesparse.errors import CandidateError
from slidesparse.search.backend import Availability
from slidesparse.search.cpu import CpuReference, CpuSlid
from slidesparse.timing import Runner


def _segfault(index, stream):
    ctypes.string_at(0)


def _hang(index, stream):
    time.sleep(3600)


def _exit(index, stream):
    os._exit(3)


def _killed(index, stream):
    os.kill(os.getpid(), signal.SIGKILL)


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
    "exit": _exit,
    "killed": _killed,
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
        if path == "late_segfault":
            return self._fails_in_the_race(problem, operands)
        return Runner(launch) if launch else super().prepare(problem, candidate, operands)

    def _fails_in_the_race(self, problem, operands):
        """Verified and screened it is right and the fastest; the third launch is one too many."""
        good = super().prepare(problem, Candidate(self.name, {"path": "float32"}), operands)
        launched = []

        def launch(index, stream):
            launched.append(index)
            if len(launched) == 1:
                good.launch(index, stream)
            elif len(launched) > 2:
                _segfault(index, stream)

        return Runner(launch)

    def _off_by_one_element(self, problem, operands):
        good = super().prepare(problem, Candidate(self.name, {"path": "float32"}), operands)

        def launch(index, stream):
            good.launch(index, stream)
            operands.out(0)[problem.m - 1, problem.n - 1] += 100

        return Runner(launch)


class Slow(CpuReference):
    """Candidates 0 to 19, of which 19 is the fastest and nothing comes near it.

    What was tried is appended to FAKE_LOG; FAKE_STEP_MS says how far they are apart.
    """

    name = "slow"

    def candidates(self, problem, effort):
        return [Candidate(self.name, {"path": "float32", "i": i}) for i in range(20)]

    def prepare(self, problem, candidate, operands):
        good = super().prepare(problem, candidate, operands)
        step = float(os.environ.get("FAKE_STEP_MS", "3")) / 1e3
        # On a busy machine a launch takes some milliseconds longer now and then.
        i = int(candidate.params["i"])
        slowness = step * (1 if i == 19 else 24 - i)

        def launch(index, stream):
            time.sleep(slowness)
            good.launch(index, stream)

        _log(f"{problem.m}x{problem.n}x{problem.k} {candidate.params['i']}")
        return Runner(launch)


class SlowSlid(CpuSlid):
    """Sparse ways that all lose against the CPU reference: the default by far, "better" less so."""

    name = "slow-slid"

    def candidates(self, problem, effort):
        return [Candidate(self.name, {"path": "float32", "ms": ms}, True) for ms in (100, 20, 80)]

    def prepare(self, problem, candidate, operands):
        good = super().prepare(problem, candidate, operands)

        def launch(index, stream):
            time.sleep(int(candidate.params["ms"]) / 1e3)
            good.launch(index, stream)

        _log(f"{problem.m} {candidate.params['ms']}")
        return Runner(launch)


class NoNeighbours(CpuReference):
    """A backend that dies with its process when it is asked for variations."""

    name = "no-neighbours"

    def neighbours(self, problem, candidate, effort):
        os._exit(9)


class Variations(CpuReference):
    """One default and, as its variation, a faster one."""

    name = "variations"

    def candidates(self, problem, effort):
        return [Candidate(self.name, {"path": "float32", "ms": 20})]

    def neighbours(self, problem, candidate, effort):
        return [Candidate(self.name, {"path": "float32", "ms": ms}) for ms in (0, 30)]

    def prepare(self, problem, candidate, operands):
        good = super().prepare(problem, candidate, operands)

        def launch(index, stream):
            time.sleep(int(candidate.params["ms"]) / 1e3)
            good.launch(index, stream)

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


class FailsToStart(CpuReference):
    """A backend that cannot be made."""

    def __init__(self):
        raise OSError("libfake.so.1 cannot be loaded")


class DiesAtStart(CpuReference):
    """A backend that takes its process along when it is made in a worker."""

    def __init__(self):
        if multiprocessing.parent_process() is not None:
            os._exit(5)


def _log(line):
    path = os.environ.get("FAKE_LOG")
    if path:
        with Path(path).open("a") as file:
            file.write(line + "\n")
