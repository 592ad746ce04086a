"""dequant_silu_mul_quantize on the GPU is dequantize in float32 and silu_mul_quantize in one."""

from __future__ import annotations

import kernel_checks as checks
import pytest
import torch
from kernel_variants import BY_NAME

from slidesparse.kernels import dequant_silu_mul_quantize, dequantize, silu_mul_quantize
from slidesparse.pattern import Pattern

CUDA = "cuda:0"
SIX_EIGHT = Pattern.parse("6:8")


@pytest.mark.parametrize("name", ["dequant_silu_mul", "dequant_silu_mul_bias"])
@pytest.mark.parametrize("source", [torch.int32, torch.bfloat16], ids=checks.short)
def test_agrees_with_the_two_kernels(name, source, seed):
    variant = BY_NAME[name]
    t = variant.draw(129, 3584, source, seed, CUDA)
    arguments = (t["a"], t["row_scale"], t["column_scale"], torch.float32)
    alone = dequantize(*arguments, bias=t.get("bias"))
    got = variant.call(t, torch.float8_e4m3fn, SIX_EIGHT)
    variant.assert_right(got, silu_mul_quantize(alone, torch.float8_e4m3fn, SIX_EIGHT))


def test_one_scale_for_all(seed):
    t = BY_NAME["dequant_silu_mul"].draw(129, 3584, torch.int32, seed, CUDA)
    row, column = t["row_scale"][:1], t["column_scale"][:1]
    every = (row.expand(129).contiguous(), column.expand(7168).contiguous())
    want = dequant_silu_mul_quantize(t["a"], *every)
    for a, b in zip(dequant_silu_mul_quantize(t["a"], row, column), want, strict=True):
        checks.assert_same_bits(a, b)
