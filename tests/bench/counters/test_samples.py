"""Samples to figures: weighted by time, over a window's samples only."""

from __future__ import annotations

import math

import pytest

from slidesparse.bench.counters.samples import (
    QUIET,
    EngineLoad,
    Sample,
    mean_counters,
    mean_telemetry,
    summarize,
    within,
)
from slidesparse.errors import UsageError
from slidesparse.monitor import Telemetry

LOAD = EngineLoad(running=8, waiting=0, kv_used=0.25)

# Made up around what a BF16 matmul loop reads on an H200 (95.8, 92.9 and 17.3 %); the first sample
# holds some of the time before it, and power lags behind.
READINGS = (
    (0.10, {"sm_active": 40.2, "tensor_active": 38.9, "dram_active": 7.1}, 180.0),
    (0.10, {"sm_active": 95.7, "tensor_active": 92.7, "dram_active": 17.2}, 420.5),
    (0.11, {"sm_active": 95.8, "tensor_active": 92.9, "dram_active": 17.3}, 655.0),
    (0.10, {"sm_active": 95.9, "tensor_active": 93.0, "dram_active": 17.4}, 690.0),
)


def played() -> list[Sample]:
    """The readings, from time 10 on."""
    time, made = 10.0, []
    for seconds, counters, power in READINGS:
        time += seconds
        made.append(Sample(time, seconds, LOAD, Telemetry(power, 55.0, 1980.0, 3201.0), counters))
    return made


def test_a_window_holds_samples_that_lie_in_it_wholly() -> None:
    samples = played()
    assert within(samples, [(10.1, 11.0)]) == samples[1:]
    # The second sample began before the window, the last one ends after it.
    assert within(samples, [(10.15, 10.35)]) == samples[2:3]
    assert within(samples, [(9.0, 10.1), (10.3, 11.0)]) == [samples[0], samples[3]]
    assert within(samples, []) == []


def test_means_are_weighted_by_the_time_that_a_sample_covers() -> None:
    found = summarize(played()[1:])
    weighted = (0.10 * 95.7 + 0.11 * 95.8 + 0.10 * 95.9) / 0.31
    assert found["sm_active"].mean == pytest.approx(weighted)
    assert (found["sm_active"].least, found["sm_active"].most) == (95.7, 95.9)
    assert found["sm_active"].spread == pytest.approx(0.1)
    assert found["power_w"].mean == pytest.approx((42.05 + 72.05 + 69.0) / 0.31)
    assert found["kv_percent"].mean == 25.0
    assert found["running"] == (8.0, 0.0, 8.0, 8.0)
    assert found["temperature_c"].mean == 55.0


def test_what_is_not_told_is_not_there() -> None:
    found = summarize([Sample(1.0, 0.1, LOAD, QUIET, {}), Sample(1.1, 0.1, LOAD)])
    assert set(found) == {"running", "waiting", "kv_percent"}
    some = [Sample(1.0, 0.1, LOAD, QUIET, {"sm_active": 10.0}), Sample(1.1, 0.1, LOAD)]
    assert summarize(some)["sm_active"].mean == 10.0
    broken = [Sample(1.0, 0.1, LOAD, QUIET, {"sm_active": math.nan})]
    assert "sm_active" not in summarize(broken)


def test_no_sample_is_an_error_with_a_remedy() -> None:
    with pytest.raises(UsageError, match="take them more often or measure longer"):
        summarize([])


def test_gpus_together_draw_the_sum_and_run_at_the_mean() -> None:
    one, other = Telemetry(400.0, 50.0, 1900.0, 3201.0), Telemetry(300.0, 60.0, 1700.0, None)
    assert mean_telemetry([one, other]) == (700.0, 55.0, 1800.0, None)
    assert mean_telemetry([one, QUIET]) == QUIET
    assert mean_telemetry([one]) == one


def test_counters_of_gpus_are_means_of_what_all_of_them_gave() -> None:
    assert mean_counters([{"a": 10.0, "b": 1.0}, {"a": 30.0}]) == {"a": 20.0}
    assert mean_counters([{"a": 10.0}, None]) == {}
    assert mean_counters([]) == {}
