"""Samples on the CPU: one launch each, in microseconds, forgotten once collected."""

import time

from slidesparse.timing import CpuTimed, Runner


def test_cpu_samples_are_wall_time_of_one_launch_in_microseconds():
    calls = []

    def launch(index, stream):
        calls.append((index, stream))
        time.sleep(0.01 * len(calls))

    timed = CpuTimed(Runner(launch))
    assert (timed.launches, timed.graph) == (1, False)
    for _ in range(3):
        timed.enqueue()
    assert calls == [(0, 0)] * 3
    samples = timed.collect()
    assert len(samples) == 3
    for number, sample in enumerate(samples, start=1):
        # The upper limit leaves room for a busy machine; a unit off would be a factor of 1000.
        assert 1e4 * number <= sample < 1e4 * number + 2e5


def test_collected_samples_are_forgotten():
    timed = CpuTimed(Runner(lambda index, stream: None))
    timed.enqueue()
    assert len(timed.collect()) == 1
    assert timed.collect() == []
    timed.enqueue()
    timed.enqueue()
    assert len(timed.collect()) == 2
