"""Which group of linears gets which pattern: fastest within a loss, or least loss at a speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from slidesparse.accuracy.groups import Group
from slidesparse.accuracy.sensitivity import Sensitivity
from slidesparse.accuracy.solve import Solution, solve
from slidesparse.accuracy.speed import SpeedTable
from slidesparse.errors import UsageError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method, Recipe

CLOSE = 0.03
"""A measured loss this near below its limit ends the rounds: closer is within what text varies."""

CLEAR = 2.0
"""Standard errors from which on a difference between two losses counts as one."""

STRIDE = 8.0
"""What is allowed grows by this where pruning was measured to cost nothing at all."""

SAME_SPEED = 5e-4
"""Speeds that differ by less print alike, and no race tells them apart."""

ROUNDS = 6
"""Allocations that are pruned and measured at most to meet a limit."""


@dataclass(frozen=True)
class Allocation:
    """A pattern for each group.

    Args:
        patterns: by group.
        us: time of all groups over the workload, in microseconds.
        predicted: loss increase in nats per token, the sum of the groups' divergences.
        proved: whether no other allocation is better in the sense that was asked for.
    """

    patterns: Mapping[Group, Pattern]
    us: float
    predicted: float
    proved: bool = True

    def recipe(self, method: Method, dtype: DType | None, keep: tuple[str, ...]) -> Recipe:
        """What `convert` reads: every linear by name, dense ones too."""
        layers = {name: self.patterns[group] for group in self.patterns for name in group.linears}
        return Recipe(DENSE, method, dtype, keep, layers)

    @property
    def zeros(self) -> float:
        """The fraction of the groups' weights that is zero."""
        sizes = {group: group.n * group.k for group in self.patterns}
        zeros = sum(float(p.zeros) * sizes[group] for group, p in self.patterns.items())
        return zeros / sum(sizes.values())


@dataclass(frozen=True)
class Options:
    """What there is to choose from.

    Args:
        groups: of the model.
        patterns: besides dense.
        speeds: of every shape and pattern.
        sensitivity: of every group and pattern.
    """

    groups: tuple[Group, ...]
    patterns: tuple[Pattern, ...]
    speeds: SpeedTable
    sensitivity: Sensitivity

    def uniform(self, pattern: Pattern) -> Allocation:
        """The same pattern everywhere. Where its plan runs dense it still costs its loss."""
        return self._made(dict.fromkeys(self.groups, pattern))

    @property
    def dense(self) -> Allocation:
        """Nothing pruned."""
        return self.uniform(DENSE)

    @property
    def fastest(self) -> Allocation:
        """Every group at its fastest pattern, whatever the loss."""
        chosen = {group: self._of(group)[-1] for group in self.groups}
        return self._made(chosen)

    def speedup(self, allocation: Allocation) -> float:
        """Dense time over an allocation's."""
        return self.dense.us / allocation.us

    def fastest_within(self, increase: float) -> Allocation:
        """The fastest allocation whose predicted loss increase is at most `increase` nats."""
        found = self._solve(self._times(), self._losses(), increase)
        assert found is not None, "dense costs no loss"
        return found

    def least_loss_at(self, speedup: float) -> Allocation:
        """The allocation of least predicted loss that is at least `speedup` times as fast as dense.

        Raises:
            UsageError: no choice of patterns is as fast.
        """
        found = self._solve(self._losses(), self._times(), self.dense.us / speedup)
        if found is None:
            raise UsageError(
                f"no choice of patterns is {speedup:.3f}x as fast as dense; the fastest reaches "
                f"{self.speedup(self.fastest):.3f}x: lower the target or change --m"
            )
        return found

    def _of(self, group: Group) -> tuple[Pattern, ...]:
        return (DENSE, *self.speeds.faster(group.shape, self.patterns))

    def _times(self) -> list[list[float]]:
        return [[self.speeds.us(g.shape, p) for p in self._of(g)] for g in self.groups]

    def _losses(self) -> list[list[float]]:
        return [[self.sensitivity.cost(g, p) for p in self._of(g)] for g in self.groups]

    def _solve(
        self, costs: list[list[float]], weights: list[list[float]], limit: float
    ) -> Allocation | None:
        solution = solve(costs, weights, limit)
        if solution is None:
            return None
        # Of all that cost as little take the lightest: what costs nothing may still weigh.
        least = math.fsum(cost[i] for cost, i in zip(costs, solution.options, strict=True))
        lightest = solve(weights, costs, least)
        if lightest is not None and lightest.proved:
            solution = Solution(lightest.options, solution.proved)
        chosen = {
            group: self._of(group)[option]
            for group, option in zip(self.groups, solution.options, strict=True)
        }
        return self._made(chosen, solution.proved)

    def _made(self, chosen: Mapping[Group, Pattern], proved: bool = True) -> Allocation:
        us = math.fsum(self.speeds.us(group.shape, p) for group, p in chosen.items())
        predicted = math.fsum(self.sensitivity.cost(group, p) for group, p in chosen.items())
        return Allocation(chosen, us, predicted, proved)


@dataclass(frozen=True)
class Difference:
    """How much more one model loses than another on the same windows, in nats per token.

    Args:
        mean: over the windows.
        error: standard error of the mean, from the spread of the windows' differences; 0 for one.
    """

    mean: float
    error: float

    @classmethod
    def of(cls, losses: Sequence[float], others: Sequence[float]) -> Difference:
        """Compare windows in pairs: what makes a text hard is in both."""
        differences = [a - b for a, b in zip(losses, others, strict=True)]
        spread = stdev(differences) if len(differences) > 1 else 0.0
        return cls(fmean(differences), spread / math.sqrt(len(differences)))

    @property
    def clear(self) -> bool:
        """Whether it is more than what the choice of the windows explains."""
        return abs(self.mean) > CLEAR * self.error


@dataclass(frozen=True)
class Measured:
    """An allocation and the true loss of the model that was pruned to it.

    Args:
        allocation: that was measured.
        losses: mean negative log-likelihood of each window of the held-out text, nats per token;
            windows are equally long.
    """

    allocation: Allocation
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of the whole text, nats per token."""
        return fmean(self.losses)

    def above(self, other: Measured) -> Difference:
        """This loss less another one on the same windows."""
        return Difference.of(self.losses, other.losses)

    @property
    def perplexity(self) -> float:
        """Perplexity: e to the loss."""
        return math.exp(self.loss)


Measure = Callable[[Allocation], tuple[float, ...]]
"""Prunes the model to an allocation and gives the loss of each held-out window, nats per token."""


@dataclass(frozen=True)
class Search:
    """What meeting a limit took.

    Args:
        chosen: the fastest allocation that was measured to be within the limit.
        rounds: every allocation that was measured on the way, in order.
    """

    chosen: Measured
    rounds: tuple[Measured, ...] = field(default_factory=tuple)


def meet_limit(
    options: Options, limit: float, dense: Measured, measure: Measure, rounds: int = ROUNDS
) -> Search:
    """Find the fastest allocation whose *measured* loss increase is within a limit.

    Losses of groups do not quite add up, and the text differs from that of the sensitivities. So
    the predicted loss is a guide: what it may be is set, in a few rounds of solve, prune and
    measure, so that the measured loss comes to just below the limit.

    Args:
        options: to choose from.
        limit: on the loss increase, nats per token.
        dense: the model as it is, measured.
        measure: the true loss of an allocation.
        rounds: how often to measure at most.

    Returns:
        The fastest allocation within the limit, dense if none of the others is.
    """
    best, done = dense, []
    below, above = 0.0, math.inf
    budget, tried = limit, {_key(dense.allocation)}
    for _ in range(rounds):
        allocation = options.fastest_within(budget)
        if _key(allocation) in tried:
            break
        tried.add(_key(allocation))
        found = Measured(allocation, measure(allocation))
        done.append(found)
        increase = found.above(dense).mean
        if increase <= limit:
            below = max(below, budget)
            best = min(best, found, key=lambda each: each.allocation.us)
            if increase >= limit * (1 - CLOSE):
                break
        else:
            above = min(above, budget)
        budget = _next_budget(allocation.predicted, increase, limit, below, above)
    return Search(best, tuple(done))


def _next_budget(
    predicted: float, increase: float, limit: float, below: float, above: float
) -> float:
    """What to allow next: in proportion to what was measured, and inside of what is known."""
    wanted = (below + above) / 2 if math.isfinite(above) else STRIDE * below
    if predicted > 0 and increase > 0:
        # A little less than the limit: what is just above it would be measured for nothing.
        wanted = predicted * limit / increase * (1 - CLOSE / 2)
    if math.isfinite(above):
        edge = (above - below) * 0.1
        return min(max(wanted, below + edge), above - edge)
    return max(wanted, below)


def _key(allocation: Allocation) -> tuple[Pattern, ...]:
    return tuple(allocation.patterns.values())


def verdict(chosen: Measured, other: Measured, name: str) -> str:
    """One line: how an allocation compares with another in time and in perplexity."""
    if _key(chosen.allocation) == _key(other.allocation):
        return f"is {name}"
    faster = other.allocation.us / chosen.allocation.us
    loss = chosen.above(other)
    slower, worse = faster < 1 - SAME_SPEED, loss.clear and loss.mean > 0
    figures = (
        f"{faster:.3f}x as fast, perplexity {chosen.perplexity:.2f} against "
        f"{other.perplexity:.2f} ({loss.mean:+.4f} +- {loss.error:.4f} nats)"
    )
    if slower or worse:
        word = "loses to" if slower and worse else "is slower than" if slower else "is worse than"
        return f"{word} {name}: {figures}"
    better = loss.clear and loss.mean < 0
    if faster > 1 + SAME_SPEED:
        return f"beats {name} on {'both axes' if better else 'speed at no clear loss'}: {figures}"
    return f"{'beats' if better else 'equals'} {name} at the same speed: {figures}"
