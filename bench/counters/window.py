"""From the steps of a running engine to rates: windows between steps, and what sampling costs.

A rate is taken from the arrival of one step's tokens to that of another: the tokens in between over
the time in between. So a window holds whole steps, and no step is counted in part.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from slidesparse.bench.sweep.vllm_steps import StepError
from slidesparse.stats import interquartile

SLICES = 10
"""Parts of a window whose rates give its spread."""

PAIRS = 6
"""Pairs of stretches, one with sampling and one without, that show what sampling costs."""


class FlowStep(NamedTuple):
    """One step of an engine.

    Args:
        time: in seconds, when its tokens had arrived.
        generated: tokens that requests got from it.
        finished: requests that ended with it.
        preempted: requests that lost their KV cache when it was scheduled.
    """

    time: float
    generated: int
    finished: int
    preempted: int


@dataclass(frozen=True)
class Stretch:
    """The steps between two arrivals.

    Args:
        begin: in seconds, when the step before the first had arrived.
        end: when the last had.
        tokens: generated between them.
        steps: between them.
        sampled: whether samples were taken meanwhile.
    """

    begin: float
    end: float
    tokens: int
    steps: int
    sampled: bool = True

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.begin

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


class SamplingCost(NamedTuple):
    """What sampling costs, from stretches with and without it in turn.

    Args:
        percent: of the throughput, median over pairs; negative where sampling looked faster.
        spread: interquartile range of the pairs, in percent.
        pairs: compared.
    """

    percent: float
    spread: float
    pairs: int


def stretch(steps: Sequence[FlowStep], first: int, last: int, sampled: bool = True) -> Stretch:
    """The steps after index `first` up to index `last`.

    Raises:
        StepError: there is no step between them.
    """
    if last <= first:
        raise StepError(
            "not one step ended within a stretch of the window; measure longer: raise --seconds"
        )
    tokens = sum(step.generated for step in steps[first + 1 : last + 1])
    return Stretch(steps[first].time, steps[last].time, tokens, last - first, sampled)


def slices(steps: Sequence[FlowStep], first: int, last: int, count: int = SLICES) -> list[Stretch]:
    """A window cut at steps into up to `count` parts of about the same time, one step at least.

    Args:
        steps: of the engine.
        first: index of the step with whose arrival the window begins.
        last: of that with which it ends.
        count: of parts.

    Raises:
        StepError: the window holds no step.
    """
    whole = stretch(steps, first, last)
    times = [step.time for step in steps[first : last + 1]]
    edges = [first]
    for index in range(1, min(count, whole.steps)):
        planned = whole.begin + whole.seconds * index / min(count, whole.steps)
        found = first + bisect_left(times, planned)
        if edges[-1] < found < last:
            edges.append(found)
    edges.append(last)
    return [stretch(steps, a, b) for a, b in pairwise(edges)]


def switching(pairs: int = PAIRS) -> tuple[bool, ...]:
    """Whether each stretch is sampled: on off, off on, on off ... so that a drift cancels out."""
    return tuple(on for index in range(pairs) for on in ((True, False), (False, True))[index % 2])


def sampling_cost(stretches: Sequence[Stretch]) -> SamplingCost:
    """What sampling costs: 1 - rate with over rate without, of neighbours in pairs.

    Args:
        stretches: as `switching` orders them.
    """
    costs = []
    for one, other in zip(stretches[::2], stretches[1::2], strict=True):
        on, off = (one, other) if one.sampled else (other, one)
        costs.append(100 * (1 - on.rate / off.rate))
    return SamplingCost(statistics.median(costs), interquartile(costs), len(costs))
