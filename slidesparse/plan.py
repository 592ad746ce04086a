"""Plan: which candidate runs a layer for which M, dense included. Nobody gets slower."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from slidesparse.candidate import Measurement, ProblemResult
from slidesparse.problem import bucket_m


@dataclass(frozen=True)
class Choice:
    """What is planned for one problem, and why.

    Args:
        chosen: the measurement of what runs.
        sparse: the best sparse measurement, if the problem has one.
        baseline: the best dense measurement of the same race, if there is one.
        gain: baseline time over sparse time; above 1 sparse is faster.
        clear: whether the difference is larger than the spread of both.
    """

    chosen: Measurement
    sparse: Measurement | None
    baseline: Measurement | None
    gain: float | None
    clear: bool

    @property
    def verdict(self) -> str:
        """One word for tables: "sparse" or "dense"."""
        return "sparse" if self.chosen.candidate.sparse else "dense"


def choose(result: ProblemResult) -> Choice | None:
    """Choose between the best sparse and the best dense candidate of one race.

    Sparse runs only where it is faster by more than the spread (half the interquartile range of
    either); a difference inside the spread is none, and dense needs no second weight format.

    Returns:
        None if the result holds no measurement.
    """
    if not result.ranked:
        return None
    sparse = next((m for m in result.ranked if m.candidate.sparse), None)
    dense = result.baseline
    if sparse is None or dense is None:
        return Choice(result.ranked[0], sparse, dense, None, True)
    gain = dense.median_us / sparse.median_us
    spread = max(dense.spread_us, sparse.spread_us) / 2
    clear = abs(dense.median_us - sparse.median_us) > spread
    chosen = sparse if gain > 1.0 and clear else dense
    return Choice(chosen, sparse, dense, gain, clear)


@dataclass(frozen=True)
class Plan:
    """The choices of one layer, by M bucket.

    Args:
        choices: (bucket, choice), buckets ascending.
    """

    choices: tuple[tuple[int, Choice], ...]

    @classmethod
    def of(cls, results: Iterable[ProblemResult]) -> Plan:
        """Plan a layer from its results, which differ in M only."""
        by_bucket: dict[int, Choice] = {}
        for result in results:
            choice = choose(result)
            if choice is not None:
                by_bucket[bucket_m(result.problem.m)] = choice
        return cls(tuple(sorted(by_bucket.items())))

    def at(self, m: int) -> Choice | None:
        """The choice for `m` tokens: its bucket's, else the next tuned one above, else the last."""
        wanted = bucket_m(m)
        above = [choice for bucket, choice in self.choices if bucket >= wanted]
        if above:
            return above[0]
        return self.choices[-1][1] if self.choices else None
