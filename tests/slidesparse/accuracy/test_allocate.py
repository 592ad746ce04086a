"""Allocations: optimal by brute force, within what was measured, and compared without flattery."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slidesparse.accuracy.allocate import (
    ROUNDS,
    Allocation,
    Difference,
    Measured,
    Options,
    meet_limit,
    verdict,
)
from slidesparse.accuracy.groups import Group
from slidesparse.accuracy.sensitivity import Effect, Sensitivity
from slidesparse.accuracy.speed import SpeedTable, forms_of
from slidesparse.errors import UsageError
from slidesparse.pattern import DENSE, Pattern, parse_patterns
from slidesparse.problem import DType
from slidesparse.recipe import Method, Recipe

PATTERNS = parse_patterns("2:4,6:8,8:10")
TWO, SIX, EIGHT = PATTERNS
US = {"o": 60.0, "down": 170.0}
GAINS = {"o": (1.5, 1.2, 1.07), "down": (1.65, 1.25, 1.1)}
COSTS = {
    (0, "o"): (0.02, 0.004, 0.003),
    (0, "down"): (0.3, 0.05, 0.031),
    (1, "o"): (0.2, 0.011, 0.012),
    (1, "down"): (0.05, 0.02, 0.013),
    (2, "o"): (0.0, 0.0, 0.0),
    (2, "down"): (0.9, 0.11, 0.07),
}


def shape(name: str) -> tuple[int, int]:
    return {"o": (64, 64), "down": (64, 128)}[name]


def make(costs: dict[tuple[int, str], tuple[float, ...]] = COSTS) -> Options:
    groups = tuple(Group(b, name, (f"layers.{b}.{name}",), *shape(name)) for b, name in costs)
    times = {(shape(name), DENSE): us for name, us in US.items()}
    for name, gains in GAINS.items():
        for pattern, gain in zip(PATTERNS, gains, strict=True):
            times[shape(name), pattern] = US[name] / gain
    speeds = SpeedTable(times, forms_of(DType.FP8)[0], {})
    effects = {
        (group, pattern): Effect(cost, -1.0)
        for group, each in zip(groups, costs.values(), strict=True)
        for pattern, cost in zip(PATTERNS, each, strict=True)
    }
    return Options(groups, PATTERNS, speeds, Sensitivity(3.0, effects, 100))


def every(options: Options) -> list[Allocation]:
    """All allocations there are."""
    choices = itertools.product((DENSE, *PATTERNS), repeat=len(options.groups))
    return [options._made(dict(zip(options.groups, chosen, strict=True))) for chosen in choices]


@pytest.fixture(scope="module")
def options() -> Options:
    return make()


@pytest.fixture(scope="module")
def all_of_them(options: Options) -> list[Allocation]:
    return every(options)


@pytest.mark.parametrize("limit", [0.0, 0.003, 0.02, 0.1, 0.33, 5.0])
def test_fastest_within_a_loss(
    options: Options, all_of_them: list[Allocation], limit: float
) -> None:
    found = options.fastest_within(limit)
    within = [each for each in all_of_them if each.predicted <= limit + 1e-12]
    assert found.proved
    assert found.predicted <= limit + 1e-12
    assert found.us == pytest.approx(min(each.us for each in within), rel=1e-12)
    as_fast = [each.predicted for each in within if each.us <= found.us * (1 + 1e-12)]
    assert found.predicted == pytest.approx(min(as_fast), abs=1e-12)


@pytest.mark.parametrize("speedup", [1.0, 1.05, 1.2, 1.35, 1.6])
def test_least_loss_at_a_speed(
    options: Options, all_of_them: list[Allocation], speedup: float
) -> None:
    found = options.least_loss_at(speedup)
    fast = [each for each in all_of_them if options.speedup(each) >= speedup * (1 - 1e-12)]
    assert found.proved
    assert options.speedup(found) >= speedup * (1 - 1e-12)
    assert found.predicted == pytest.approx(min(each.predicted for each in fast), abs=1e-12)
    as_good = [each.us for each in fast if each.predicted <= found.predicted + 1e-12]
    assert found.us == pytest.approx(min(as_good), rel=1e-12)


def test_what_costs_nothing_is_taken_even_if_nothing_asks_for_it(options: Options) -> None:
    chosen = options.least_loss_at(1.0).patterns
    assert {str(group): str(p) for group, p in chosen.items() if not p.dense} == {
        "block 2 o": "2:4"
    }


few = st.integers(0, 4).map(lambda steps: steps / 128)
tied = st.fixed_dictionaries({(b, n): st.tuples(few, few, few) for b in (0, 1) for n in US})


@settings(max_examples=150)
@given(tied, st.integers(0, 16).map(lambda steps: steps / 128), st.floats(1, 1.6))
def test_ties_go_to_the_choice_that_is_better_otherwise(
    costs: dict[tuple[int, str], tuple[float, ...]], limit: float, speedup: float
) -> None:
    options = make(costs)
    choices = every(options)
    fastest = options.fastest_within(limit)
    within = [(round(c.us, 6), c.predicted) for c in choices if c.predicted <= limit]
    assert (round(fastest.us, 6), fastest.predicted) == min(within)
    best = options.least_loss_at(speedup)
    fast = [(c.predicted, round(c.us, 6)) for c in choices if options.speedup(c) >= speedup]
    assert (best.predicted, round(best.us, 6)) <= min(fast)


def test_as_fast_as_a_uniform_pattern_and_never_worse_by_prediction(options: Options) -> None:
    for pattern in PATTERNS:
        uniform = options.uniform(pattern)
        found = options.least_loss_at(options.speedup(uniform))
        assert found.us <= uniform.us * (1 + 1e-12)
        assert found.predicted <= uniform.predicted
        back = options.fastest_within(uniform.predicted)
        assert back.us <= uniform.us * (1 + 1e-12)


def test_out_of_reach_says_what_is_reached(options: Options) -> None:
    fastest = options.speedup(options.fastest)
    assert options.fastest.patterns == options.uniform(TWO).patterns
    with pytest.raises(UsageError) as caught:
        options.least_loss_at(1.7)
    assert str(caught.value) == (
        f"no choice of patterns is 1.700x as fast as dense; the fastest reaches {fastest:.3f}x: "
        "lower the target or change --m"
    )


def test_a_pattern_that_gains_nothing_is_never_chosen() -> None:
    base = make()
    times = dict(base.speeds.times)
    for name in US:
        times[shape(name), SIX] = times[shape(name), DENSE]
    options = Options(
        base.groups, PATTERNS, SpeedTable(times, base.speeds.form, {}), base.sensitivity
    )
    for limit in (0.01, 0.1, 1.0):
        assert SIX not in options.fastest_within(limit).patterns.values()
    assert options.uniform(SIX).us == options.dense.us


def test_the_recipe_names_every_linear(options: Options) -> None:
    allocation = options.fastest_within(0.1)
    recipe = allocation.recipe(Method.WANDA, DType.INT8, ("lm_head",))
    assert (recipe.pattern, recipe.method, recipe.dtype) == (DENSE, Method.WANDA, DType.INT8)
    assert recipe.layers == {g.linears[0]: p for g, p in allocation.patterns.items()}
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_zeros_are_weighted_by_size(options: Options) -> None:
    chosen = {g: TWO if g.name == "o" else SIX for g in options.groups}
    assert options._made(chosen).zeros == pytest.approx((0.5 * 1 + 0.25 * 2) / 3)
    assert options.dense.zeros == 0


# Meeting a limit: the truth differs from the prediction by a factor, and more.

TRUTHS: dict[str, Callable[[float], float]] = {
    "as predicted": lambda x: x,
    "twice": lambda x: 2 * x,
    "seven times": lambda x: 7 * x,
    "a tenth": lambda x: 0.1 * x,
    "grows faster": lambda x: x + 8 * x * x,
    "levels off": lambda x: 0.3 * math.sqrt(x),
    "an offset": lambda x: x + 0.002,
    "less than nothing": lambda x: -x,
}


def long_model(blocks: int = 25) -> Options:
    costs = {}
    for block in range(blocks):
        for name, size in (("o", 1.0), ("down", 2.7)):
            scale = 0.002 * size * (1 + 0.9 * math.sin(12.9 * block + size))
            costs[block, name] = (9 * scale, 1.4 * scale, 0.8 * scale)
    return make(costs)


@pytest.fixture(scope="module")
def long_options() -> Options:
    return long_model()


def dense_of(options: Options) -> Measured:
    return Measured(options.dense, (3.0, 3.2))


@pytest.mark.parametrize("limit", [0.005, 0.05, 0.4])
@pytest.mark.parametrize("truth", TRUTHS)
def test_what_is_chosen_was_measured_to_be_within_the_limit(
    long_options: Options, truth: str, limit: float
) -> None:
    seen: list[Allocation] = []

    def measure(allocation: Allocation) -> tuple[float, ...]:
        seen.append(allocation)
        increase = TRUTHS[truth](allocation.predicted)
        return (3.0 + increase, 3.2 + increase)

    dense = dense_of(long_options)
    found = meet_limit(long_options, limit, dense, measure)
    assert found.chosen.above(dense).mean <= limit
    assert [each.allocation for each in found.rounds] == seen
    assert len(seen) <= ROUNDS
    within = [each for each in found.rounds if each.above(dense).mean <= limit]
    assert found.chosen.allocation.us == min(
        [each.allocation.us for each in within], default=dense.allocation.us
    )
    # What the solver would have chosen knowing the truth, found by bisection.
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        allocation = long_options.fastest_within(middle)
        if TRUTHS[truth](allocation.predicted) <= limit:
            low = middle
        else:
            high = middle
    ideal = long_options.speedup(long_options.fastest_within(low)) - 1
    assert long_options.speedup(found.chosen.allocation) - 1 >= 0.9 * ideal


def test_a_hopeless_limit_ends_dense(long_options: Options) -> None:
    dense = dense_of(long_options)
    found = meet_limit(long_options, 0.01, dense, lambda _: (4.0, 4.2))
    assert found.chosen == dense
    assert 1 <= len(found.rounds) <= ROUNDS


def test_nothing_to_gain_measures_nothing() -> None:
    base = make()
    times = {key: us if key[1].dense else US["o"] * 9 for key, us in base.speeds.times.items()}
    options = Options(
        base.groups, PATTERNS, SpeedTable(times, base.speeds.form, {}), base.sensitivity
    )
    dense = dense_of(options)
    found = meet_limit(options, 1.0, dense, lambda _: pytest.fail("measured"))
    assert (found.chosen, found.rounds) == (dense, ())


# Differences and verdicts.


def test_differences_are_of_pairs() -> None:
    found = Difference.of((5.0, 1.0, 3.5), (4.9, 0.8, 3.2))
    assert found.mean == pytest.approx(0.2)
    assert found.error == pytest.approx(0.1 / math.sqrt(3))
    assert found.clear
    assert not Difference.of((5.0, 1.0), (4.9, 1.1)).clear
    assert Difference.of((5.0,), (4.9,)).error == 0


def measured(options: Options, pattern: Pattern, *losses: float) -> Measured:
    return Measured(options.uniform(pattern), losses)


@pytest.mark.parametrize(
    ("mine", "other", "losses", "others", "word"),
    [
        (TWO, SIX, (1.0, 2.0), (1.1, 2.1), "beats it on both axes: "),
        (TWO, SIX, (1.0, 2.0), (1.1, 1.91), "beats it on speed at no clear loss: "),
        (TWO, SIX, (1.1, 2.1), (1.0, 2.0), "is worse than it: "),
        (SIX, TWO, (1.0, 2.0), (1.1, 2.1), "is slower than it: "),
        (SIX, TWO, (1.1, 2.1), (1.0, 2.0), "loses to it: "),
        (SIX, SIX, (1.1, 2.1), (1.1, 2.1), "is it"),
    ],
)
def test_verdicts(
    options: Options,
    mine: Pattern,
    other: Pattern,
    losses: tuple[float, ...],
    others: tuple[float, ...],
    word: str,
) -> None:
    line = verdict(measured(options, mine, *losses), measured(options, other, *others), "it")
    assert line.startswith(word)


@pytest.mark.parametrize(("shift", "word"), [(-0.1, "beats"), (0.0, "equals")])
def test_a_verdict_at_the_same_speed(options: Options, shift: float, word: str) -> None:
    swapped = dict.fromkeys(options.groups, SIX)
    first, last = options.groups[0], options.groups[4]
    swapped[first], swapped[last] = DENSE, TWO
    back = {**swapped, first: TWO, last: DENSE}
    one, two = options._made(swapped), options._made(back)
    line = verdict(Measured(one, (1.0 + shift, 2.0 + shift)), Measured(two, (1.0, 2.0)), "it")
    assert line.startswith(f"{word} it at the same speed: 1.000x as fast, perplexity ")


@pytest.mark.parametrize(
    ("factor", "word"), [(0.99999, "beats it at the same speed"), (0.999, "beats it on both axes")]
)
def test_a_verdict_takes_speeds_that_print_alike_for_the_same(
    options: Options, factor: float, word: str
) -> None:
    other = options.uniform(SIX)
    mine = replace(options.uniform(TWO), us=other.us * factor)
    line = verdict(Measured(mine, (1.0, 2.0)), Measured(other, (1.1, 2.1)), "it")
    assert line.startswith(f"{word}: ")


def test_a_verdict_gives_its_figures(options: Options) -> None:
    line = verdict(measured(options, TWO, 1.0, 2.0), measured(options, SIX, 1.1, 2.1), "6:8")
    faster = options.uniform(SIX).us / options.uniform(TWO).us
    assert line.endswith(
        f": {faster:.3f}x as fast, perplexity {math.exp(1.5):.2f} against {math.exp(1.6):.2f} "
        "(-0.1000 +- 0.0000 nats)"
    )
