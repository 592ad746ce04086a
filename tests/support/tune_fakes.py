"""What the tests of the kernels' tuner share: a worker without a process, problems, readings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_kernel_sessions as fake

from slidesparse.cache import TuningCache
from slidesparse.devices import Device, Fingerprint
from slidesparse.errors import SearchError
from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.kernels.config import Config
from slidesparse.kernels.tune import TuneListener, TuneOutcome
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.worker import WorkerCancelled, WorkerOutOfMemory

GPU = Device("cuda", 5)
"""Nothing here touches it."""

DEFAULT = Config(1024, 8)
CONFIGS = [DEFAULT, Config(512, 4), Config(2048, 8), Config(512, 16), Config(1024, 4)]
FASTEST = {"1024/8": 12.0, "512/4": 10.0, "2048/8": 10.5, "512/16": 30.0, "1024/4": 11.5}
HOPPER = Fingerprint("NVIDIA H200", 90, 132, 143156)
AMPERE = replace(HOPPER, name="NVIDIA A100", sm=80)


class InProcess:
    """A worker without a process, for what does not die: it starts in no time."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._session = fake.Session(GPU, plan)
        self.cancelled = self.stopped = False

    def call(self, method: str, *arguments: Any, timeout: float) -> Any:
        if self.cancelled:
            raise WorkerCancelled
        try:
            return getattr(self._session, method)(*arguments)
        except MemoryError as error:
            raise WorkerOutOfMemory(str(error)) from error
        except ZeroDivisionError as error:
            raise SearchError(f"the worker failed in {method}: {error}") from error

    def cancel(self) -> None:
        self.cancelled = True

    def stop(self) -> None:
        self.stopped = True


class Notes(TuneListener):
    """Keeps what a user interface is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def started(self, problem: KernelProblem, configs: int) -> None:
        self.events.append(("started", problem.m, configs))

    def finished(self, problem: KernelProblem, tuned: Any, reason: str) -> None:
        self.events.append(("finished", problem.m, str(tuned.provenance) if tuned else reason))

    def overlapping(self, done: int, total: int) -> None:
        self.events.append(("overlapping", done, total))


def problem(m: int = 16, k: int = 576) -> KernelProblem:
    return KernelProblem(Op.QUANTIZE, m, k, DType.BF16, DType.FP8, Pattern.parse("6:8"))


Run = Callable[..., TuneOutcome]
"""Tunes problems in this process."""


def requests(plan: dict[str, Any]) -> list[str]:
    """What the session was asked since the last time."""
    log = Path(plan["log"])
    lines = log.read_text().splitlines()
    log.write_text("")
    return lines


def names(measurements: Any) -> list[str]:
    return [fake.name_of(measurement.candidate) for measurement in measurements]


def reopened(cache: TuningCache, tmp_path: Path) -> TuningCache:
    return TuningCache(cache.root, cache.fingerprint, bundled=tmp_path)
