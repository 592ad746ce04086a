"""Runs a sweep: each turn in a process of its own, and what fails there costs its cell only."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from slidesparse.bench.sweep.job import CellTime
from slidesparse.bench.sweep.plan import Key, Turn
from slidesparse.devices import Device
from slidesparse.errors import SearchError, SlideSparseError
from slidesparse.worker import Worker, WorkerDied, WorkerOutOfMemory, WorkerTimeout

Found = TypeVar("Found")
"""What an engine says of a cell."""


@dataclass(frozen=True)
class EngineKind:
    """What the command line calls an engine.

    Args:
        factory: "module:attribute" of the Engine, for a worker.
        stock: what the baseline is.
        timed: what a step holds.
        children: whether it starts processes of its own.
        cell: what the number of a cell is called.
        requests: whether its steps are those of requests, with prompts and outputs.
    """

    factory: str
    stock: str
    timed: str
    children: bool
    cell: str = "M"
    requests: bool = False


ENGINES = {
    "linear": EngineKind(
        "slidesparse.bench.sweep.linear:LinearEngine",
        "torch: per-token quantisation, torch._scaled_mm row-wise or torch._int_mm, RMSNorm and "
        "SiLU * mul around them compiled by torch.compile (eager on a CPU)",
        "linears and what is fused to them, layer by layer; no attention, embedding or head",
        # Of torch.compile.
        True,
    ),
    "vllm": EngineKind(
        "slidesparse.bench.sweep.vllm:VllmEngine",
        "vLLM as it is, without the plug-in",
        "the whole model",
        True,
        requests=True,
    ),
}

BUILD_TIMEOUT = 1800.0
"""Seconds to build a model: weights of 14 billion are drawn, pruned and packed, graphs captured."""

CELL_TIMEOUT = 600.0
"""Seconds for one cell; M = 65536 of a 14-billion model takes about one."""


class Kind(str, Enum):
    """Why a cell has no time."""

    MEMORY = "memory"
    CRASH = "crash"
    HANG = "hang"
    ERROR = "error"
    BUDGET = "budget"

    def __str__(self) -> str:
        """The word as tables print it."""
        return str(self.value)


@dataclass(frozen=True)
class Failure:
    """Why a cell has no time.

    Args:
        kind: out of memory, a process that died, one that hung, an error, or no time left.
        reason: in one line.
    """

    kind: Kind
    reason: str


@dataclass(frozen=True)
class Outcome(Generic[Found]):
    """What became of one cell: what was measured, or a failure.

    Args:
        key: of the cell.
        found: what was measured, or why there is nothing.
        ran: what the engine said that it had built.
    """

    key: Key
    found: Found | Failure
    ran: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """Seconds after which a process is taken for hung, and after which nothing more starts.

    Args:
        build: for the model.
        cell: for one cell.
        budget: after which no process starts, None for no end. One that runs is not cut off.
    """

    build: float = BUILD_TIMEOUT
    cell: float = CELL_TIMEOUT
    budget: float | None = None


class TurnRunner(ABC, Generic[Found]):
    """Runs turns on one device, each in a process of its own.

    Args:
        device: on which every process runs.
        engine: that runs there.
        limits: of its processes.
        notify: told in one line what begins.
    """

    def __init__(
        self,
        device: Device,
        engine: EngineKind,
        limits: Limits,
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Bind the device; nothing starts yet."""
        self._device, self._engine, self._limits, self._notify = device, engine, limits, notify
        self._end = math.inf

    @abstractmethod
    def check(self, found: object, m: int) -> Found:
        """What an engine gave, if it can be of this cell.

        Raises:
            SearchError: it cannot.
        """

    def run(self, turns: Sequence[Turn]) -> Generator[Outcome[Found], None, None]:
        """Measure every cell of every turn; each has one outcome.

        Close the iterator, or let it end, and no process is left.
        """
        if self._limits.budget is not None:
            self._end = time.monotonic() + self._limits.budget
        for turn in turns:
            left = list(turn.job.ms)
            while left:
                if self._spent():
                    yield from self._unspent(turn, left)
                    break
                yield from self._process(turn, left)

    def _process(self, turn: Turn, left: list[int]) -> Iterator[Outcome[Found]]:
        """One process; takes from `left` what it is done with, at least one M."""
        job = turn.with_ms(left).job
        engine = self._engine
        worker = Worker(self._device, engine.factory, job, children=engine.children)
        try:
            self._notify(f"{turn}: building")
            try:
                ran = _texts(worker.call("build", timeout=self._limits.build))
            except SlideSparseError as error:
                failure = explain(error, "building: ")
                # What is reserved is for the largest M: without it the others may well fit.
                first_lost = len(left) - 1 if failure.kind is Kind.MEMORY else 0
                lost = left[first_lost:]
                del left[first_lost:]
                worker.stop()
                yield from (Outcome(turn.key(m), failure) for m in lost)
                return
            while left:  # A model that is built is worth its cells, budget or not.
                m = left.pop(0)
                self._notify(f"{turn} {engine.cell}={m}")
                found, fresh = self._cell(worker, m)
                if fresh:
                    worker.stop()
                yield Outcome(turn.key(m), found, ran)
                if fresh:
                    return
        except BaseException:
            # Ctrl-C, or nobody wants more: what runs is not waited for.
            worker.cancel()
            raise
        finally:
            worker.stop()

    def _cell(self, worker: Worker, m: int) -> tuple[Found | Failure, bool]:
        """One cell, and whether the process is of no use after it."""
        try:
            return self.check(worker.call("run", m, timeout=self._limits.cell), m), False
        except SearchError as error:
            # Died, hung, out of memory or a defect: whatever it left behind is not measured on.
            return explain(error), True
        except SlideSparseError as error:
            return explain(error), False

    def _spent(self) -> bool:
        return time.monotonic() >= self._end

    def _unspent(self, turn: Turn, left: list[int]) -> Iterator[Outcome[Found]]:
        text = f"the budget of {self._limits.budget:g} s was used up; the same command goes on"
        yield from (Outcome(turn.key(m), Failure(Kind.BUDGET, text)) for m in left)


class SweepRunner(TurnRunner[CellTime]):
    """Runs the turns of a sweep on one device."""

    def check(self, found: object, m: int) -> CellTime:
        """What an engine gave, if it can be a time of this cell.

        Raises:
            SearchError: it cannot.
        """
        if not isinstance(found, CellTime) or found.m != m:
            raise SearchError(f"the engine gave no time of M={m} but {str(found)[:200]}")
        others = (found.clock_mhz, found.power_w, found.joules_per_token, *found.shares.values())
        numbers = [*found.step_us, *(value for value in others if value is not None)]
        if not found.step_us or min(found.step_us) <= 0 or not all(map(math.isfinite, numbers)):
            raise SearchError(f"the engine gave figures that cannot be: {str(found)[:200]}")
        return found


def explain(error: SlideSparseError, doing: str = "") -> Failure:
    """An error of a worker as the failure of a cell.

    Args:
        error: that `Worker.call` raised.
        doing: put before its text.
    """
    kind = Kind.ERROR
    for cls, named in (
        (WorkerOutOfMemory, Kind.MEMORY),
        (WorkerTimeout, Kind.HANG),
        (WorkerDied, Kind.CRASH),
    ):
        if isinstance(error, cls):
            kind = named
    text = " ".join(str(error).split()) or type(error).__name__
    return Failure(kind, f"{doing}{text}"[:1000])


def _texts(ran: object) -> dict[str, str]:
    """What an engine says that it built, as plain text."""
    if not isinstance(ran, Mapping):
        return {}
    return {str(name): str(text) for name, text in ran.items()}
