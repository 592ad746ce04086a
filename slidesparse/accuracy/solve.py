"""Choose one option per group: the least cost within a limit on weight, and proof that it is.

This is the multiple-choice knapsack problem. Partial choices that another one beats in both cost
and weight are dropped, as in Nemhauser and Ullmann's dynamic programming; so are those that a
Lagrangian bound shows to end above the best choice known (H. Kellerer, U. Pferschy, D. Pisinger,
Knapsack Problems, chapter 11). Figures become whole numbers first, so that nothing depends on the
order in which they are added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from slidesparse.errors import UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]
    Reals = npt.NDArray[np.float64]

UNITS = 2**40
"""The largest possible total is this many units: figures are rounded to 1e-12 of it."""

MOST_STATES = 50_000
"""Partial choices that are kept per group; with more the most promising go on, without proof."""

_BISECTIONS = 100
_FLOAT_ERROR = 1e-12
_NEVER = 2**60


@dataclass(frozen=True)
class Solution:
    """One option per group.

    Args:
        options: their indices, in the order of the groups.
        proved: whether no other choice within the limit costs less, up to rounding to UNITS.
        gap: how far below this cost another choice might be, as a fraction of it; 0 if proved.
    """

    options: tuple[int, ...]
    proved: bool
    gap: float = 0.0


def solve(
    costs: Sequence[Sequence[float]],
    weights: Sequence[Sequence[float]],
    limit: float,
    most_states: int = MOST_STATES,
) -> Solution | None:
    """Find the choice of least cost whose weights add up to at most `limit`.

    Args:
        costs: per group, of each of its options; finite and not negative.
        weights: likewise, of the same lengths.
        limit: of the sum of the chosen weights. A sum that is above it by no more than rounding
            (1e-12 of the largest sum per group) counts as within.
        most_states: partial choices to keep.

    Returns:
        The choice, or None if even the lightest options are too heavy.

    Raises:
        UsageError: a group has no option, or a figure is negative or not finite.
    """
    _check(costs, weights)
    cost_unit, weight_unit = _unit(costs), _unit(weights)
    problem = _Problem.of(
        [_rounded(each, cost_unit) for each in costs],
        [_rounded(each, weight_unit) for each in weights],
        _limit(limit, weight_unit, len(costs)),
    )
    return problem.solve(most_states)


def _check(costs: Sequence[Sequence[float]], weights: Sequence[Sequence[float]]) -> None:
    if len(costs) != len(weights):
        raise UsageError(f"{len(costs)} groups have costs and {len(weights)} have weights")
    for index, (cost, weight) in enumerate(zip(costs, weights, strict=True)):
        if not cost or len(cost) != len(weight):
            raise UsageError(
                f"group {index} has {len(cost)} costs and {len(weight)} weights; one per option"
            )
        for value in (*cost, *weight):
            if not 0 <= value < float("inf"):
                raise UsageError(f"group {index} has an option of {value}; use 0 or more")


def _unit(figures: Sequence[Sequence[float]]) -> float:
    return sum(max(each) for each in figures) / UNITS or 1.0


def _rounded(figures: Sequence[float], unit: float) -> Integers:
    return np.rint(np.asarray(figures, dtype=np.float64) / unit).astype(np.int64)


def _limit(limit: float, unit: float, groups: int) -> int:
    # Every group's weight may have been rounded up by half a unit, and the limit's own down.
    units = min(limit / unit, 2.0 * UNITS)
    return int(np.floor(units)) + groups + 1 if units >= 0 else -1


@dataclass
class _Stage:
    """The partial choices after one group: their totals, and what each was made of."""

    cost: Integers
    weight: Integers
    excess: Reals
    parent: Integers
    option: Integers


@dataclass
class _Problem:
    """The knapsack in whole numbers, padded to [G, O] with options that are never chosen.

    Args:
        cost: [G, O].
        weight: [G, O].
        limit: of the chosen weights.
        price: of one unit of weight, of the Lagrangian bound.
        bound: nothing within the limit costs less.
        best: the choice of least cost so far, and its cost.
    """

    cost: Integers
    weight: Integers
    limit: int
    price: float = 0.0
    bound: float = 0.0
    best: Integers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    best_cost: int = _NEVER

    @classmethod
    def of(cls, costs: Sequence[Integers], weights: Sequence[Integers], limit: int) -> _Problem:
        width = max(map(len, costs), default=1)
        cost = np.full((len(costs), width), _NEVER, dtype=np.int64)
        weight = cost.copy()
        for index, (some, others) in enumerate(zip(costs, weights, strict=True)):
            cost[index, : len(some)], weight[index, : len(others)] = some, others
        return cls(cost, weight, limit)

    def solve(self, most_states: int) -> Solution | None:
        if not len(self.cost):
            return Solution((), True) if self.limit >= 0 else None
        if int(self.weight.min(axis=1).sum()) > self.limit:
            return None
        self._relax()
        self._improve()
        complete = self._enumerate(most_states)
        gap = 0.0 if complete else max(0.0, 1 - self.bound / max(self.best_cost, 1))
        return Solution(tuple(int(option) for option in self.best), complete, gap)

    def _pick(self, price: float) -> Integers:
        """The options of least cost + price * weight; of equal ones the lightest."""
        total = self.cost + price * self.weight
        ties = total <= total.min(axis=1, keepdims=True) * (1 + 1e-15)
        lightest: Integers = np.where(ties, self.weight, _NEVER).argmin(axis=1)
        return lightest

    def _totals(self, choice: Integers) -> tuple[int, int]:
        rows = np.arange(len(choice))
        return int(self.cost[rows, choice].sum()), int(self.weight[rows, choice].sum())

    def _keep(self, choice: Integers) -> None:
        cost, weight = self._totals(choice)
        if weight <= self.limit and cost < self.best_cost:
            self.best, self.best_cost = choice.copy(), cost

    def _relax(self) -> None:
        """Find the price at which the picked options just fit: the Lagrangian bound."""
        self._keep(self.weight.argmin(axis=1))
        low, high = 0.0, 1.0
        while self._totals(self._pick(high))[1] > self.limit and high < float(_NEVER):
            high *= 16
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            choice = self._pick(middle)
            if self._totals(choice)[1] <= self.limit:
                self._keep(choice)
                high = middle
            else:
                low = middle
        if self._totals(self._pick(0.0))[1] <= self.limit:
            high = 0.0
            self._keep(self._pick(0.0))
        self.price = high
        least = (self.cost + high * self.weight).min(axis=1).sum()
        self.bound = float(least - high * self.limit)

    def _improve(self) -> None:
        """Spend what the best choice leaves of the limit, one change at a time."""
        rows = np.arange(len(self.best))
        while True:
            cost, weight = self.cost[rows, self.best], self.weight[rows, self.best]
            room = self.limit - int(weight.sum())
            gain = cost[:, None] - self.cost
            gain = np.where(self.weight - weight[:, None] <= room, gain, 0)
            group, option = np.unravel_index(int(gain.argmax()), gain.shape)
            if gain[group, option] <= 0:
                return
            changed = self.best.copy()
            changed[group] = option
            self._keep(changed)

    def _enumerate(self, most_states: int) -> bool:
        """Extend partial choices group by group; whether all that matter were followed."""
        total = self.cost + self.price * self.weight
        excess = total - total.min(axis=1, keepdims=True)
        slack = _FLOAT_ERROR * (self.best_cost + self.price * float(UNITS) * 2)
        # Groups with several options within the gap come last: until then there is one state.
        order = np.argsort((excess <= self._gap(slack)).sum(axis=1), kind="stable")
        picked = self._pick(self.price)
        rows = np.arange(len(order))
        rest_cost = _suffix_sums(self.cost[rows, picked][order])
        rest_weight = _suffix_sums(self.weight[rows, picked][order])
        rest_least = _suffix_sums(self.weight.min(axis=1)[order])
        zero = np.zeros(1, dtype=np.int64)
        stages = [_Stage(zero, zero, np.zeros(1), zero, zero)]
        complete = True
        for step, group in enumerate(order):
            stage = self._extend(stages[-1], group, excess[group], slack, int(rest_least[step]))
            if len(stage.cost) > most_states:
                complete = False
                stage = _take(stage, np.sort(np.argsort(stage.excess)[:most_states]))
            stages.append(stage)
            if not len(stage.cost):
                break
            full = np.where(
                stage.weight + rest_weight[step] <= self.limit,
                stage.cost + rest_cost[step],
                _NEVER,
            )
            at = int(full.argmin())
            if full[at] < self.best_cost:
                self._keep(_trace(stages, at, order, picked))
        return complete

    def _gap(self, slack: float) -> float:
        """How far above the bound a choice that beats the best one can be."""
        return self.best_cost - 1 - self.bound + slack

    def _extend(self, stage: _Stage, group: int, excess: Reals, slack: float, rest: int) -> _Stage:
        """Combine each state with each option of a group; drop what cannot beat the best."""
        count, width = len(stage.cost), len(excess)
        cost = (stage.cost[:, None] + self.cost[group]).reshape(-1)
        weight = (stage.weight[:, None] + self.weight[group]).reshape(-1)
        over = (stage.excess[:, None] + excess).reshape(-1)
        parent = np.repeat(np.arange(count, dtype=np.int64), width)
        option = np.tile(np.arange(width, dtype=np.int64), count)
        made = _Stage(cost, weight, over, parent, option)
        made = _take(
            made, np.flatnonzero((over <= self._gap(slack)) & (weight + rest <= self.limit))
        )
        made = _take(made, np.lexsort((made.cost, made.weight)))
        cheapest = np.minimum.accumulate(made.cost)
        first = np.ones(len(made.cost), dtype=bool)
        first[1:] = made.cost[1:] < cheapest[:-1]
        return _take(made, np.flatnonzero(first))


def _take(stage: _Stage, index: npt.NDArray[np.intp]) -> _Stage:
    return _Stage(
        stage.cost[index],
        stage.weight[index],
        stage.excess[index],
        stage.parent[index],
        stage.option[index],
    )


def _suffix_sums(values: Integers) -> Integers:
    """The sum of all values behind each."""
    behind: Integers = values[::-1].cumsum()[::-1] - values
    return behind


def _trace(
    stages: Sequence[_Stage], at: int, order: npt.NDArray[np.intp], picked: Integers
) -> Integers:
    """The whole choice that a state of the last stage stands for, the rest as picked."""
    choice = picked.copy()
    for stage, group in zip(stages[:0:-1], order[len(stages) - 2 :: -1], strict=True):
        choice[group] = stage.option[at]
        at = int(stage.parent[at])
    return choice
