"""Readings beside the work: means over time, sums over GPUs, nothing where NVML is not there."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from slidesparse.bench import watch as module
from slidesparse.bench.watch import Watch, Watched
from slidesparse.devices import CPU, Device
from slidesparse.monitor import GpuMonitor

GPUS = (Device("cuda", 0), Device("cuda", 1))


class Readings(GpuMonitor):
    """A GPU whose clock and power are known, and which takes 5 J between two questions."""

    def __init__(self, device: Device) -> None:
        super().__init__(CPU)
        self._index, self._joules = device.index, 100.0

    @property
    def available(self) -> bool:
        return True

    def read(self) -> tuple[int, float] | None:
        return 1000 + 500 * self._index, 300.0

    def joules(self) -> float | None:
        self._joules += 5.0
        return self._joules


class Silent(Readings):
    """One of two GPUs tells nothing."""

    def read(self) -> tuple[int, float] | None:
        return None if self._index else super().read()

    def joules(self) -> float | None:
        return None if self._index else super().joules()


@pytest.fixture
def _short_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POWER_S", 0.0)


def watched(devices: Sequence[Device]) -> Watched:
    with Watch(devices) as it:
        time.sleep(0.01)
    return it.read()


def test_a_cpu_has_no_readings() -> None:
    assert watched([CPU]) == (None, None, None)
    assert GpuMonitor(CPU).joules() is None


def test_a_short_stretch_has_a_clock_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its power would be that of what ran before."""
    monkeypatch.setattr(module, "GpuMonitor", Readings)
    assert watched(GPUS) == Watched(1250.0, None, None)


@pytest.mark.usefixtures("_short_is_long_enough")
def test_clocks_are_averaged_and_the_rest_is_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GpuMonitor", Readings)
    assert watched(GPUS) == Watched(1250.0, 600.0, 10.0)
    assert watched(GPUS[:1]) == Watched(1000.0, 300.0, 5.0)


@pytest.mark.usefixtures("_short_is_long_enough")
def test_what_one_gpu_does_not_tell_is_not_known_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GpuMonitor", Silent)
    assert watched(GPUS) == (None, None, None)


def test_the_thread_ends_where_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GpuMonitor", Readings)
    it = Watch(GPUS)
    with pytest.raises(ZeroDivisionError), it:
        raise ZeroDivisionError
    assert not it._thread.is_alive()
