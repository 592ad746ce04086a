"""Ratios: their algebra, their spread, and when a difference is none."""

from __future__ import annotations

import math

import pytest
from compare_cases import rate, row
from hypothesis import given
from hypothesis import strategies as st

from slidesparse.bench.compare.ratio import Ratio, ratio_of

AMOUNTS = st.floats(min_value=1e-6, max_value=1e9)
SHARES = st.floats(min_value=0, max_value=2)


@given(AMOUNTS, AMOUNTS, SHARES, SHARES, st.booleans())
def test_a_comparison_and_its_inverse_say_the_same(
    one: float, other: float, a: float, b: float, lower: bool
) -> None:
    make = row if lower else rate
    base, second = make(one, spread=a * one), make(other, spread=b * other)
    forth, back = ratio_of(base, second), ratio_of(second, base)
    assert forth is not None
    assert back is not None
    assert forth.value * back.value == pytest.approx(1)
    assert forth.spread == pytest.approx(back.spread)
    told = {"better": "worse", "worse": "better"}
    # Just at the edge the two may round to different sides.
    if abs(abs(math.log(forth.value)) - (forth.spread or 0) / 2) > 1e-9:
        assert back.verdict == told.get(forth.verdict, forth.verdict)


@given(AMOUNTS, AMOUNTS, AMOUNTS)
def test_ratios_of_exact_figures_multiply(one: float, two: float, three: float) -> None:
    a, b, c = (row(value, spread=0.0) for value in (one, two, three))
    ab, bc, ac = ratio_of(a, b), ratio_of(b, c), ratio_of(a, c)
    assert ab is not None and bc is not None and ac is not None  # noqa: PT018
    assert ab.value * bc.value == pytest.approx(ac.value)


def test_better_is_above_one_whichever_way_the_metric_improves() -> None:
    faster = ratio_of(row(100.0, 1.0), row(50.0, 1.0))
    more = ratio_of(rate(100.0, spread=1.0), rate(200.0, spread=1.0))
    assert faster is not None
    assert more is not None
    assert faster.value == more.value == 2
    assert faster.verdict == more.verdict == "better"


def test_relative_spreads_add_in_squares() -> None:
    found = ratio_of(row(100.0, 3.0), row(50.0, 2.0))
    assert found is not None
    assert found.spread == pytest.approx(math.hypot(0.03, 0.04))


@pytest.mark.parametrize(
    ("other", "spread", "verdict"),
    [
        (102.0, 4.0, "no difference"),  # ln 1.02 = 0.0198, half of hypot(.04, .039) = 0.028
        (104.0, 4.0, "worse"),
        (96.0, 4.0, "better"),
        (100.0, 0.0, "no difference"),
        (101.0, 0.0, "worse"),
        (200.0, None, "spread unknown"),
    ],
)
def test_a_ratio_inside_its_spread_is_no_difference(
    other: float, spread: float | None, verdict: str
) -> None:
    found = ratio_of(row(100.0, spread), row(other, spread))
    assert found is not None
    assert found.verdict == verdict


@pytest.mark.parametrize(("one", "other"), [(0.0, 1.0), (1.0, 0.0), (-0.1, 0.2), (1e-300, 1e300)])
def test_figures_without_a_positive_ratio_have_none(one: float, other: float) -> None:
    assert ratio_of(row(one), row(other)) is None


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (Ratio(1.32, 0.02), "1.32 ±0.01"),
        (Ratio(1.0331, 0.006), "1.033 ±0.003"),
        (Ratio(1.012, 0.05), "no difference (1.01)"),
        (Ratio(0.66, None), "0.66~"),
        (Ratio(0.0312, None), "0.031~"),
    ],
)
def test_how_tables_print_it(ratio: Ratio, text: str) -> None:
    assert str(ratio) == text
