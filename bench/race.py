"""Races: samples of several ways in turn."""

from __future__ import annotations

import math
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


UNCERTAIN = 0.01
"""A median is known well enough once its standard error is this share of it."""


def race(
    timed: Sequence[Timed], rounds: int, fewest: int, budget_us: float, most: int = 0
) -> list[Time]:
    """Sample in turn: a GPU at its power limit drifts, and so all of them meet the same drift.

    Args:
        timed: ready to be sampled.
        rounds: samples of each at most.
        fewest: samples of each at least.
        budget_us: no further round starts once the samples took so many microseconds.
        most: samples of each at most while some median is UNCERTAIN; no more than `rounds` if 0.
    """
    samples: list[list[float]] = [[] for _ in timed]
    done, spent = 0, 0.0
    while done < fewest or (spent < budget_us and _goes_on(samples, done, rounds, most)):
        for each in timed:
            each.enqueue()
        for each, taken in zip(timed, samples, strict=True):
            new = each.collect()
            taken += new
            spent += sum(new) * each.launches
        done += 1
    return [Time(statistics.median(taken), interquartile(taken)) for taken in samples]


def _goes_on(samples: Sequence[Sequence[float]], done: int, rounds: int, most: int) -> bool:
    return done < rounds or (done < most and any(uncertainty(it) > UNCERTAIN for it in samples))


def uncertainty(samples: Sequence[float]) -> float:
    """The standard error of the median over the median, for samples that are roughly normal.

    Of n samples of standard deviation s it is sqrt(pi / 2) s / sqrt(n), and their interquartile
    range is 1.349 s.
    """
    error = math.sqrt(math.pi / 2) * interquartile(samples) / 1.349 / math.sqrt(len(samples))
    return error / statistics.median(samples)
