"""dequant_silu_mul_quantize is dequantize in float32 and silu_mul_quantize in one."""

from __future__ import annotations

import kernel_checks as checks
import kernel_oracle as oracle
import numpy as np
import pytest
import torch
from kernel_variants import BY_NAME

from slidesparse.errors import KernelError
from slidesparse.kernels import dequant_silu_mul_quantize, dequantize, silu_mul_quantize
from slidesparse.pattern import Pattern

FP8, INT8 = checks.QUANTISED
SIX_EIGHT = Pattern.parse("6:8")
NAMES = ["dequant_silu_mul", "dequant_silu_mul_bias"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", checks.ACCUMULATORS, ids=checks.short)
@pytest.mark.parametrize("dtype", checks.QUANTISED, ids=checks.short)
def test_agrees_with_the_two_kernels(name, source, dtype, seed):
    t = BY_NAME[name].draw(4, 100, source, seed)
    alone = dequantize(t["a"], t["row_scale"], t["column_scale"], torch.float32, bias=t.get("bias"))
    want = silu_mul_quantize(alone, dtype, SIX_EIGHT)
    for a, b in zip(BY_NAME[name].call(t, dtype, SIX_EIGHT), want, strict=True):
        checks.assert_same_bits(a, b)


@pytest.mark.parametrize("source", checks.ACCUMULATORS, ids=checks.short)
@pytest.mark.parametrize("dtype", checks.QUANTISED, ids=checks.short)
def test_the_codes_are_those_of_the_truth(source, dtype, seed):
    t = BY_NAME["dequant_silu_mul"].draw(3, 83, source, seed)
    names = ("a", "row_scale", "column_scale")
    truth = oracle.silu_mul(oracle.dequantized(*(t[name].double().numpy() for name in names)))
    codes, scales = oracle.quantized(truth.astype(np.float32), dtype is INT8, 8)
    q, scale = BY_NAME["dequant_silu_mul"].call(t, dtype, SIX_EIGHT)
    checks.assert_close_codes(q, torch.from_numpy(codes).view(dtype))
    checks.assert_close_scales(scale, torch.from_numpy(scales))


def test_one_scale_for_all(seed):
    t = BY_NAME["dequant_silu_mul"].draw(4, 50, torch.int32, seed)
    row, column = t["row_scale"][:1], t["column_scale"][:1]
    want = dequant_silu_mul_quantize(
        t["a"], row.expand(4).contiguous(), column.expand(100).contiguous()
    )
    for a, b in zip(dequant_silu_mul_quantize(t["a"], row, column), want, strict=True):
        checks.assert_same_bits(a, b)


A, ROW, COLUMN = torch.ones(4, 32), torch.ones(4), torch.ones(32)
OUT = (torch.empty(4, 16, dtype=FP8), torch.empty(4))


def run(a=A, row=ROW, column=COLUMN, **more):
    return dequant_silu_mul_quantize(a, row, column, **more)


WRONG = {
    "a has 1 dimensions": lambda: run(COLUMN),
    "a is torch.int8; use one of int32": lambda: run(A.char()),
    "a has 31 columns; gate and up need an even number": lambda: run(A[:, :31]),
    "the columns of a are 4 elements apart": lambda: run(torch.ones(32, 4).T),
    "row_scale has shape (3,)": lambda: run(row=ROW[:3]),
    "column_scale has shape (16,); 32 consecutive": lambda: run(column=COLUMN[:16]),
    "row_scale is torch.int32; float32 is needed": lambda: run(row=ROW.int()),
    "bias has shape (16,); 32 consecutive values are needed": lambda: run(bias=COLUMN[:16]),
    "cannot quantise to torch.int16": lambda: run(dtype=torch.int16),
    "q is torch.float8_e4m3fn, and torch.int8 was asked for": lambda: run(dtype=INT8, out=OUT),
    "q has shape (4, 16); [4, 32] is needed": lambda: run(pattern=SIX_EIGHT, out=OUT),
    "the output scale has shape (2,)": lambda: run(out=(OUT[0], ROW[:2])),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_operands_are_refused_with_the_values(message):
    with pytest.raises(KernelError) as raised:
        WRONG[message]()
    assert message in str(raised.value)
