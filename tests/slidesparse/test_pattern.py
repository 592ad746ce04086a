"""Patterns: parsing, K', and the lift index against the formula written as loops."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from slidesparse.errors import PatternError
from slidesparse.pattern import (
    DENSE,
    EXPANDED_K_ALIGNMENT,
    STRIDE,
    WINDOW,
    Pattern,
    parse_patterns,
)

FAMILY = "; use dense, 2:4, 4:6, 6:8, 8:10 or another (2N-2):2N"

family = st.integers(2, 12).map(lambda half: Pattern(2 * half - 2, 2 * half))
any_pattern = st.one_of(st.just(DENSE), family)
widths = st.integers(1, 700)
alignments = st.sampled_from([1, 4, 16, 32, 64, 128])


def naive_lift(pattern: Pattern, k: int, align: int) -> list[int]:
    """lifted[4(N-1)b + 4w + j] = x[2Nb + 2w + j], one entry at a time."""
    half = pattern.block // 2
    index: list[int] = []
    for block in range(-(-k // pattern.block)):
        for window in range(half - 1):
            for j in range(4):
                source = 2 * half * block + 2 * window + j
                index.append(source if source < k else -1)
    while len(index) % align:
        index.append(-1)
    return index


@pytest.mark.parametrize(
    ("text", "pattern", "windows", "expansion", "zeros", "bound"),
    [
        ("dense", DENSE, 0, Fraction(1), Fraction(0), Fraction(1)),
        ("2:4", Pattern(2, 4), 1, Fraction(1), Fraction(1, 2), Fraction(2)),
        ("4:6", Pattern(4, 6), 2, Fraction(4, 3), Fraction(1, 3), Fraction(3, 2)),
        ("6:8", Pattern(6, 8), 3, Fraction(3, 2), Fraction(1, 4), Fraction(4, 3)),
        ("8:10", Pattern(8, 10), 4, Fraction(8, 5), Fraction(1, 5), Fraction(5, 4)),
        ("14:16", Pattern(14, 16), 7, Fraction(7, 4), Fraction(1, 8), Fraction(8, 7)),
    ],
)
def test_known_patterns(
    text: str,
    pattern: Pattern,
    windows: int,
    expansion: Fraction,
    zeros: Fraction,
    bound: Fraction,
) -> None:
    parsed = Pattern.parse(text)
    assert parsed == pattern
    assert str(parsed) == text
    assert parsed.dense is (text == "dense")
    assert (parsed.windows, parsed.expansion) == (windows, expansion)
    assert (parsed.zeros, parsed.bound) == (zeros, bound)


@pytest.mark.parametrize(
    ("alias", "pattern"),
    [("2:6", "4:6"), ("2:8", "6:8"), ("2:10", "8:10"), ("2:4", "2:4"), ("2:16", "14:16")],
)
def test_zeros_notation_is_an_alias(alias: str, pattern: str) -> None:
    assert str(Pattern.parse(alias)) == pattern


@pytest.mark.parametrize("text", [" 6:8", "6:8 ", "\t6:8\n"])
def test_spaces_around_a_pattern(text: str) -> None:
    assert Pattern.parse(text) == Pattern(6, 8)


@pytest.mark.parametrize("text", ["DENSE", " Dense "])
def test_dense_in_any_case(text: str) -> None:
    assert Pattern.parse(text) is DENSE


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("3:8", "pattern 3:8 is not of the (2N-2):2N family"),
        ("5:8", "pattern 5:8 is not of the (2N-2):2N family"),
        ("8:8", "pattern 8:8 is not of the (2N-2):2N family"),
        ("3:5", "pattern 3:5 is not of the (2N-2):2N family"),
        ("2:5", "pattern 2:5 is not of the (2N-2):2N family"),
        ("0:2", "pattern 0:2 is not of the (2N-2):2N family"),
        ("2:2", "pattern 2:2 is not of the (2N-2):2N family"),
        ("0:0", "pattern 0:0 is not of the (2N-2):2N family"),
        ("8:6", "pattern '8:6' keeps 8 of 6 weights, more than there are"),
        ("2:4:6", "cannot read pattern '2:4:6'"),
        ("", "cannot read pattern ''"),
        ("6", "cannot read pattern '6'"),
        ("6:", "cannot read pattern '6:'"),
        (":8", "cannot read pattern ':8'"),
        ("-2:4", "cannot read pattern '-2:4'"),
        ("6: 8", "cannot read pattern '6: 8'"),
        ("6/8", "cannot read pattern '6/8'"),
        ("six:eight", "cannot read pattern 'six:eight'"),
        ("6:8x", "cannot read pattern '6:8x'"),
    ],
)
def test_refused_text(text: str, problem: str) -> None:
    with pytest.raises(PatternError) as error:
        Pattern.parse(text)
    assert str(error.value) == problem + FAMILY


@pytest.mark.parametrize("pair", [(0, 2), (2, 8), (1, 4), (4, 4), (-2, 0), (1, 2), (0, 1)])
def test_refused_pair(pair: tuple[int, int]) -> None:
    with pytest.raises(PatternError, match=rf"^pattern {pair[0]}:{pair[1]} is not of the"):
        Pattern(*pair)


@given(any_pattern)
def test_text_round_trip(pattern: Pattern) -> None:
    assert Pattern.parse(str(pattern)) == pattern
    assert hash(Pattern.parse(str(pattern))) == hash(pattern)


@given(family)
def test_family_arithmetic(pattern: Pattern) -> None:
    half = pattern.block // 2
    assert pattern.zeros == Fraction(1, half)
    assert pattern.bound == Fraction(half, half - 1)
    assert pattern.expansion * pattern.bound == 2
    assert pattern.windows * 2 == pattern.nonzeros  # two non-zeros per window: room for all


@given(any_pattern, any_pattern)
def test_patterns_sort_by_density(one: Pattern, other: Pattern) -> None:
    assume(not one.dense and not other.dense)
    assert (one < other) == (one.nonzeros < other.nonzeros)


def test_list_keeps_order_and_drops_repetitions() -> None:
    assert parse_patterns("6:8, dense,2:8,2:4,6:8") == (Pattern(6, 8), DENSE, Pattern(2, 4))


@pytest.mark.parametrize("text", ["", "2:4,", ",2:4", "2:4,,6:8"])
def test_list_with_a_hole(text: str) -> None:
    with pytest.raises(PatternError, match=r"^cannot read pattern ''"):
        parse_patterns(text)


@pytest.mark.parametrize(
    ("text", "k", "expanded"),
    [
        ("dense", 3588, 3588),
        ("2:4", 3584, 3584),
        ("4:6", 3584, 4800),  # 598 blocks of 8 make 4784
        ("6:8", 3584, 5376),
        ("8:10", 3584, 5760),  # 359 blocks of 16 make 5744
        ("6:8", 18944, 28416),
        ("6:8", 3588, 5408),  # 449 blocks of 12 make 5388
        ("2:4", 1, 32),
    ],
)
def test_expanded_k(text: str, k: int, expanded: int) -> None:
    assert Pattern.parse(text).expanded_k(k) == expanded


@given(any_pattern, widths, alignments)
def test_expanded_k_holds_every_window(pattern: Pattern, k: int, align: int) -> None:
    expanded = pattern.expanded_k(k, align)
    if pattern.dense:
        assert expanded == k
        return
    exact = pattern.padded_k(k) * pattern.expansion
    assert exact.denominator == 1
    assert exact <= expanded < exact + align
    assert expanded % align == 0


@given(any_pattern, widths)
def test_blocks_cover_the_row(pattern: Pattern, k: int) -> None:
    assert pattern.padded_k(k) == pattern.blocks(k) * pattern.block
    assert k <= pattern.padded_k(k) < k + pattern.block


@given(family, widths, alignments)
def test_lift_index_is_the_formula(pattern: Pattern, k: int, align: int) -> None:
    index = pattern.lift_index(k, align)
    assert index.dtype == np.int64
    assert index.shape == (pattern.expanded_k(k, align),)
    assert index.tolist() == naive_lift(pattern, k, align)


def test_lift_index_of_one_block() -> None:
    index = Pattern(6, 8).lift_index(8, align=4).tolist()
    assert index == [*(0, 1, 2, 3), *(2, 3, 4, 5), *(4, 5, 6, 7)]


@pytest.mark.parametrize("k", [1, 7, 129])
def test_lift_index_of_dense_is_the_identity(k: int) -> None:
    assert DENSE.lift_index(k).tolist() == list(range(k))


@given(family, widths)
def test_every_weight_is_in_one_or_two_windows(pattern: Pattern, k: int) -> None:
    index = pattern.lift_index(k)
    times = np.bincount(index[index >= 0], minlength=k)
    place = np.arange(k) % pattern.block
    inner = (place >= STRIDE) & (place < pattern.block - STRIDE)
    assert np.array_equal(times, np.where(inner, WINDOW // STRIDE, 1))


@given(family, widths, st.integers(0, 2**32 - 1))
def test_greedy_windows_reproduce_the_product(pattern: Pattern, k: int, seed: int) -> None:
    """A row with at most 2N-2 non-zeros per block slides into 2:4 windows, product unchanged."""
    generator = np.random.default_rng(seed)
    weights = generator.integers(-9, 10, k)
    for start in range(0, k, pattern.block):
        block = weights[start : start + pattern.block]
        zeroed = max(0, block.size - pattern.nonzeros)
        block[generator.choice(block.size, zeroed, replace=False)] = 0
    activations = generator.integers(-9, 10, k)
    index = pattern.lift_index(k)
    slid = np.zeros(index.size, dtype=np.int64)
    placed: set[int] = set()
    for start in range(0, index.size, WINDOW):
        for position in range(start, start + WINDOW):
            source = int(index[position])
            room = np.count_nonzero(slid[start : start + WINDOW]) < 2
            if source >= 0 and weights[source] and source not in placed and room:
                slid[position] = weights[source]
                placed.add(source)
    lifted = np.where(index >= 0, activations[index], 0)
    assert slid @ lifted == weights @ activations
    assert np.count_nonzero(slid.reshape(-1, WINDOW), axis=1).max() <= 2


def test_lift_index_is_shared_and_cannot_be_written() -> None:
    index = Pattern(6, 8).lift_index(64)
    assert Pattern(6, 8).lift_index(64) is index
    with pytest.raises(ValueError, match="read-only"):
        index[0] = 1


@pytest.mark.parametrize("k", [0, -8])
@pytest.mark.parametrize("pattern", [DENSE, Pattern(6, 8)])
def test_k_must_be_positive(pattern: Pattern, k: int) -> None:
    for method in (pattern.blocks, pattern.padded_k, pattern.expanded_k, pattern.lift_index):
        with pytest.raises(PatternError) as error:
            method(k)
        assert str(error.value) == f"K={k} is not a positive number of weights per row"


def test_alignment_is_a_multiple_of_the_window() -> None:
    assert EXPANDED_K_ALIGNMENT % WINDOW == 0
