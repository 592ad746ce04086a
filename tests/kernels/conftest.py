"""What the tests of the kernels share: silence of NumPy, and a tuner of sessions that are fakes.

pytest reads this before it decides whether Triton interprets, so nothing here imports it on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from slidesparse.cache import TuningCache
from slidesparse.kernel_problem import KernelProblem
from slidesparse.worker import Worker

if TYPE_CHECKING:
    from tune_fakes import Run

    from slidesparse.kernels.tune import TuneOutcome


@pytest.fixture(autouse=True)
def _quiet_numpy() -> Iterator[None]:
    """Kernels that run in Triton's interpreter compute in NumPy, which remarks on infinity."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def cache(tmp_path: Path) -> TuningCache:
    """An empty one, of a GPU that cannot overlap launches."""
    from tune_fakes import AMPERE

    return TuningCache(tmp_path / "cache", AMPERE, bundled=tmp_path)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the session does; five configurations instead of all."""
    from tune_fakes import CONFIGS, FASTEST

    from slidesparse.kernels import tune

    monkeypatch.setattr(tune, "candidates", lambda problem, full: CONFIGS)
    log = tmp_path / "requests"
    log.touch()
    return {"log": str(log), "times": dict(FASTEST), "deeds": {}}


@pytest.fixture
def run(cache: TuningCache, plan: dict[str, Any], seed: int) -> Run:
    """Tune problems in this process."""
    from tune_fakes import GPU, InProcess

    from slidesparse.kernels.tune import TuneOptions, Tuner

    def call(*problems: KernelProblem, listener: Any = None, **options: Any) -> TuneOutcome:
        where = options.pop("cache", cache)
        worker: Any = InProcess(plan)
        tuner = Tuner(problems, GPU, where, TuneOptions(seed=seed, **options), worker)
        outcome = tuner.run(listener)
        assert worker.stopped
        return outcome

    return call


@pytest.fixture
def start_worker(plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make a worker with a process of its own."""
    from tune_fakes import GPU

    workers = []

    def make() -> Worker:
        workers.append(Worker(GPU, "fake_kernel_sessions:Session", plan))
        return workers[-1]

    yield make
    for worker in workers:
        worker.stop()
