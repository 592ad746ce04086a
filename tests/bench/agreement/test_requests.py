"""Mixed requests: what is drawn, how a trial follows them, how sequences are compared."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidesparse.bench.agreement.requests import (
    FINISHED,
    Request,
    Sequences,
    Trial,
    chance_of_so_few,
    compare_sequences,
    first_difference,
    plan_requests,
    sample_requests,
)
from slidesparse.errors import UsageError

TEXT = list(range(10_000, 15_000))
"""Each token tells where it stands."""


def test_requests_are_slices_of_the_text_of_all_lengths() -> None:
    made = plan_requests(TEXT, 500, 4000, 64, 0.05, seed=3)
    assert len(made) == 500
    for request in made:
        start = request.prompt[0] - TEXT[0]
        assert list(request.prompt) == TEXT[start : start + len(request.prompt)]
        assert 1 <= request.outputs <= 64
    lengths = sorted(len(request.prompt) for request in made)
    assert (lengths[0], lengths[-1]) == (1, 4000)
    # Uniform from 1 to 4,000: the quarters of the range hold about a quarter each.
    quarters = Counter((length - 1) // 1000 for length in lengths)
    assert all(90 < quarters[quarter] < 160 for quarter in range(4))
    assert {request.outputs for request in made} >= {1, 64}


def test_some_are_aborted_before_they_can_end() -> None:
    made = plan_requests(TEXT, 200, 100, 16, 0.1, seed=4)
    aborted = [request for request in made if request.abort_after is not None]
    assert len(aborted) == 20
    assert all(0 <= (it.abort_after or 0) < it.outputs for it in aborted)
    assert any(it.abort_after == 0 for it in aborted)
    assert any((it.abort_after or 0) > 1 for it in aborted)
    assert not [it for it in plan_requests(TEXT, 50, 100, 16, 0.0, 4) if it.abort_after is not None]
    everything = plan_requests(TEXT, 50, 100, 16, 1.0, 4)
    assert all(it.abort_after is not None for it in everything)


def test_many_begin_alike_so_that_a_prefix_cache_has_hits() -> None:
    made = plan_requests(TEXT, 400, 200, 8, 0.0, seed=5)
    starts = Counter(request.prompt[0] for request in made)
    repeats = sum(count - 1 for count in starts.values())
    assert 60 < repeats < 200


def test_the_same_seed_draws_the_same() -> None:
    first = plan_requests(TEXT, 30, 100, 8, 0.1, seed=6)
    assert plan_requests(TEXT, 30, 100, 8, 0.1, seed=6) == first
    assert plan_requests(TEXT, 30, 100, 8, 0.1, seed=7) != first


def test_a_text_that_is_too_short_is_refused() -> None:
    made = plan_requests(TEXT[:100], 5, 100, 8, 0.0, seed=0)
    assert max(len(request.prompt) for request in made) == 100
    with pytest.raises(UsageError, match=r"100 tokens; prompts of up to 101 .* lower --longest"):
        plan_requests(TEXT[:100], 5, 101, 8, 0.0, seed=0)


def test_no_request_asks_for_no_text() -> None:
    assert plan_requests([], 0, 0, 8, 0.5, seed=0) == ()


def test_the_sample_leaves_out_what_is_aborted() -> None:
    made = plan_requests(TEXT, 100, 50, 8, 0.3, seed=8)
    chosen = sample_requests(made, 20, seed=1)
    assert len(chosen) == len(set(chosen)) == 20
    assert list(chosen) == sorted(chosen)
    assert all(made[index].abort_after is None for index in chosen)
    assert len(sample_requests(made, 1000, seed=1)) == 70
    assert sample_requests(made, 0, seed=1) == ()
    assert sample_requests(made, 20, seed=2) != chosen


REQUESTS = (
    Request((1, 2), 3),
    Request((1, 2), 3, abort_after=1),
    Request((1, 2), 3, abort_after=0),
    Request((1, 2), 2),
)


def test_a_trial_follows_requests_to_their_end() -> None:
    trial = Trial(REQUESTS)
    assert trial.due() == [2]
    assert trial.due() == []
    trial.note(0, [7], None)
    trial.note(1, [8], None)
    assert trial.due() == [1]
    trial.note(3, [5], None)
    trial.note(3, [5, 6], FINISHED)
    trial.note(0, [7, 7, 7], FINISHED)
    assert trial.due() == []
    trial.close()
    assert trial.answers == {3: (5, 6), 0: (7, 7, 7)}
    assert trial.aborted == {1, 2}
    assert trial.broken == {}


def test_a_request_that_ended_is_not_aborted() -> None:
    trial = Trial([Request((1,), 2, abort_after=1)])
    trial.note(0, [4, 4], FINISHED)
    assert trial.due() == []
    trial.close()
    assert (trial.aborted, trial.broken) == (set(), {})


def test_what_goes_wrong_is_named_by_request() -> None:
    trial = Trial(REQUESTS)
    trial.due()
    trial.note(2, [9], None)
    trial.note(0, [7, 7], FINISHED)
    trial.note(3, [5, 5], "abort")
    trial.close()
    assert trial.broken == {
        2: "gave tokens after it was aborted",
        0: "ended (length) with 2 of 3 tokens",
        3: "ended (abort) with 2 of 2 tokens",
        1: "was lost: the engine never ended it",
    }
    trial = Trial(REQUESTS)
    trial.note(3, [5, 5], FINISHED)
    trial.note(3, [5, 5, 5], None)
    assert trial.broken == {3: "went on after it had ended"}


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_first_difference_is_the_first(one: list[int], other: list[int]) -> None:
    at = first_difference(one, other)
    if at is None:
        assert one == other
        return
    assert one[:at] == other[:at]
    assert one[at : at + 1] != other[at : at + 1]


def test_sequences_that_ran_both_ways_are_compared() -> None:
    together = {0: [1, 2, 3], 1: [1, 2], 2: [4], 5: [1]}
    alone = {0: [1, 2, 4], 1: [1, 2], 2: [5], 7: [1]}
    found = compare_sequences(together, alone)
    assert found == Sequences(compared=3, differing=(0, 2))
    assert found.same == 1


def simulated(same: int, compared: int, other: int, of: int, seed: int) -> float:
    """The chance by dealing out at random."""
    generator = random.Random(seed)
    balls = [1] * (same + other) + [0] * (compared + of - same - other)
    trials = 20_000
    few = 0
    for _ in range(trials):
        few += sum(generator.sample(balls, compared)) <= same
    return few / trials


@pytest.mark.parametrize(
    "case", [(45, 50, 48, 50), (30, 50, 45, 50), (8, 10, 25, 50), (50, 50, 40, 50), (0, 5, 5, 5)]
)
def test_the_chance_is_that_of_dealing_out(case: tuple[int, int, int, int], seed: int) -> None:
    chance = chance_of_so_few(*case)
    expected = simulated(*case, seed=seed)
    assert chance == pytest.approx(expected, abs=4 * math.sqrt(max(expected, 1e-4) / 20_000))


def test_the_chance_of_as_much_as_stock_is_no_sign() -> None:
    assert chance_of_so_few(50, 50, 50, 50) == 1.0
    assert chance_of_so_few(0, 0, 0, 0) == 1.0
    assert chance_of_so_few(47, 50, 49, 50) > 0.1
    assert chance_of_so_few(30, 50, 48, 50) < 1e-4
