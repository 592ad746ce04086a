"""Races: samples of several ways in turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from slidesparse.stats import interquartile
from slidesparse.timing import Timed


@dataclass(frozen=True)
class Time:
    """Median and interquartile range of samples in microseconds."""

    median_us: float
    spread_us: float


def race(timed: Sequence[Timed], rounds: int, fewest: int, budget_us: float) -> list[Time]:
    """Sample in turn: a GPU at its power limit drifts, and so all of them meet the same drift.

    Args:
        timed: ready to be sampled.
        rounds: samples of each at most.
        fewest: samples of each at least.
        budget_us: no further round starts once the samples took so many microseconds.
    """
    samples: list[list[float]] = [[] for _ in timed]
    done, spent = 0, 0.0
    while done < fewest or (done < rounds and spent < budget_us):
        for each in timed:
            each.enqueue()
        for each, taken in zip(timed, samples, strict=True):
            new = each.collect()
            taken += new
            spent += sum(new) * each.launches
        done += 1
    return [Time(statistics.median(taken), interquartile(taken)) for taken in samples]
