"""Weights in bitmask form: unpacked, checked against loops over bits, and paired in a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoints import bitmask, save_tensors

from slidesparse.checkpoint import bitmask as module
from slidesparse.checkpoint.bitmask import PARTS, dense_weights, unpack_bitmask
from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.errors import CheckpointError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8]


def sparse24(rows: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """A 2:4 weight; some groups have fewer than two non-zeros."""
    w = (torch.randn(rows, k) * 20).to(dtype).float()
    keep = torch.rand(rows, k // 4, 4).argsort(dim=2) < torch.randint(0, 3, (rows, k // 4, 1))
    return (w * keep.reshape(rows, k)).to(dtype)


def by_hand(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The dense weight, bit after bit."""
    rows, k = tensors["x.shape"].flatten().tolist()
    values = iter(tensors["x.compressed"].float().flatten().tolist())
    dense = torch.zeros(rows, k)
    for row in range(rows):
        for column in range(k):
            if int(tensors["x.bitmask"][row, column // 8]) >> column % 8 & 1:
                dense[row, column] = next(values)
    assert next(values, None) is None
    return dense


def unpacked(tensors: dict[str, torch.Tensor], two_four: bool = False) -> torch.Tensor:
    return unpack_bitmask("x", *(tensors[f"x{part}"] for part in PARTS), two_four=two_four)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 4), (3, 12), (7, 136)])
def test_a_bitmask_is_unpacked(seed: int, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    w = sparse24(*shape, dtype)
    tensors = bitmask("x", w)
    made = unpacked(tensors)
    assert made.dtype == dtype
    assert torch.equal(made.float(), by_hand(tensors))
    assert torch.equal(made.float(), w.float())
    assert torch.equal(unpacked(tensors, two_four=True).float(), w.float())


def test_a_bitmask_of_any_sparsity_is_unpacked() -> None:
    # sparse-bitmask stores a flat run of values and any number of bits per row.
    w = torch.tensor([[0.0, 0, 0, 0, 5], [1, 2, 3, 4, 5], [0, 0, 0, 0, 0]])
    mask = torch.tensor([[0b10000], [0b11111], [0]], dtype=torch.uint8)
    made = unpack_bitmask("x", w[w != 0], mask, torch.tensor([3, 5], dtype=torch.int32))
    assert torch.equal(made, w)


def _wrong_mask(t: dict[str, torch.Tensor]) -> None:
    t["x.bitmask"] = t["x.bitmask"][:, :-1]


def _mask_dtype(t: dict[str, torch.Tensor]) -> None:
    t["x.bitmask"] = t["x.bitmask"].to(torch.int16)


def _extra_bit(t: dict[str, torch.Tensor]) -> None:
    t["x.bitmask"] = t["x.bitmask"].clone()
    t["x.bitmask"][0, 1] |= 0x80


def _one_shape(t: dict[str, torch.Tensor]) -> None:
    t["x.shape"] = torch.tensor([36])


def _lost_value(t: dict[str, torch.Tensor]) -> None:
    t["x.compressed"] = t["x.compressed"][:-1]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_wrong_mask, r"bitmask is \[3, 1\] torch.uint8 for a weight \[3, 12\]; expected \[3, 2\]"),
        (_mask_dtype, r"bitmask is \[3, 2\] torch.int16"),
        (_extra_bit, "bitmask sets bits past column 11"),
        (_one_shape, r"x.shape is \[36\]; a linear's weight has two sizes"),
        (_lost_value, "bitmask marks 18 weights and x.compressed holds 12"),
    ],
)
def test_parts_that_do_not_fit(
    seed: int, damage: Callable[[dict[str, torch.Tensor]], None], reason: str
) -> None:
    tensors = bitmask("x", sparse24(3, 12, torch.float32))
    damage(tensors)
    with pytest.raises(CheckpointError, match=reason):
        unpacked(tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("at_once", [1, 12, 40, 1 << 24])
def test_steps_of_rows_give_the_same(
    seed: int, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, at_once: int
) -> None:
    monkeypatch.setattr(module, "ELEMENTS_AT_ONCE", at_once)
    w = sparse24(7, 12, dtype)
    assert torch.equal(unpacked(bitmask("x", w), two_four=True).float(), w.float())


def test_rows_of_uneven_sparsity_in_steps(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ELEMENTS_AT_ONCE", 26)
    w = torch.randn(9, 13) * (torch.rand(9, 13) < torch.rand(9, 1))
    mask = torch.zeros(9, 2, dtype=torch.uint8)
    for row, column in w.nonzero().tolist():
        mask[row, column // 8] |= 1 << column % 8
    made = unpack_bitmask("x", w[w != 0], mask, torch.tensor([9, 13]))
    assert torch.equal(made, w)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=12), st.integers(1, 3))
def test_any_bits(mask: list[int], rows: int) -> None:
    if len(mask) % rows:
        mask = mask + [0] * (-len(mask) % rows)
    bits = torch.tensor(mask, dtype=torch.uint8).reshape(rows, -1)
    k = 8 * bits.shape[1]
    count = sum(value.bit_count() for value in mask)
    tensors = {
        "x.compressed": torch.arange(1, count + 1, dtype=torch.int8),
        "x.bitmask": bits,
        "x.shape": torch.tensor([rows, k]),
    }
    assert torch.equal(unpacked(tensors).float(), by_hand(tensors))
    nibbles = [half.bit_count() for value in mask for half in (value & 15, value >> 4)]
    if any(nibble != 2 for nibble in nibbles):
        with pytest.raises(CheckpointError, match=r"x.bitmask is not 2:4: it marks [0134] of"):
            unpacked(tensors, two_four=True)


def _three(t: dict[str, torch.Tensor]) -> None:
    # As many values as there should be, but not in the groups where they should be.
    t["x.bitmask"] = torch.tensor([[0x33, 0x03], [0x37, 0x01], [0x33, 0x03]], dtype=torch.uint8)


def _transposed(t: dict[str, torch.Tensor]) -> None:
    t["x.compressed"] = t["x.compressed"].reshape(6, 3)


def _odd_k(t: dict[str, torch.Tensor]) -> None:
    t["x.shape"] = torch.tensor([3, 10])
    t["x.bitmask"] = t["x.bitmask"] & 0x03


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            _three,
            r"x.bitmask is not 2:4: it marks 3 of columns 0 to 3 of row 1, where 2 are stored; "
            r"2 of 9 groups are wrong",
        ),
        (_transposed, r"compressed is \[6, 3\] for a 2:4 weight \[3, 12\]; expected \[3, 6\]"),
        (_odd_k, r"x is \[3, 10\]; K of a 2:4 weight is a multiple of 4"),
        (_lost_value, r"compressed is \[2, 6\] for a 2:4 weight \[3, 12\]"),
    ],
)
def test_what_is_not_two_four(
    seed: int, damage: Callable[[dict[str, torch.Tensor]], None], reason: str
) -> None:
    tensors = bitmask("x", sparse24(3, 12, torch.float32))
    damage(tensors)
    with pytest.raises(CheckpointError, match=reason):
        unpacked(tensors, two_four=True)


def model() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of a few layers in bitmask form, and dense."""
    dense = {f"{number}.weight": sparse24(4, 8, torch.int8) for number in range(3)}
    stored = {f"{number}.weight_scale": torch.rand(4, 1) for number in range(3)}
    stored["norm.weight"] = torch.randn(8)
    dense |= stored
    for number in range(3):
        stored |= bitmask(str(number), dense[f"{number}.weight"])
    return stored, dense


@given(st.randoms(use_true_random=False))
def test_parts_in_any_order(random: object) -> None:
    stored, dense = model()
    order = list(stored.items())
    random.shuffle(order)  # type: ignore[attr-defined]
    got = list(dense_weights(order))
    assert sorted(name for name, _ in got) == sorted(dense)
    assert all(torch.equal(tensor, dense[name]) for name, tensor in got)


def test_a_weight_comes_as_soon_as_it_can(seed: int) -> None:
    stored, _ = model()
    names = [f"0{part}" for part in PARTS] + ["norm.weight"] + [f"1{part}" for part in PARTS]
    read: list[str] = []

    def reading() -> Iterator[tuple[str, torch.Tensor]]:
        for name in names:
            read.append(name)
            yield name, stored[name]

    after = {name: len(read) for name, _ in dense_weights(reading())}
    assert after == {"0.weight": 3, "norm.weight": 4, "1.weight": 7}


def test_other_tensors_pass_untouched(seed: int) -> None:
    stored = {"a.weight": torch.randn(3), "a.weight_scale": torch.ones(1), "shape": torch.ones(2)}
    got = list(dense_weights(stored.items()))
    assert [name for name, _ in got] == list(stored)
    assert all(tensor is stored[name] for name, tensor in got)


def test_a_stream_gives_what_the_reader_gives(seed: int, tmp_path: Path) -> None:
    stored, _ = model()
    reader = CheckpointReader(save_tensors(tmp_path, stored))
    for name, tensor in dense_weights((name, reader.tensor(name)) for name in reader.names()):
        linear = name.removesuffix(".weight")
        if linear.isdigit():
            assert torch.equal(tensor, reader.quantised_or_plain(linear))


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        (["1.bitmask"], "^1 lacks 1.bitmask; the checkpoint is incomplete$"),
        (["1.bitmask", "1.shape"], "^1 lacks 1.bitmask and 1.shape; "),
        (["1.shape", "2.compressed"], "^1 lacks 1.shape and 1 more weights lack parts; "),
    ],
)
def test_missing_parts_are_named(seed: int, gone: list[str], reason: str) -> None:
    stored = {name: it for name, it in model()[0].items() if name not in gone}
    with pytest.raises(CheckpointError, match=reason):
        list(dense_weights(stored.items()))


def test_a_part_that_comes_twice(seed: int) -> None:
    twice = ("0.compressed", model()[0]["0.compressed"])
    with pytest.raises(CheckpointError, match=r"0.compressed is stored twice"):
        list(dense_weights([twice, twice]))


def test_a_stream_holds_back_only_so_much(seed: int) -> None:
    stored, dense = model()
    apart = sorted(stored.items(), key=lambda it: it[0].split(".")[::-1])
    # Bitmasks of four bytes and values of sixteen: three weights wait before the first is whole.
    assert dict(dense_weights(apart, most_bytes=60)).keys() == dense.keys()
    with pytest.raises(
        CheckpointError, match=r"3 weights with 60 bytes wait .* more than 59; 0 la"
    ):
        list(dense_weights(apart, most_bytes=59))
    together = dense_weights(sorted(stored.items()), most_bytes=20)
    assert dict(together).keys() == dense.keys()


def test_values_of_a_dtype_that_is_no_weight(seed: int) -> None:
    tensors = bitmask("x", sparse24(3, 12, torch.float32))
    tensors["x.compressed"] = tensors["x.compressed"].to(torch.int32)
    with pytest.raises(CheckpointError, match=r"x.compressed is torch.int32; 2:4 weights are read"):
        list(dense_weights(tensors.items()))
