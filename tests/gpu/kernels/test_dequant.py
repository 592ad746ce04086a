"""dequantize on the GPU: within a unit of the truth, rounding, one scale for all."""

from __future__ import annotations

import kernel_checks as checks
import kernel_oracle as oracle
import numpy as np
import pytest
import torch
from kernel_variants import BY_NAME

from slidesparse.kernels import dequantize

CUDA = "cuda:0"


@pytest.mark.parametrize("source", checks.ACCUMULATORS, ids=checks.short)
def test_within_a_unit_of_the_truth(source, seed):
    t = BY_NAME["dequantize_all"].draw(129, 3588, source, seed, CUDA)
    names = ("a", "row_scale", "column_scale", "bias", "residual")
    truth = oracle.dequantized(*(t[name].cpu().double().numpy() for name in names))
    for target in (torch.bfloat16, torch.float32):
        (got,) = BY_NAME["dequantize_all"].call(t, target, None)
        limit = torch.finfo(target).eps / 2 * np.abs(truth) + 4e-7 * (np.abs(truth) + 10)
        assert (np.abs(got.cpu().double().numpy() - truth) <= limit).all()


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16], ids=checks.short)
def test_rounds_to_nearest_even(target):
    exact = torch.tensor([1.0, 1.5, 100.0, -3.25, 2.0**-14, 60000.0]).to(target)
    step = torch.nextafter(exact, torch.tensor(float("inf"), dtype=target)).float() - exact.float()
    a = torch.cat([exact.float() + step * part for part in (0.5, 1.5, 0.49, 0.51, -0.25)])
    special = [float("inf"), -float("inf"), float("nan"), 3.4e38, 65519.0, 65520.0, 1e-7, 0.0, -0.0]
    a = torch.cat([a, torch.tensor(special)])[None]
    one = torch.ones(1, device=CUDA)
    checks.assert_same_bits(dequantize(a.to(CUDA), one, one, target).cpu(), a.to(target))


def test_one_scale_for_all_and_the_residual_replaced(seed):
    t = BY_NAME["dequantize_all"].draw(129, 3588, torch.int32, seed, CUDA)
    row, column = t["row_scale"][:1], t["column_scale"][:1]
    every = (row.expand(129).contiguous(), column.expand(3588).contiguous())
    want = dequantize(t["a"], *every, residual=t["residual"])
    got = dequantize(t["a"], row, column, residual=t["residual"], out=t["residual"])
    assert got is t["residual"]
    checks.assert_same_bits(got, want)
