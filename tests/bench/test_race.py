"""A race samples in turn, as often as it should, and its medians belong to the right runner."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from random import Random

import pytest

from slidesparse.bench.race import UNCERTAIN, Time, race, uncertainty

log: list[str] = []


@dataclass
class FakeTimed:
    name: str
    samples: list[float]
    launches: int = 1
    graph: bool = False
    taken: int = field(default=0)

    def enqueue(self) -> None:
        log.append(self.name)

    def collect(self) -> list[float]:
        self.taken += 1
        return [self.samples[(self.taken - 1) % len(self.samples)]]


@pytest.fixture(autouse=True)
def _empty() -> None:
    log.clear()


def test_samples_are_taken_in_turn_and_medians_are_each_runners_own() -> None:
    first, second = FakeTimed("a", [1.0, 9.0, 2.0]), FakeTimed("b", [30.0, 10.0, 20.0])
    found = race([first, second], rounds=3, fewest=1, budget_us=1e9)
    assert "".join(log) == "ababab"
    assert found == [Time(2.0, 4.0), Time(20.0, 10.0)]


def test_the_budget_ends_a_race_but_not_before_the_fewest_rounds() -> None:
    timed = FakeTimed("a", [10.0], launches=10)
    race([timed], rounds=21, fewest=7, budget_us=250.0)
    assert timed.taken == 7
    timed.taken = 0
    race([timed], rounds=21, fewest=1, budget_us=250.0)
    assert timed.taken == 3, "three samples of ten launches at 10 us pass 250 us"
    timed.taken = 0
    race([timed], rounds=21, fewest=1, budget_us=1e9)
    assert timed.taken == 21


@pytest.mark.parametrize(
    ("samples", "taken"),
    [
        # Two per cent apart: 21 samples know the median to half a per cent.
        ([100.0, 101.0, 102.0], 21),
        # Six per cent apart: the error falls below one per cent after some thirty samples.
        ([95.0, 100.0, 105.0, 97.0, 103.0], 32),
        # It never does.
        ([10.0, 1000.0], 126),
    ],
)
def test_scattered_samples_are_followed_by_more(samples: list[float], taken: int) -> None:
    steady, timed = FakeTimed("a", [50.0]), FakeTimed("b", samples)
    race([steady, timed], rounds=21, fewest=7, budget_us=1e9, most=126)
    assert steady.taken == timed.taken
    assert timed.taken == pytest.approx(taken, abs=4 if taken == 32 else 0)
    timed.taken = 0
    race([timed], rounds=21, fewest=7, budget_us=1e9)
    assert timed.taken == 21


def test_the_budget_ends_what_scatters_too() -> None:
    timed = FakeTimed("a", [10.0, 1000.0])
    race([timed], rounds=21, fewest=7, budget_us=30 * 505.0, most=126)
    assert 21 < timed.taken < 35


def test_the_error_of_a_median_is_what_repeated_medians_scatter_by() -> None:
    random = Random(5)
    draws = [[random.gauss(100.0, 8.0) for _ in range(41)] for _ in range(400)]
    scatter = statistics.stdev(statistics.median(each) for each in draws) / 100.0
    said = statistics.fmean(uncertainty(each) for each in draws)
    assert said == pytest.approx(scatter, rel=0.15)
    assert uncertainty([100.0]) == 0 < UNCERTAIN


def test_nobody_races_alone() -> None:
    assert race([], rounds=3, fewest=1, budget_us=1.0) == []
