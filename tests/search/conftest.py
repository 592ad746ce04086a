"""What the tests of the search share: backends that misbehave, tiny problems, workers that go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from slidesparse.devices import CPU, Device
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem
from slidesparse.search.driver import SESSION, make_worker
from slidesparse.worker import Worker, WorkerCancelled


class InProcess:
    """A worker without a process, for what does not die: it starts in no time."""

    alive = True

    def __init__(self, device: Device, factory: str, *arguments: Any) -> None:
        self.device = device
        self._session = resolve_name(factory)(device, *arguments)
        self._cancelled = False

    def call(self, method: str, *arguments: Any, timeout: float) -> Any:
        if self._cancelled:
            raise WorkerCancelled
        return getattr(self._session, method)(*arguments)

    def cancel(self) -> None:
        self._cancelled = True

    def stop(self) -> None:
        pass


HERE = Path(__file__).resolve().parent


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make "fake_backends:NAME" loadable here and in spawned workers; the path of FAKE_LOG."""
    monkeypatch.syspath_prepend(str(HERE))
    log = tmp_path / "fake.log"
    log.touch()
    monkeypatch.setenv("FAKE_LOG", str(log))
    monkeypatch.setenv("FAKE_CANDIDATES", "float32")
    # Workers are many and small here: threads of their own would only be in each other's way.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return log


@pytest.fixture
def problem() -> Callable[..., GemmProblem]:
    """Make a small FP8 problem: problem(m=7, pattern="dense")."""

    def make(m: int = 7, pattern: str = "dense", n: int = 64, k: int = 136) -> GemmProblem:
        return GemmProblem(m, n, k, DType.FP8, DType.BF16, pattern=Pattern.parse(pattern))

    return make


@pytest.fixture
def start_worker(fakes: Path, seed: int) -> Iterator[Callable[..., Worker]]:
    """Make workers on the CPU that are stopped after the test."""
    workers: list[Worker] = []

    def make(*specs: str) -> Worker:
        workers.append(make_worker(CPU, specs, seed))
        return workers[-1]

    yield make
    for worker in workers:
        worker.stop()


@pytest.fixture
def in_process(fakes: Path, seed: int) -> Callable[..., InProcess]:
    """Make workers that live in this process."""
    return lambda *specs: InProcess(CPU, SESSION, specs, seed)
