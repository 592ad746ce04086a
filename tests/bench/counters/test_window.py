"""Windows between steps: whole steps, rates of what lies between, and the cost of sampling."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidesparse.bench.counters.window import (
    PAIRS,
    FlowStep,
    Stretch,
    sampling_cost,
    slices,
    stretch,
    switching,
)
from slidesparse.bench.sweep.vllm_steps import StepError


def flow(times: list[float], tokens: int = 10) -> list[FlowStep]:
    return [FlowStep(time, tokens, 0, 0) for time in times]


def test_a_stretch_counts_what_arrived_after_its_first_step() -> None:
    steps = [FlowStep(1.0, 99, 0, 0), FlowStep(1.5, 4, 0, 0), FlowStep(2.0, 6, 0, 0)]
    found = stretch(steps, 0, 2)
    assert (found.tokens, found.steps, found.seconds, found.rate) == (10, 2, 1.0, 10.0)


def test_a_stretch_without_a_step_is_refused() -> None:
    with pytest.raises(StepError, match="raise --seconds"):
        stretch(flow([1.0, 2.0]), 1, 1)


def test_slices_cut_at_steps_near_even_times() -> None:
    found = slices(flow([float(index) for index in range(21)]), 0, 20, 4)
    assert [(it.begin, it.end) for it in found] == [(0, 5), (5, 10), (10, 15), (15, 20)]
    assert {it.rate for it in found} == {10.0}


def test_there_are_no_more_slices_than_steps() -> None:
    found = slices(flow([0.0, 1.0, 2.0]), 0, 2, 10)
    assert [(it.begin, it.end) for it in found] == [(0, 1), (1, 2)]


@given(
    st.lists(st.floats(0.001, 5.0), min_size=2, max_size=60),
    st.integers(1, 12),
    st.integers(0, 5),
)
def test_slices_cover_the_window_once(gaps: list[float], count: int, before: int) -> None:
    times = [sum(gaps[:index]) for index in range(len(gaps) + 1)]
    first = min(before, len(gaps) - 1)
    steps = [FlowStep(time, index + 1, 0, 0) for index, time in enumerate(times)]
    found = slices(steps, first, len(gaps), count)
    whole = stretch(steps, first, len(gaps))
    assert 1 <= len(found) <= count
    assert (found[0].begin, found[-1].end) == (whole.begin, whole.end)
    assert all(a.end == b.begin for a, b in pairwise(found))
    assert sum(it.tokens for it in found) == whole.tokens
    assert sum(it.steps for it in found) == whole.steps
    assert min(it.steps for it in found) >= 1


def test_sampling_switches_so_that_a_drift_cancels_out() -> None:
    order = switching(4)
    assert order == (True, False, False, True, True, False, False, True)
    assert len(switching()) == 2 * PAIRS
    # A machine that slows down by 1 % from stretch to stretch, and sampling that costs nothing.
    made = [Stretch(0.0, 1.0, 10**6 - 10**4 * i, 10, on) for i, on in enumerate(order)]
    found = sampling_cost(made)
    assert abs(found.percent) < 0.01
    assert found.pairs == 4
    # The pairs do show it.
    assert found.spread > 1.5


@pytest.mark.parametrize("percent", [0.5, 3.0, -0.25])
def test_the_cost_is_found_whichever_comes_first(percent: float) -> None:
    rates = {True: round(10**7 * (1 - percent / 100)), False: 10**7}
    found = sampling_cost([Stretch(0.0, 1.0, rates[on], 10, on) for on in switching()])
    assert found.percent == pytest.approx(percent)
    assert found.spread == pytest.approx(0.0, abs=1e-6)
