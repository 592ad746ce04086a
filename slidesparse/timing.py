"""Times of launches: CUDA graph replays between events, or the wall clock on the CPU.

A sample replays one graph of several launches, each on another operand set, so that every launch
finds its operands outside the L2 cache and launch gaps do not count. Candidates that are compared
are sampled in turn, never one after the other: a GPU at its power limit drifts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

SAMPLE_US = 400.0
"""A sample holds as many launches as fill this many microseconds, at least one per operand set."""

LONG_FACTOR = 4
MOST_LAUNCHES = 256
WARM_UP = 2


class GraphPool:
    """Memory that captured graphs share: each writes over what the others made."""

    def __init__(self) -> None:
        """Take nothing yet, so that a pool can be made where there is no GPU."""
        self._handle: Any = None

    @property
    def handle(self) -> Any:
        """For the next capture, as torch.cuda.graph_pool_handle() gives them."""
        import torch

        if self._handle is None:
            self._handle = torch.cuda.graph_pool_handle()
        return self._handle

    def close(self, index: int) -> None:
        """End what a capture that the driver refused has left open in torch before 2.12.

        There both allocators, of the GPU and of pinned memory, still take the pool for one that
        is being captured into (pytorch issue 180395): no memory is given back and no capture
        begins with this handle. Only the GPU's can be told, so the next capture gets a new one.

        Args:
            index: of the GPU.
        """
        import torch

        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if self._handle is None or end is None:
            return
        try:
            end(index, self._handle)
        except RuntimeError:
            # The capture had ended as it should, whatever was thrown in it.
            return
        self._handle = None


@dataclass(frozen=True)
class Runner:
    """One candidate, ready to launch.

    Args:
        launch: enqueues one run on operand set `index` and CUDA stream `stream` (a handle, 0 on
            the CPU); it can be captured in a CUDA graph.
        workspace: bytes of scratch memory that it holds.
        makes_output: whether `launch` returns a new output instead of writing the operand set's.
        pool: that graphs of several runners share, or each of them would keep outputs of
            gigabytes. Only for runners whose results nobody reads.
    """

    launch: Callable[[int, int], Any]
    workspace: int = 0
    makes_output: bool = False
    pool: GraphPool | None = None


class Timed(Protocol):
    """A runner whose samples can be taken in turn with others'."""

    launches: int
    graph: bool

    def enqueue(self) -> None:
        """Start one sample."""

    def collect(self) -> list[float]:
        """Finish the started samples; microseconds per launch of each, then forget them."""


@dataclass
class GpuTimed:
    """Samples of a runner on the GPU."""

    runner: Runner
    sets: int
    stream: torch.cuda.Stream
    launches: int = 1
    graph: bool = True
    _graph: torch.cuda.CUDAGraph | None = None
    _events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    @classmethod
    def make(
        cls, runner: Runner, sets: int, stream: torch.cuda.Stream, patience_us: float
    ) -> tuple[GpuTimed, float]:
        """Warm the runner up, size a sample and capture it in a CUDA graph.

        Returns:
            The samples' source and a first time in microseconds; a runner whose first time is
            over `patience_us` keeps its short first sample.
        """
        import torch

        timed = cls(runner, sets, stream)
        with torch.cuda.stream(stream):
            for index in range(min(sets, WARM_UP)):
                runner.launch(index, stream.cuda_stream)
        timed.launches = sets
        timed._capture()
        first = timed._replay_once()
        if first > patience_us:
            return timed, first
        one = first * sets
        if one < LONG_FACTOR * SAMPLE_US:
            # The first replay uploads the graph, so it is the second one that sizes a sample.
            one = timed._replay_once() * sets
        rounds = min(int(SAMPLE_US / max(one, 1.0)), max(1, MOST_LAUNCHES // sets))
        if rounds > 1:
            timed.launches = sets * rounds
            timed._capture()
            timed._replay_once()
        return timed, first

    def enqueue(self) -> None:
        """Start one sample: all launches between two events."""
        import torch

        start, stop = (_event() for _ in range(2))
        with torch.cuda.stream(self.stream):
            start.record(self.stream)
            assert self._graph is not None
            self._graph.replay()
            stop.record(self.stream)
        self._events.append((start, stop))

    def collect(self) -> list[float]:
        """Wait for the samples; microseconds per launch of each."""
        self.stream.synchronize()
        events, self._events = self._events, []
        return [1e3 * start.elapsed_time(stop) / self.launches for start, stop in events]

    def _replay_once(self) -> float:
        self.enqueue()
        return self.collect()[0]

    def _launch_all(self) -> None:
        for index in range(self.launches):
            self.runner.launch(index, self.stream.cuda_stream)

    def _capture(self) -> None:
        """Make a graph of a sample's launches."""
        import torch

        pool = self.runner.pool or GraphPool()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            try:
                graph.capture_begin(pool=pool.handle, capture_error_mode="thread_local")
                try:
                    self._launch_all()
                finally:
                    graph.capture_end()
            except Exception:
                pool.close(self.stream.device_index)
                raise
        self._graph = graph


def one_launch(runner: Runner, stream: torch.cuda.Stream) -> float:
    """Microseconds of a single launch outside a graph; short ones are mostly launch overhead."""
    import torch

    start, stop = (_event() for _ in range(2))
    with torch.cuda.stream(stream):
        start.record(stream)
        runner.launch(1, stream.cuda_stream)
        stop.record(stream)
    stream.synchronize()
    return 1e3 * float(start.elapsed_time(stop))


def _event() -> torch.cuda.Event:
    import torch

    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@dataclass
class CpuTimed:
    """Samples of a runner on the CPU, one launch each, warm caches."""

    runner: Runner
    launches: int = 1
    graph: bool = False
    _samples: list[float] = field(default_factory=list)

    def enqueue(self) -> None:
        """Run one launch and keep its wall time."""
        start = time.perf_counter()
        self.runner.launch(0, 0)
        self._samples.append(1e6 * (time.perf_counter() - start))

    def collect(self) -> list[float]:
        """Microseconds of each launch since the last call."""
        samples, self._samples = self._samples, []
        return samples
