"""Takes samples in a thread beside the engine, and stops when told so, to show what they cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from enum import Enum
from types import TracebackType

from slidesparse.bench.counters.samples import (
    EngineLoad,
    Sample,
    mean_counters,
    mean_telemetry,
)
from slidesparse.counters import GpmSampler
from slidesparse.dcgm import DcgmSampler
from slidesparse.devices import Device
from slidesparse.monitor import GpuMonitor


class Source(str, Enum):
    """Where hardware counters come from."""

    AUTO = "auto"
    GPM = "gpm"
    DCGM = "dcgm"
    NONE = "none"

    def __str__(self) -> str:
        """The word as the command line spells it."""
        return str(self.value)


class LoadSampler:
    """Samples the GPUs and the engine every so often between `resume` and `pause`.

    Use it as a context manager; it begins paused.

    Args:
        devices: that work together.
        load: what the engine has in hand now; called from another thread.
        period_s: seconds between samples.
        source: of hardware counters. AUTO takes GPM where every device has it, else DCGM.

    Attributes:
        samples: all that were taken, in order of time.
        source: that gives the counters; NONE where there are none.
        why: there are no counters, "" where there are or where none were asked for.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        load: Callable[[], EngineLoad],
        period_s: float,
        source: Source = Source.AUTO,
    ) -> None:
        """Nothing is opened yet."""
        self.samples: list[Sample] = []
        self.source, self.why = Source.NONE, ""
        self._devices, self._load, self._period = tuple(devices), load, period_s
        self._asked = source
        self._counters: list[GpmSampler] | list[DcgmSampler] = []
        self._monitors: list[GpuMonitor] = []
        self._stack = ExitStack()
        self._wake = threading.Condition()
        self._on = self._done = self._taking = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="load sampler", daemon=True)

    def __enter__(self) -> LoadSampler:
        """Open what there is."""
        self._monitors = [self._stack.enter_context(GpuMonitor(it)) for it in self._devices]
        self._open_counters()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the thread and close everything."""
        with self._wake:
            self._done = True
            self._wake.notify_all()
        self._thread.join()
        self._stack.close()

    @property
    def power_limit_w(self) -> float | None:
        """What the GPUs may draw together, None where one does not tell."""
        limits = [monitor.power_limit() for monitor in self._monitors]
        known = [limit for limit in limits if limit is not None]
        return sum(known) if known and len(known) == len(limits) else None

    def joules(self) -> float | None:
        """Energy that the GPUs have counted together, None where one does not tell."""
        counted = [monitor.joules() for monitor in self._monitors]
        known = [joules for joules in counted if joules is not None]
        return sum(known) if known and len(known) == len(counted) else None

    def resume(self) -> None:
        """Sample from now on; counters count from here."""
        with self._wake:
            self._on = True
            self._wake.notify_all()

    def pause(self) -> None:
        """Ask nothing more of the GPUs; a sample that is being taken is waited for.

        Raises:
            Exception: that ended the sampling, whatever it was.
        """
        with self._wake:
            self._on = False
            self._wake.notify_all()
            self._wake.wait_for(lambda: not self._taking)
        if self._error is not None:
            raise self._error

    def _open_counters(self) -> None:
        reasons = []
        if self._asked in (Source.AUTO, Source.GPM):
            gpm = [self._stack.enter_context(GpmSampler(it)) for it in self._devices]
            if all(it.available for it in gpm):
                self._counters, self.source = gpm, Source.GPM
                return
            reasons.append(next(it.why for it in gpm if not it.available))
        if self._asked in (Source.AUTO, Source.DCGM):
            milliseconds = round(1000 * self._period)
            dcgm = [
                self._stack.enter_context(DcgmSampler(it, milliseconds)) for it in self._devices
            ]
            if all(it.available for it in dcgm):
                self._counters, self.source = dcgm, Source.DCGM
                return
            reasons.append(next(it.why for it in dcgm if not it.available))
        self.why = "; ".join(dict.fromkeys(reasons))

    def _run(self) -> None:
        try:
            while self._wait_on():
                self._stretch()
        except Exception as error:  # Raised where the thread is asked to pause.
            self._error = error
        finally:
            self._taken()

    def _wait_on(self) -> bool:
        """Wait until sampling is on; False if it is over."""
        with self._wake:
            self._wake.wait_for(lambda: self._on or self._done)
            self._taking = not self._done
            return self._taking

    def _stretch(self) -> None:
        """Take samples until paused."""
        for each in self._counters:
            each.read()  # What counted while sampling was off.
        last = due = time.perf_counter()
        while True:
            self._taken()
            due = max(due + self._period, time.perf_counter())
            with self._wake:
                wait = due - time.perf_counter()
                if self._wake.wait_for(lambda: not self._on or self._done, timeout=max(wait, 0.0)):
                    return
                self._taking = True
            self.samples.append(self._take(last))
            last = self.samples[-1].time

    def _take(self, last: float) -> Sample:
        counters = mean_counters([each.read() for each in self._counters])
        now = time.perf_counter()
        telemetry = mean_telemetry([monitor.telemetry() for monitor in self._monitors])
        return Sample(now, now - last, self._load(), telemetry, counters)

    def _taken(self) -> None:
        with self._wake:
            self._taking = False
            self._wake.notify_all()
