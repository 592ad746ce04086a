"""Mean clock, power and energy of GPUs over a stretch of time, read by a thread beside the work."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple

from slidesparse.devices import Device
from slidesparse.monitor import GpuMonitor

EVERY_S = 0.05
"""Seconds between readings of the clock."""

POWER_S = 1.0
"""A shorter stretch has no power: NVML averages it over about a second on Hopper, and its energy
counter goes on in steps of about a tenth."""


class Watched(NamedTuple):
    """What was read; None for what NVML does not tell.

    Args:
        clock_mhz: of the SMs, mean over time and GPUs.
        power_w: mean over time, of all GPUs together; None of less than POWER_S.
        joules: that the GPUs counted meanwhile, together; None of less than POWER_S.
    """

    clock_mhz: float | None
    power_w: float | None
    joules: float | None


class Watch:
    """Reads from entering to leaving a `with` block. Wait for the GPU before both.

    Args:
        devices: that work together; a CPU has no readings.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        """Nothing is opened yet."""
        self._devices = tuple(devices)
        self._stack = ExitStack()
        self._monitors: list[GpuMonitor] = []
        self._readings: list[tuple[float, float]] = []
        self._before: list[float | None] = []
        self._joules: float | None = None
        self._begin = self._seconds = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Watch:
        """Open NVML and begin."""
        self._monitors = [self._stack.enter_context(GpuMonitor(it)) for it in self._devices]
        self._before = [monitor.joules() for monitor in self._monitors]
        if any(monitor.available for monitor in self._monitors):
            self._thread.start()
        self._begin = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End, and let go of NVML."""
        self._seconds = time.monotonic() - self._begin
        counted = [
            None if before is None or now is None else now - before
            for before, now in zip(
                self._before, (it.joules() for it in self._monitors), strict=True
            )
        ]
        known = [joules for joules in counted if joules is not None]
        # The energy of some of the GPUs would be taken for that of all.
        self._joules = sum(known) if known and len(known) == len(counted) else None
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._stack.close()

    def read(self) -> Watched:
        """What was seen between entering and leaving."""
        long = self._seconds >= POWER_S
        joules = self._joules if long else None
        if not self._readings:
            return Watched(None, None, joules)
        clocks, powers = zip(*self._readings, strict=True)
        return Watched(statistics.fmean(clocks), statistics.fmean(powers) if long else None, joules)

    def _read(self) -> None:
        while True:
            now = [monitor.read() for monitor in self._monitors]
            told = [reading for reading in now if reading is not None]
            if told and len(told) == len(now):
                clocks, powers = zip(*told, strict=True)
                self._readings.append((statistics.fmean(clocks), sum(powers)))
            if self._done.wait(EVERY_S):
                return
