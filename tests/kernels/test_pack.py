"""pack24: a round trip to the bit, the layout by hand, and what is not 2:4 is refused."""

from __future__ import annotations

import kernel_checks as checks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slidesparse.errors import KernelError, PatternError
from slidesparse.kernels import pack24, reference
from slidesparse.kernels.pack import pack24_op
from slidesparse.pattern import Pattern
from slidesparse.slide import prune_magnitude, slide

FP8, INT8 = checks.QUANTISED
each_dtype = pytest.mark.parametrize("dtype", checks.QUANTISED, ids=checks.short)


def sparse(rows, k, dtype, seed):
    """A random 2:4 matrix: some groups with fewer than two non-zeros, FP8 with negative zeros."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randint(-128, 128, (rows, k), generator=generator).float()
    w *= torch.rand(rows, k, generator=generator) > 0.3
    return prune_magnitude(w, Pattern.parse("2:4")).to(dtype)


def assert_same(made, want):
    for a, b in zip(made, want, strict=True):
        assert a.dtype is b.dtype
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@given(
    dtype=st.sampled_from(checks.QUANTISED),
    rows=st.integers(1, 5),
    words=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_what_is_packed_comes_back(dtype, rows, words, seed):
    w = sparse(rows, 32 * words, dtype, seed)
    values, metadata = pack24(w)
    assert_same((values, metadata), reference.pack24(w))
    assert torch.equal(reference.unpack24(values, metadata).float(), w.float())


@each_dtype
@pytest.mark.parametrize("text", ["4:6", "6:8", "14:16"])
def test_a_slid_weight_packs(dtype, text, seed):
    pattern = Pattern.parse(text)
    w = prune_magnitude(checks.draw(3, 100, torch.float32, seed) * 40, pattern).to(dtype)
    slid = slide(w, pattern)
    values, metadata = pack24(slid)
    assert torch.equal(reference.unpack24(values, metadata).float(), slid.float())


def test_the_layout_by_hand():
    """Positions in order, the first in the low two bits; the first group in the low four."""
    w = torch.zeros(1, 32, dtype=torch.int8)
    groups = [[5, 6, 0, 0], [0, 7, 0, -128], [0, 0, 9, 10], [0, 0, 0, 0]]
    groups += [[11, 0, 0, 0], [0, 12, 0, 0], [0, 0, 13, 0], [0, 0, 0, 14]]
    w[0] = torch.tensor(groups, dtype=torch.int8).reshape(-1)
    pairs = [(0, 1), (1, 3), (2, 3), (2, 3), (0, 3), (1, 3), (2, 3), (2, 3)]
    nibbles = [first | (last << 2) for first, last in pairs]
    values, metadata = pack24(w)
    assert values[0].tolist() == [5, 6, 7, -128, 9, 10, 0, 0, 11, 0, 12, 0, 13, 0, 0, 14]
    assert metadata[0].tolist() == [nibbles[i] | (nibbles[i + 1] << 4) for i in range(0, 8, 2)]


def test_a_negative_zero_of_fp8_is_no_value():
    w = torch.zeros(1, 32, dtype=torch.uint8)
    w[0, :4] = torch.tensor([0x80, 0x38, 0x80, 0xB8], dtype=torch.uint8)
    values, metadata = pack24(w.view(FP8))
    assert values.view(torch.uint8)[0, :2].tolist() == [0x38, 0xB8]
    assert int(metadata[0, 0]) & 0xF == 1 | (3 << 2)


@each_dtype
def test_a_row_wider_than_a_block_and_strided(dtype, seed):
    wide = sparse(3, 4 * 1024 + 64 + 32, dtype, seed)
    for w in (wide, wide[:, : 4 * 1024 + 64], wide[:, 32:]):
        assert_same(pack24(w), reference.pack24(w))


@each_dtype
def test_no_rows_and_two_runs(dtype, seed):
    values, metadata = pack24(torch.empty(0, 64, dtype=dtype))
    assert (values.shape, metadata.shape) == ((0, 32), (0, 8))
    w = sparse(4, 64, dtype, seed)
    assert_same(pack24(w), pack24(w))


@each_dtype
@pytest.mark.parametrize("row", [0, 2])
def test_the_first_overfull_row_is_named(dtype, row, seed):
    w = sparse(5, 96, dtype, seed).float()
    w[row, 92:95] = 1.0
    w[4, 0:4] = 1.0
    expected = f"row {row} has more than two non-zeros in a group of four; slide it first"
    with pytest.raises(PatternError, match=expected):
        pack24(w.to(dtype))


W = torch.zeros(4, 64, dtype=torch.int8)
WRONG = {
    "w has 1 dimensions (64,)": lambda: pack24(W[0]),
    "w is torch.bfloat16; use one of float8_e4m3fn, int8": lambda: pack24(W.bfloat16()),
    "w has 48 columns; pad them to a multiple of 32": lambda: pack24(W[:, :48]),
    "w (4, 0) has no columns": lambda: pack24(W[:, :0]),
    "the columns of w are 2 elements apart": lambda: pack24(W[:, ::2]),
    "w starts 1 bytes past a multiple of 4 and its rows are 64 bytes apart; multiples of 4": (
        lambda: pack24(W[:, 1:33])
    ),
    "w starts 0 bytes past a multiple of 4 and its rows are 33 bytes apart; multiples of 4": (
        lambda: pack24(torch.zeros(4, 33, dtype=torch.int8)[:, :32])
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_operands_are_refused_with_the_values(message):
    with pytest.raises(KernelError) as raised:
        WRONG[message]()
    assert message in str(raised.value)


@each_dtype
def test_opcheck(dtype, seed):
    tests = ["test_schema", "test_faketensor", "test_aot_dispatch_dynamic"]
    # The schema check multiplies its operands, and torch cannot multiply FP8.
    checked = tests[dtype is FP8 :]
    torch.library.opcheck(pack24_op, (sparse(3, 64, dtype, seed),), test_utils=checked)
