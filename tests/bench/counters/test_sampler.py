"""The sampling thread on a machine without a GPU: the engine's figures, on time, and switched."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest

from slidesparse.bench.counters.sampler import LoadSampler, Source
from slidesparse.bench.counters.samples import EngineLoad
from slidesparse.devices import CPU

PERIOD = 0.01


class Engine:
    """Counts how often it was asked, and by whom."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.asked, self.threads, self._fails_at = 0, set[str](), fails_at

    def load(self) -> EngineLoad:
        self.asked += 1
        self.threads.add(threading.current_thread().name)
        if self.asked == self._fails_at:
            raise ZeroDivisionError("a defect of the engine")
        return EngineLoad(self.asked, 0, 0.5)


def wait_for(sampler: LoadSampler, count: int) -> None:
    """Until so many samples are there: on a busy machine that may take a while."""
    end = time.monotonic() + 30
    while len(sampler.samples) < count:
        assert time.monotonic() < end, f"{len(sampler.samples)} of {count} samples in 30 s"
        time.sleep(PERIOD / 4)


def test_samples_come_in_turn_while_switched_on() -> None:
    engine = Engine()
    with LoadSampler([CPU], engine.load, PERIOD) as sampler:
        time.sleep(3 * PERIOD)
        assert sampler.samples == []
        begun = time.perf_counter()
        sampler.resume()
        wait_for(sampler, 8)
        sampler.pause()
        taken, ended = len(sampler.samples), time.perf_counter()
        time.sleep(5 * PERIOD)
        assert len(sampler.samples) == taken
    assert taken <= (ended - begun) / PERIOD + 1
    assert engine.threads == {"load sampler"}
    samples = sampler.samples
    assert samples[0].time - samples[0].seconds >= begun
    assert samples[-1].time <= ended
    # One that comes late shortens the next, and none comes early.
    assert all(it.time >= begun + index * PERIOD for index, it in enumerate(samples, start=1))
    # They follow each other without a gap.
    for one, other in pairwise(samples):
        assert other.time - other.seconds == pytest.approx(one.time, abs=1e-9)
    assert [it.load.running for it in samples] == list(range(1, taken + 1))


def test_a_sample_after_a_pause_does_not_cover_it() -> None:
    with LoadSampler([CPU], Engine().load, PERIOD) as sampler:
        sampler.resume()
        wait_for(sampler, 2)
        sampler.pause()
        before = len(sampler.samples)
        time.sleep(10 * PERIOD)
        again = time.perf_counter()
        sampler.resume()
        wait_for(sampler, before + 2)
        sampler.pause()
    first = sampler.samples[before]
    assert first.time - first.seconds >= again


def test_a_cpu_has_no_counters_and_says_why() -> None:
    with LoadSampler([CPU], Engine().load, PERIOD) as sampler:
        assert (sampler.source, sampler.why) == (Source.NONE, "cpu is no GPU")
        assert (sampler.power_limit_w, sampler.joules()) == (None, None)
        sampler.resume()
        wait_for(sampler, 1)
        sampler.pause()
    assert sampler.samples[0].counters == {}
    assert sampler.samples[0].telemetry == (None, None, None, None)


def test_no_counters_are_no_reason_if_none_were_asked_for() -> None:
    with LoadSampler([CPU], Engine().load, PERIOD, Source.NONE) as sampler:
        assert (sampler.source, sampler.why) == (Source.NONE, "")


def test_what_goes_wrong_in_the_thread_is_raised_where_it_is_paused() -> None:
    with LoadSampler([CPU], Engine(fails_at=2).load, PERIOD) as sampler:
        sampler.resume()
        wait_for(sampler, 1)
        sampler._thread.join(timeout=30)
        with pytest.raises(ZeroDivisionError, match="a defect of the engine"):
            sampler.pause()


def test_switching_at_once_takes_nothing_and_hangs_nowhere() -> None:
    with LoadSampler([CPU], Engine().load, 10.0) as sampler:
        for _ in range(200):
            sampler.resume()
            sampler.pause()
    assert sampler.samples == []
