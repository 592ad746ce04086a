"""dequant_rmsnorm_quantize is dequantize and rmsnorm_quantize, one after the other."""

from __future__ import annotations

import kernel_checks as checks
import kernel_oracle as oracle
import numpy as np
import pytest
import torch
from kernel_variants import BY_NAME

from slidesparse.errors import KernelError
from slidesparse.kernels import dequant_rmsnorm_quantize, dequantize, rmsnorm_quantize
from slidesparse.pattern import Pattern

FP8, INT8 = checks.QUANTISED
SIX_EIGHT = Pattern.parse("6:8")
EPS = checks.EPS


@pytest.mark.parametrize("name", ["dequant_rmsnorm", "dequant_add_rmsnorm"])
@pytest.mark.parametrize("source", checks.ACCUMULATORS, ids=checks.short)
@pytest.mark.parametrize("dtype", checks.QUANTISED, ids=checks.short)
def test_agrees_with_the_two_kernels(name, source, dtype, seed):
    t = BY_NAME[name].draw(4, 100, source, seed)
    q, scale, hidden = BY_NAME[name].call(t, dtype, SIX_EIGHT)
    kept = t.get("residual", t["weight"]).dtype
    alone = dequantize(
        t["a"],
        t["row_scale"],
        t["column_scale"],
        kept,
        bias=t.get("bias"),
        residual=t.get("residual"),
    )
    checks.assert_same_bits(hidden, alone)
    want = rmsnorm_quantize(alone, t["weight"], EPS, dtype, SIX_EIGHT)
    checks.assert_same_bits(q, want[0])
    checks.assert_same_bits(scale, want[1])


@pytest.mark.parametrize("dtype", checks.QUANTISED, ids=checks.short)
def test_the_codes_are_those_of_the_truth(dtype, seed):
    """With a float32 hidden state nothing is rounded on the way."""
    t = BY_NAME["dequant_add_rmsnorm"].draw(3, 83, torch.float32, seed)
    names = ("a", "row_scale", "column_scale", "bias", "residual")
    hidden = oracle.dequantized(*(t[name].numpy() for name in names))
    truth = oracle.rmsnorm(hidden, t["weight"].numpy(), EPS)
    codes, scales = oracle.quantized(truth.astype(np.float32), dtype is INT8, 8)
    q, scale, _ = BY_NAME["dequant_add_rmsnorm"].call(t, dtype, SIX_EIGHT)
    checks.assert_close_codes(q, torch.from_numpy(codes).view(dtype))
    checks.assert_close_scales(scale, torch.from_numpy(scales))


@pytest.mark.parametrize("in_place", [False, True])
def test_the_residual_may_be_updated_in_place(in_place, seed):
    t = BY_NAME["dequant_add_rmsnorm"].draw(3, 64, torch.int32, seed)
    want = BY_NAME["dequant_add_rmsnorm"].call(t, FP8, SIX_EIGHT)
    before = t["residual"].clone()
    hidden = t["residual"] if in_place else torch.full_like(before, float("nan"))
    out = (torch.empty_like(want[0]), torch.empty(3), hidden)
    made = dequant_rmsnorm_quantize(**t, eps=EPS, pattern=SIX_EIGHT, out=out)
    assert made is out
    for a, b in zip(made, want, strict=True):
        checks.assert_same_bits(a, b)
    if not in_place:
        assert torch.equal(t["residual"], before)


A, ROW, COLUMN = torch.ones(4, 16), torch.ones(4), torch.ones(16)
OUT = (torch.empty(4, 16, dtype=FP8), torch.empty(4), torch.empty(4, 16))


def run(a=A, row=ROW, column=COLUMN, weight=COLUMN, **more):
    return dequant_rmsnorm_quantize(a, row, column, weight, EPS, **more)


WRONG = {
    "a has 1 dimensions": lambda: run(COLUMN),
    "a is torch.int8; use one of int32": lambda: run(A.char()),
    "the columns of a are 4 elements apart": lambda: run(torch.ones(16, 4).T),
    "row_scale has shape (3,)": lambda: run(row=ROW[:3]),
    "column_scale is torch.bfloat16; float32 is needed": lambda: run(column=COLUMN.bfloat16()),
    "weight has shape (4,); 16 consecutive values are needed": lambda: run(weight=ROW),
    "bias has shape (4,); 16 consecutive values are needed": lambda: run(bias=ROW),
    "residual has shape (3, 16); [4, 16] is needed": lambda: run(residual=A[:3]),
    "cannot quantise to torch.int16": lambda: run(dtype=torch.int16),
    "q is torch.float8_e4m3fn, and torch.int8 was asked for": lambda: run(dtype=INT8, out=OUT),
    "q has shape (4, 16); [4, 32] is needed": lambda: run(pattern=SIX_EIGHT, out=OUT),
    "the output scale has shape (2,)": lambda: run(out=(OUT[0], ROW[:2], OUT[2])),
    "residual has shape (4, 15)": lambda: run(out=(*OUT[:2], OUT[2][:, :15])),
    "residual is torch.int32": lambda: run(out=(*OUT[:2], OUT[2].int())),
    "h is torch.float32 (4, 16) and residual is torch.bfloat16 (4, 16); give both one": (
        lambda: run(residual=A.bfloat16(), out=OUT)
    ),
    "h is torch.float32 (4, 16) and residual is torch.float32 (1, 16)": (
        lambda: run(residual=A[:1], out=OUT)
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_operands_are_refused_with_the_values(message):
    with pytest.raises(KernelError) as raised:
        WRONG[message]()
    assert message in str(raised.value)
