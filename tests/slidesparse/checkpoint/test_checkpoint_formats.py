"""Forms of stored weights: the float weight comes out, by loops over elements."""

from __future__ import annotations

import pytest
import torch
from tiny_checkpoints import w8a8

from slidesparse.checkpoint.formats import Form, recognise, scales_of
from slidesparse.errors import CheckpointError


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
