"""Forms of stored weights: the float weight comes out, by loops over elements."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_checkpoints import bitmask, w8a8

from slidesparse.checkpoint.formats import Form, recognise, scales_of, unpack_bitmask
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 4), (3, 12), (7, 136)])
def test_a_bitmask_is_unpacked(seed: int, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    w = sparse24(*shape, dtype)
    tensors = bitmask("x", w)
    made = unpack_bitmask("x", tensors["x.compressed"], tensors["x.bitmask"], tensors["x.shape"])
    assert made.dtype == dtype
    assert torch.equal(made.float(), by_hand(tensors))
    assert torch.equal(made.float(), w.float())


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
    parts = (tensors[f"x.{part}"] for part in ("compressed", "bitmask", "shape"))
    with pytest.raises(CheckpointError, match=reason):
        unpack_bitmask("x", *parts)


@pytest.mark.parametrize("shape", [(5, 1), (5,), (1,), (), (1, 1)])
def test_scales_of_every_form(seed: int, shape: tuple[int, ...]) -> None:
    scale = torch.rand(shape).to(torch.bfloat16)
    made = scales_of("x", (5, 8), scale, torch.zeros(5, 1, dtype=torch.int8))
    assert (made.shape, made.dtype) == ((5, 1), torch.float32)
    flat = scale.float().flatten().tolist()
    assert made.flatten().tolist() == (flat if len(flat) == 5 else flat * 5)


def test_w8a8_comes_back(seed: int) -> None:
    w = torch.randn(6, 24)
    for dtype in (torch.int8, torch.float8_e4m3fn):
        tensors = w8a8("x", w, dtype)
        made = tensors["x.weight"].float() * scales_of("x", (6, 24), tensors["x.weight_scale"])
        for row in range(6):
            for column in range(24):
                q = float(tensors["x.weight"][row, column].float())
                scale = float(tensors["x.weight_scale"][row, 0].float())
                assert float(made[row, column]) == pytest.approx(q * scale, rel=1e-6)


@pytest.mark.parametrize(
    ("scale", "zero", "reason"),
    [
        (torch.ones(5, 2), None, r"scale is \[5, 2\] for a weight \[5, 8\]; read are scales per"),
        (torch.ones(1, 8), None, r"scale is \[1, 8\]"),
        (torch.ones(4, 1), None, r"scale is \[4, 1\]"),
        (torch.tensor([[1.0], [2], [float("nan")], [4], [5]]), None, "holds NaN or infinity"),
        (torch.ones(5, 1), torch.tensor([[0], [0], [3], [0], [0]]), "quantised asymmetrically"),
    ],
)
def test_scales_that_are_not_read(
    scale: torch.Tensor, zero: torch.Tensor | None, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        scales_of("x", (5, 8), scale, zero)


@pytest.mark.parametrize(
    ("names", "dtype", "form"),
    [
        ({"x.weight"}, "BF16", Form.PLAIN),
        ({"x.weight", "x.weight_scale"}, "F8_E4M3", Form.W8A8),
        ({"x.weight", "x.weight_scale"}, "I8", Form.W8A8),
        ({"x.compressed", "x.bitmask", "x.shape"}, "F16", Form.BITMASK),
        (
            {"x.compressed", "x.bitmask", "x.shape", "x.weight_scale"},
            "F8_E4M3",
            Form.W8A8_BITMASK,
        ),
    ],
)
def test_forms_are_recognised(names: set[str], dtype: str, form: Form) -> None:
    assert recognise("x", names, dtype) is form
    assert form.packed == ("x.bitmask" in names)
    assert form.quantised == ("x.weight_scale" in names)


@pytest.mark.parametrize(
    ("names", "dtype", "reason"),
    [
        ({"x.weight_packed", "x.weight_scale"}, "I32", r"packed 4-bit weights \(x.weight_packed\)"),
        ({"x.weight", "x.weight_scale_inv"}, "F8_E4M3", "scales per block of 128 x 128"),
        ({"x.qweight"}, "I32", "GPTQ or AWQ weights"),
        ({"x.weight"}, "F8_E4M3", "x.weight is F8_E4M3 without x.weight_scale"),
        ({"x.weight"}, "U8", "x.weight is U8; weights are read in BF16, F16"),
        ({"x.compressed", "x.bitmask"}, "BF16", "x has a bitmask and no x.shape"),
    ],
)
def test_forms_that_are_refused(names: set[str], dtype: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        recognise("x", names, dtype)
