"""A race samples in turn, as often as it should, and its medians belong to the right runner."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from slidesparse.bench.race import Time, race

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


def test_nobody_races_alone() -> None:
    assert race([], rounds=3, fewest=1, budget_us=1.0) == []
