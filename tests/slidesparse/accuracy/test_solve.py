"""The knapsack: against every choice there is, and against an independent dynamic program."""

from __future__ import annotations

import itertools
import math
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slidesparse.accuracy.solve import solve
from slidesparse.errors import UsageError

Table = list[list[float]]

whole = st.integers(0, 12)
real = st.floats(0, 1e3, allow_subnormal=False)


def groups(figure: st.SearchStrategy[float], most: int = 5) -> st.SearchStrategy[list[Table]]:
    option = st.tuples(figure, figure)
    return st.lists(st.lists(option, min_size=1, max_size=4), max_size=most).map(
        lambda made: [[[o[i] for o in group] for group in made] for i in (0, 1)]
    )


def totals(table: Table, options: tuple[int, ...]) -> float:
    return math.fsum(row[i] for row, i in zip(table, options, strict=True))


def least(costs: Table, weights: Table, limit: float) -> float | None:
    """The least cost of all choices, tried one by one."""
    choices = itertools.product(*(range(len(row)) for row in costs))
    within = (totals(costs, c) for c in choices if totals(weights, c) <= limit)
    return min(within, default=None)


@settings(max_examples=400)
@given(groups(whole), st.integers(0, 40))
def test_whole_numbers_against_every_choice(made: list[Table], limit: int) -> None:
    costs, weights = made
    best, found = least(costs, weights, limit), solve(costs, weights, limit)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert found.proved
    assert found.gap == 0
    assert totals(weights, found.options) <= limit
    assert totals(costs, found.options) == best


@settings(max_examples=300)
@given(groups(real), st.floats(0, 3e3))
def test_real_numbers_against_every_choice(made: list[Table], limit: float) -> None:
    costs, weights = made
    best, found = least(costs, weights, limit), solve(costs, weights, limit)
    slack = 1e-11 * (1 + sum(map(max, weights)))
    if found is None:
        assert best is None
        return
    assert totals(weights, found.options) <= limit + slack
    relaxed = least(costs, weights, limit + slack)
    assert relaxed is not None
    cost = totals(costs, found.options)
    assert cost >= relaxed
    assert best is None or cost <= best + 1e-11 * (1 + sum(map(max, costs)))


@given(groups(real, 4), st.permutations(range(4)))
def test_the_order_of_groups_does_not_matter(made: list[Table], order: list[int]) -> None:
    costs, weights = made
    limit = sum(map(min, weights)) * 0.5 + sum(map(max, weights)) * 0.5
    order = [i for i in order if i < len(costs)]
    found = solve(costs, weights, limit)
    other = solve([costs[i] for i in order], [weights[i] for i in order], limit)
    assert found is not None
    assert other is not None
    one = totals(costs, found.options)
    two = totals([costs[i] for i in order], other.options)
    assert one == pytest.approx(two, rel=1e-10, abs=1e-10)


def test_a_limit_that_is_just_met_by_a_sum_in_another_order() -> None:
    weights = [[0.1, 0.0], [0.2, 0.0], [0.3, 0.0]]
    costs = [[0.0, 1.0]] * 3
    # 0.1 + 0.2 + 0.3 is 0.6000000000000001 from the left and 0.6 from the right.
    found = solve(costs, weights, 0.6)
    assert found is not None
    assert found.options == (0, 0, 0)


def llm(blocks: int, seed: int) -> tuple[Table, Table]:
    """Losses and times of four groups per block under five patterns."""
    rng = np.random.default_rng(seed)
    times = {"qkv": 100.3, "o": 60.1, "gate_up": 320.7, "down": 170.9}
    speeds = (1.0, 1.61, 1.252, 1.133, 1.067)
    losses: Table = []
    weights: Table = []
    for _ in range(blocks):
        for us in times.values():
            scale = float(rng.lognormal(-6, 1.2))
            spread = rng.uniform(0.7, 1.4, 4)
            factors = zip((10, 3, 1.3, 0.7), spread, strict=True)
            losses.append([0.0, *(scale * f * s for f, s in factors)])
            weights.append([us / speed for speed in speeds])
    return losses, weights


def best_of_grid(costs: Table, weights: Table, limit: float, cells: int) -> float:
    """Least cost by plain dynamic programming, weights rounded down to a grid: a lower bound."""
    unit = limit / cells
    table = np.zeros(cells + 1)
    for cost, weight in zip(costs, weights, strict=True):
        new = np.full(cells + 1, np.inf)
        for c, w in zip(cost, weight, strict=True):
            shift = int(w / unit)
            if shift <= cells:
                new[shift:] = np.minimum(new[shift:], table[: cells + 1 - shift] + c)
        table = new
    return float(table[-1])


@pytest.mark.parametrize("loss", [0.0, 1e-3, 0.05, 0.3, 2.0])
def test_a_model_of_thirty_blocks_against_another_algorithm(loss: float) -> None:
    losses, times = llm(30, 3)
    found = solve(times, losses, loss)
    assert found is not None
    assert found.proved
    assert totals(losses, found.options) <= loss * (1 + 1e-9) + 1e-9
    if loss:
        # Rounded down, weights allow a little too much; up, by half a cell each, a little less.
        bound = best_of_grid(times, losses, loss, 20_000)
        reached = best_of_grid(times, losses, loss * 0.99, 20_000)
        assert bound <= totals(times, found.options) * (1 + 1e-12)
        assert totals(times, found.options) <= reached * 1.0005


@pytest.mark.parametrize("blocks", [30, 80])
@pytest.mark.parametrize("speedup", [1.01, 1.15, 1.3, 1.6])
def test_both_directions_agree(blocks: int, speedup: float) -> None:
    losses, times = llm(blocks, blocks)
    dense = sum(row[0] for row in times)
    start = time.perf_counter()
    found = solve(losses, times, dense / speedup)
    assert found is not None
    loss = totals(losses, found.options)
    back = solve(times, losses, loss)
    assert back is not None
    assert time.perf_counter() - start < 5
    assert found.proved
    assert back.proved
    assert totals(times, back.options) <= totals(times, found.options) * (1 + 1e-9)
    again = solve(losses, times, totals(times, back.options))
    assert again is not None
    assert totals(losses, again.options) == pytest.approx(loss, rel=1e-9)


def test_no_single_change_and_no_pair_improves_a_large_choice() -> None:
    losses, times = llm(30, 9)
    limit = 0.2
    found = solve(times, losses, limit)
    assert found is not None
    rng = random.Random(4)
    cost = totals(times, found.options)
    for _ in range(3000):
        changed = list(found.options)
        for _ in range(rng.randint(1, 2)):
            changed[rng.randrange(len(changed))] = rng.randrange(5)
        if totals(losses, tuple(changed)) <= limit:
            assert totals(times, tuple(changed)) >= cost * (1 - 1e-12)


def test_too_few_states_say_so_and_bound_the_gap() -> None:
    rng = random.Random(1)
    # Costs equal weights: the bound is loose and nearly every partial choice is of interest.
    weights = [[float(rng.randrange(10**6, 2 * 10**6)) for _ in range(4)] for _ in range(12)]
    costs = [[5e6 - w for w in row] for row in weights]
    limit = 1.5e6 * 12 + 0.5
    whole = solve(costs, weights, limit)
    cut = solve(costs, weights, limit, most_states=2)
    assert whole is not None
    assert cut is not None
    assert not cut.proved
    assert totals(weights, cut.options) <= limit
    best, got = totals(costs, whole.options), totals(costs, cut.options)
    assert best <= got
    assert got * (1 - cut.gap) <= best * (1 + 1e-9)


def test_nothing_to_choose_from() -> None:
    found = solve([], [], 0)
    assert found is not None
    assert found.options == ()
    assert found.proved
    assert solve([], [], -1) is None


def test_too_heavy() -> None:
    assert solve([[1.0, 2.0]], [[5.0, 4.0]], 3.9) is None
    assert solve([[1.0]], [[1.0]], -1.0) is None


def test_everything_weighs_nothing() -> None:
    found = solve([[3.0, 1.0], [2.0, 5.0]], [[0.0, 0.0], [0.0, 0.0]], 0.0)
    assert found is not None
    assert found.options == (1, 0)


@pytest.mark.parametrize(
    ("costs", "weights", "message"),
    [
        ([[1.0]], [], "1 groups have costs and 0 have weights"),
        ([[1.0], []], [[1.0], []], "group 1 has 0 costs and 0 weights; one per option"),
        ([[1.0, 2.0]], [[1.0]], "group 0 has 2 costs and 1 weights; one per option"),
        ([[-1.0]], [[1.0]], "group 0 has an option of -1.0; use 0 or more"),
        ([[1.0]], [[math.nan]], "group 0 has an option of nan; use 0 or more"),
        ([[math.inf]], [[1.0]], "group 0 has an option of inf; use 0 or more"),
    ],
)
def test_figures_that_cannot_be(costs: Table, weights: Table, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        solve(costs, weights, 1.0)
    assert str(caught.value) == message
