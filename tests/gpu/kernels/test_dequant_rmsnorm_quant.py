"""dequant_rmsnorm_quantize on the GPU is dequantize and rmsnorm_quantize, one after the other."""

from __future__ import annotations

import kernel_checks as checks
import pytest
import torch
from kernel_variants import BY_NAME

from slidesparse.kernels import dequantize, rmsnorm_quantize
from slidesparse.pattern import Pattern

CUDA = "cuda:0"
SIX_EIGHT = Pattern.parse("6:8")


@pytest.mark.parametrize("name", ["dequant_rmsnorm", "dequant_add_rmsnorm"])
@pytest.mark.parametrize("source", [torch.int32, torch.bfloat16], ids=checks.short)
def test_agrees_with_the_two_kernels(name, source, seed):
    variant = BY_NAME[name]
    t = variant.draw(129, 3584, source, seed, CUDA)
    q, scale, hidden = variant.call(t, torch.int8, SIX_EIGHT)
    kept = t.get("residual", t["weight"]).dtype
    arguments = (t["a"], t["row_scale"], t["column_scale"], kept)
    alone = dequantize(*arguments, bias=t.get("bias"), residual=t.get("residual"))
    checks.assert_same_bits(hidden, alone)
    want = rmsnorm_quantize(alone, t["weight"], checks.EPS, torch.int8, SIX_EIGHT)
    checks.assert_close_codes(q, want[0])
    checks.assert_close_scales(scale, want[1])


def test_the_residual_may_be_updated_in_place(seed):
    variant = BY_NAME["dequant_add_rmsnorm"]
    t = variant.draw(129, 3584, torch.int32, seed, CUDA)
    want = variant.call(t, torch.int8, SIX_EIGHT)
    outs = tuple(torch.empty_like(each) for each in want)
    made = variant.into(t, torch.int8, SIX_EIGHT, outs)
    for a, b in zip(made, want, strict=True):
        checks.assert_same_bits(a, b)
