"""The compressed weight: byte by byte against its description, and back again."""

from __future__ import annotations

from dataclasses import replace

import kernel_checks as checks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slidesparse.errors import KernelError, PatternError
from slidesparse.kernels.native import weight as module
from slidesparse.kernels.native.weight import PackedWeight, pack, unpack
from slidesparse.slide import prune_magnitude, slide

FP8, INT8 = checks.QUANTISED
each_dtype = pytest.mark.parametrize("dtype", checks.QUANTISED, ids=checks.short)
PATTERNS = [pattern for pattern in checks.PATTERNS if not pattern.dense]

BYTES = 2560
"""Of a block of 64 channels x 64 columns: 2048 of values and 512 of metadata."""

NO_VALUE = 0x4
"""The metadata of a group that is padding: positions 0 and 1."""


def drawn(n, k, dtype, seed):
    """A 2:4 matrix of any bit patterns, NaN and negative zeros too, groups with 0 to 2 of them."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 256, (n, k // 4, 4), dtype=np.uint8)
    order = random.random((n, k // 4, 4)).argsort(axis=2)
    count = random.integers(0, 3, (n, k // 4, 1))
    bits = np.where(order < count, bits, 0)
    if dtype is FP8:  # The sign of a zero does not make it a value.
        bits = np.where(random.random(bits.shape) < 0.1, bits | 0x80 * (bits == 0), bits)
    return torch.from_numpy(bits.astype(np.uint8).reshape(n, k)).view(dtype)


def bits_of(w):
    """As bytes, every FP8 zero positive."""
    bits = w.contiguous().view(torch.uint8)
    if w.dtype is FP8:
        bits = torch.where((bits & 0x7F) == 0, torch.zeros_like(bits), bits)
    return bits


def kept_of(group, dtype):
    """The two positions that a group of four bytes keeps: non-zeros, then the last zeros."""
    mask = 0x7F if dtype is FP8 else 0xFF
    places = [i for i in range(4) if group[i] & mask]
    for i in (3, 2):
        if len(places) < 2 and i not in places:
            places.append(i)
    return sorted(places)


def described(w):
    """The packed bytes [slabs, blocks, 2560], from the docstring of weight.py, one by one."""
    n, k = w.shape
    bits = w.contiguous().view(torch.uint8).numpy()
    slabs, blocks = -(-n // 64), -(-k // 256) * 4
    made = np.zeros((slabs, blocks, BYTES), np.uint8)

    def group_of(row, column):
        """The values that a group keeps, and its four bits of metadata."""
        if row >= n or column >= k:
            return (0, 0), NO_VALUE
        group = bits[row, column : column + 4]
        first, second = kept_of(group, w.dtype)
        return (group[first], group[second]), first | second << 2

    for slab in range(slabs):
        for block in range(blocks):
            image = made[slab, block]
            for r in range(64):
                for v in range(32):
                    pair, _ = group_of(64 * slab + r, 64 * block + 4 * (v // 2))
                    image[256 * (r // 8) + 128 * (v // 16) + 16 * (r % 8) + v % 16] = pair[v % 2]
            for t in range(128):
                channel = 16 * (t // 32) + 8 * (t % 2) + (t % 32) // 4
                for j in range(8):
                    group = 8 * ((t % 4) // 2) + j
                    _, nibble = group_of(64 * slab + channel, 64 * block + 4 * group)
                    image[2048 + 4 * t + j // 2] |= nibble << 4 * (j % 2)
    return torch.from_numpy(made)


@each_dtype
@pytest.mark.parametrize(("n", "k"), [(1, 32), (7, 96), (64, 256), (65, 64), (129, 288)])
def test_every_byte_is_where_the_description_has_it(dtype, n, k, seed):
    w = drawn(n, k, dtype, seed)
    packed = pack(w)
    assert torch.equal(packed.data, described(w))
    assert (packed.n, packed.k, packed.dtype) == (n, k, dtype)
    assert packed.data.is_contiguous()


@given(
    dtype=st.sampled_from(checks.QUANTISED),
    n=st.integers(1, 70),
    words=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=15)
def test_what_is_packed_comes_back(dtype, n, words, seed):
    w = drawn(n, 32 * words, dtype, seed)
    packed = pack(w)
    made = unpack(packed)
    assert made.dtype is dtype
    assert made.is_contiguous()
    assert torch.equal(bits_of(made), bits_of(w))
    assert packed.data.shape == (-(-n // 64), -(-words // 8) * 4, BYTES)
    assert packed.blocks == packed.data.shape[1]


@given(
    dtype=st.sampled_from(checks.QUANTISED),
    pattern=st.sampled_from(PATTERNS),
    n=st.integers(1, 70),
    k=st.integers(1, 200),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=15)
def test_a_slid_weight_comes_back(dtype, pattern, n, k, seed):
    w = prune_magnitude(checks.draw(n, k, torch.float32, seed) * 40, pattern).to(dtype)
    slid = slide(w, pattern)
    packed = pack(slid)
    assert packed.k == pattern.expanded_k(k)
    assert torch.equal(bits_of(unpack(packed)), bits_of(slid))


@each_dtype
@pytest.mark.parametrize(("n", "k"), [(1, 32), (63, 224), (65, 256), (130, 320)])
def test_padding_is_zeros_with_valid_positions(dtype, n, k, seed):
    w = drawn(n, k, dtype, seed)
    data = pack(w).data
    slabs, blocks, _ = data.shape
    whole = PackedWeight(data, 64 * slabs, 64 * blocks, dtype)
    made = unpack(whole)
    assert torch.equal(bits_of(made[:n, :k]), bits_of(w))
    assert not bits_of(made[n:]).any()
    assert not bits_of(made[:, k:]).any()
    # A whole slab or block of nothing: no value, and the same two positions in every group.
    for part in (data[:, -(-k // 64) :], data[-(-n // 64) :]):
        assert not part[..., :2048].any()
        assert (part[..., 2048:] == NO_VALUE * 0x11).all()
    words = data[..., 2048:]
    for nibble in (words & 0xF, words >> 4):
        assert ((nibble & 3) < nibble >> 2).all(), "the first position is not the smaller one"


@each_dtype
@pytest.mark.parametrize("value", [1, -1])
def test_a_group_of_fewer_than_two_keeps_zeros_of_its_last_positions(dtype, value):
    w = torch.zeros(1, 32)
    for place in range(4):
        w[0, 5 * place] = value  # Group g has a value in position g; the others have none.
    data = pack(w.to(dtype)).data[0, 0]
    one = int(torch.tensor([value]).to(dtype).view(torch.uint8))
    assert data[:16].tolist() == [one, 0, one, 0, one, 0, 0, one] + 8 * [0]
    pairs = [(0, 3), (1, 3), (2, 3), (2, 3)] + 4 * [(2, 3)]
    nibbles = [first | second << 2 for first, second in pairs]
    word = [nibbles[i] | nibbles[i + 1] << 4 for i in range(0, 8, 2)]
    assert data[2048:2052].tolist() == word
    assert data[2052:].tolist() == 508 * [0x44]


@each_dtype
@pytest.mark.parametrize("step", [1, 2])
def test_the_step_of_packing_is_not_seen(dtype, step, monkeypatch, seed):
    w = drawn(130, 32, dtype, seed)
    whole = pack(w)
    monkeypatch.setattr(module, "STEP_SLABS", step)
    assert torch.equal(pack(w).data, whole.data)
    assert torch.equal(bits_of(unpack(whole)), bits_of(w))


@each_dtype
def test_rows_may_be_strided(dtype, seed):
    wide = drawn(70, 192, dtype, seed)
    for w in (wide[:, 32:160], wide[::2, :64]):
        assert torch.equal(pack(w).data, pack(w.contiguous()).data)


@each_dtype
@pytest.mark.parametrize(
    ("n", "k", "size"),
    [(1, 32, 10240), (64, 256, 10240), (65, 288, 2 * 8 * 2560), (130, 4800, 3 * 76 * 2560)],
)
def test_bytes_of_a_weight(dtype, n, k, size):
    packed = pack(torch.zeros(n, k, dtype=torch.uint8).view(dtype))
    assert packed.data.nbytes == size
    assert packed.data.dtype is torch.uint8


@each_dtype
@pytest.mark.parametrize("rows", [(0,), (66, 130), (131,)], ids=str)
def test_the_first_row_that_is_not_2_of_4_is_named(dtype, rows, seed):
    w = drawn(132, 96, dtype, seed).view(torch.uint8).clone()
    for row in rows:
        w[row, 92:95] = 0x38
    expected = f"row {rows[0]} has more than two non-zeros in a group of four; slide it first"
    with pytest.raises(PatternError, match=expected):
        pack(w.view(dtype))


@pytest.mark.parametrize("row", [64, 131])
def test_the_named_row_counts_from_the_start_of_the_weight(row, monkeypatch):
    """Not from the start of the slabs that are packed together."""
    monkeypatch.setattr(module, "STEP_SLABS", 1)
    w = torch.zeros(132, 32, dtype=torch.int8)
    w[row, :3] = 1
    with pytest.raises(PatternError, match=f"row {row} has more than two"):
        pack(w)


W = torch.zeros(4, 64, dtype=torch.int8)
WRONG = {
    "w has shape (64,); [N, K'] with N, K' >= 1 is needed": lambda: pack(W[0]),
    "w has shape (1, 4, 64); [N, K'] with N, K' >= 1 is needed": lambda: pack(W[None]),
    "w has shape (0, 64); [N, K'] with N, K' >= 1 is needed": lambda: pack(W[:0]),
    "w has shape (4, 0); [N, K'] with N, K' >= 1 is needed": lambda: pack(W[:, :0]),
    "w is torch.bfloat16; use one of float8_e4m3fn, int8": lambda: pack(W.bfloat16()),
    "w is torch.uint8; use one of float8_e4m3fn, int8": lambda: pack(W.view(torch.uint8)),
    "w has 48 columns; pad them to a multiple of 32": lambda: pack(W[:, :48]),
    "the columns of w are 2 elements apart": lambda: pack(W[:, ::2]),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_weights_are_refused_with_the_values(message):
    with pytest.raises(KernelError) as raised:
        WRONG[message]()
    assert message in str(raised.value)


PACKED = pack(torch.zeros(96, 64, dtype=torch.int8))

DAMAGED = {
    "float": ({"dtype": torch.float32}, "cannot be torch.float32; use float8_e4m3fn or int8"),
    "more channels": ({"n": 129}, "contiguous uint8 [3, 4, 2560] is needed"),
    "more columns": ({"k": 320}, "contiguous uint8 [2, 8, 2560] is needed"),
    "other bytes": ({"data": PACKED.data.view(torch.int8)}, "is torch.int8 (2, 4, 2560)"),
    "strided": ({"data": PACKED.data.transpose(0, 1).contiguous().transpose(0, 1)}, "with strides"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_data_that_a_kernel_would_read_past_is_refused(case):
    changes, message = DAMAGED[case]
    with pytest.raises(KernelError) as raised:
        replace(PACKED, **changes)
    assert message in str(raised.value)
