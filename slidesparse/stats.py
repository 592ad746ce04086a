"""Statistics of samples: spread, and whether two candidates can be told apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

NORMAL_QUARTILES = 1.349
"""Interquartile range of a normal distribution over its standard deviation: 2 x 0.6745."""


def interquartile(samples: Sequence[float]) -> float:
    """The interquartile range, 0 for a single sample."""
    if len(samples) < 2:
        return 0.0
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return high - low


def settled(leader: Sequence[float], other: Sequence[float], confidence: float = 3.0) -> bool:
    """Whether paired samples show that the leader is faster.

    The median of the paired differences must exceed `confidence` standard errors of a median
    (1.2533 sigma / sqrt(n), sigma from the interquartile range over 1.349: the normal
    distribution's constants).
    """
    differences = [b - a for a, b in zip(leader, other, strict=True)]
    error = 1.2533 * interquartile(differences) / NORMAL_QUARTILES / len(differences) ** 0.5
    return bool(statistics.median(differences) > confidence * error)
