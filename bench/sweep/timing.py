"""Samples of a whole step: CUDA graphs, eager launches, or the wall clock on the CPU.

A step takes milliseconds and is timed for seconds: a GPU at its power limit needs about one to
settle on a clock, and NVML counts energy ten times a second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from slidesparse.bench.kernel_kinds import kernel_times, shares
from slidesparse.bench.sweep.job import Mode
from slidesparse.bench.watch import Watch, Watched
from slidesparse.devices import Device
from slidesparse.timing import CpuTimed, GpuTimed, Runner, Timed

WARM_US = 1e6
"""Of running before the first sample, on a GPU."""

SAMPLE_US = 3e5
"""A sample holds as many steps as fill this many microseconds, on a GPU."""

Step = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class StepTime:
    """What steps took.

    Args:
        step_us: microseconds of a step, one per sample.
        steps: that all samples hold together.
        watched: clock, power and energy meanwhile.
    """

    step_us: tuple[float, ...]
    steps: int
    watched: Watched


@dataclass
class EagerTimed:
    """Samples of a step on the GPU without a graph: launch gaps count, as they do in a server."""

    step: Step
    stream: torch.cuda.Stream
    launches: int = 1
    graph: bool = False
    _events: list[tuple[Any, Any]] = field(default_factory=list)

    def enqueue(self) -> None:
        """Start one step between two events."""
        start, stop = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        with torch.cuda.stream(self.stream):
            start.record(self.stream)
            self.step()
            stop.record(self.stream)
        self._events.append((start, stop))

    def collect(self) -> list[float]:
        """Wait for the steps; microseconds of each."""
        self.stream.synchronize()
        events, self._events = self._events, []
        return [1e3 * float(start.elapsed_time(stop)) for start, stop in events]


def prepare(step: Step, mode: Mode, stream: torch.cuda.Stream | None) -> Timed:
    """A step ready to be sampled; it ran before, so that nothing is compiled in a capture.

    Args:
        step: launches everything on the current stream.
        mode: how.
        stream: of a GPU, None on the CPU.
    """
    if stream is None:
        step()
        return CpuTimed(Runner(lambda index, handle: step(), makes_output=True))
    # Operands were drawn on another stream.
    torch.cuda.synchronize(stream.device)
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    if mode is Mode.EAGER:
        return EagerTimed(step, stream)
    # What ran eagerly keeps memory that the graph's own pool cannot use.
    torch.cuda.empty_cache()
    runner = Runner(lambda index, handle: step(), makes_output=True)
    return GpuTimed.make(runner, 1, stream, float("inf"))[0]


def sample(timed: Timed, repeats: int, device: Device) -> StepTime:
    """Take samples, long ones on a GPU.

    Args:
        timed: from `prepare`.
        repeats: samples.
        device: that is watched meanwhile.
    """
    count = _warm(timed) if device.is_gpu else 1
    taken: list[float] = []
    with Watch([device]) as watch:
        for _ in range(repeats):
            for _ in range(count):
                timed.enqueue()
            each = timed.collect()
            taken.append(sum(each) / len(each))
    return StepTime(tuple(taken), repeats * count * timed.launches, watch.read())


def _warm(timed: Timed) -> int:
    """Run until the clock has settled; how many times a sample runs it."""
    start, one = time.monotonic(), 1.0
    while 1e6 * (time.monotonic() - start) < WARM_US:
        timed.enqueue()
        one = timed.collect()[0] * timed.launches
    return max(1, round(SAMPLE_US / one))


def kernel_shares(step: Step, stream: torch.cuda.Stream | None) -> Mapping[str, float]:
    """The share of each kind of kernel in the GPU's busy time of one step; empty on the CPU.

    Torch's profiler slows launches down, not kernels: the step runs once more for it.
    """
    if stream is None:
        return {}
    from torch.profiler import ProfilerActivity, profile

    # Left attached, CUPTI slows the launches of later cells, which eager ones would show.
    os.environ.setdefault("TEARDOWN_CUPTI", "1")
    with profile(activities=[ProfilerActivity.CUDA]) as recorded, torch.cuda.stream(stream):
        step()
        stream.synchronize()
    return shares(kernel_times(recorded))
