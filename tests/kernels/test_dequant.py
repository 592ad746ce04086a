"""dequantize: the oracle in float64, rounding, scales for one and for all, wrong operands."""

from __future__ import annotations

import kernel_checks as checks
import kernel_oracle as oracle
import numpy as np
import pytest
import torch
from kernel_variants import BY_NAME

from slidesparse.errors import KernelError
from slidesparse.kernels import dequantize

each_source = pytest.mark.parametrize("source", checks.ACCUMULATORS, ids=checks.short)
each_target = pytest.mark.parametrize("target", checks.FLOATS, ids=checks.short)


def truth_of(t):
    names = ("a", "row_scale", "column_scale", "bias", "residual")
    return oracle.dequantized(*(t[n].double().numpy() if n in t else None for n in names))


@each_source
@each_target
@pytest.mark.parametrize("name", ["dequantize", "dequantize_all"])
def test_within_a_unit_of_the_truth(source, target, name, seed):
    t = BY_NAME[name].draw(5, 130, source, seed)
    (got,) = BY_NAME[name].call(t, target, None)
    truth = truth_of(t)
    # Half a unit of the result's dtype, and float32's share of the largest summand.
    limit = torch.finfo(target).eps / 2 * np.abs(truth)
    limit += torch.finfo(target).smallest_normal + 4e-7 * (np.abs(truth) + 10)
    assert (np.abs(got.double().numpy() - truth) <= limit).all()


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16], ids=checks.short)
def test_rounds_to_nearest_even(target):
    """Ties and their neighbours; subnormals, overflow, infinity and NaN too."""
    exact = torch.tensor([1.0, 1.5, 100.0, -3.25, 2.0**-14, 60000.0]).to(target)
    step = torch.nextafter(exact, torch.tensor(float("inf"), dtype=target)).float() - exact.float()
    a = torch.cat([exact.float() + step * part for part in (0.5, 1.5, 0.49, 0.51, -0.25)])
    special = [float("inf"), -float("inf"), float("nan"), 3.4e38, 65519.0, 65520.0, 1e-7, 0.0, -0.0]
    a = torch.cat([a, torch.tensor(special)])[None]
    one = torch.ones(1)
    checks.assert_same_bits(dequantize(a, one, one, target), a.to(target))


@each_source
def test_one_scale_for_all(source, seed):
    t = BY_NAME["dequantize"].draw(4, 50, source, seed)
    row, column = t["row_scale"][:1], t["column_scale"][:1]
    for r, c in ((row, column), (row, t["column_scale"]), (t["row_scale"], column)):
        want = dequantize(t["a"], r.expand(4).contiguous(), c.expand(50).contiguous())
        checks.assert_same_bits(dequantize(t["a"], r, c), want)


def test_the_largest_accumulators():
    """INT32 beyond 2^24 passes through float32, rounded once."""
    a = torch.tensor([[2**31 - 1, -(2**31), 2**24 + 1, -(2**24) - 3]], dtype=torch.int32)
    got = dequantize(a, torch.ones(1), torch.ones(1), torch.float32)
    assert torch.equal(got, a.float())


@pytest.mark.parametrize("added", checks.FLOATS, ids=checks.short)
def test_the_result_may_replace_the_residual(added, seed):
    t = BY_NAME["dequantize_all"].draw(5, 70, torch.int32, seed)
    residual = t["residual"].to(added)
    arguments = (t["a"], t["row_scale"], t["column_scale"], added)
    want = dequantize(*arguments, bias=t["bias"], residual=residual)
    got = dequantize(*arguments, bias=t["bias"], residual=residual, out=residual)
    assert got is residual
    checks.assert_same_bits(got, want)


A, ROW, COLUMN = torch.ones(4, 16), torch.ones(4), torch.ones(16)
WRONG = {
    "a has 1 dimensions (16,)": lambda: dequantize(COLUMN, ROW, COLUMN),
    "a is torch.int8; use one of int32, bfloat16, float16, float32": (
        lambda: dequantize(A.char(), ROW, COLUMN)
    ),
    "a (4, 0) has no columns": lambda: dequantize(A[:, :0], ROW, COLUMN[:0]),
    "the columns of a are 4 elements apart": lambda: dequantize(torch.ones(16, 4).T, ROW, COLUMN),
    "row_scale has shape (3,); 4 consecutive values are needed": (
        lambda: dequantize(A, ROW[:3], COLUMN)
    ),
    "column_scale has shape (4,); 16 consecutive values are needed": (
        lambda: dequantize(A, ROW, ROW)
    ),
    "row_scale is torch.float16; float32 is needed": lambda: dequantize(A, ROW.half(), COLUMN),
    "column_scale is torch.float64; float32 is needed": (
        lambda: dequantize(A, ROW, COLUMN.double())
    ),
    "bias has shape (1,); 16 consecutive values are needed": (
        lambda: dequantize(A, ROW, COLUMN, bias=torch.ones(1))
    ),
    "residual has shape (4, 15); [4, 16] is needed": (
        lambda: dequantize(A, ROW, COLUMN, residual=A[:, :15])
    ),
    "residual is torch.int32; use one of": lambda: dequantize(A, ROW, COLUMN, residual=A.int()),
    "out is torch.int32; use bfloat16, float16 or float32": (
        lambda: dequantize(A, ROW, COLUMN, torch.int32)
    ),
    "out is torch.float32, and torch.bfloat16 was asked for": (
        lambda: dequantize(A, ROW, COLUMN, out=torch.empty(4, 16))
    ),
    "out has shape (5, 16); [4, 16] is needed": (
        lambda: dequantize(A, ROW, COLUMN, torch.float32, out=torch.empty(5, 16))
    ),
    "the columns of out are 4 elements apart, not 1": (
        lambda: dequantize(A, ROW, COLUMN, torch.float32, out=torch.empty(16, 4).T)
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_operands_are_refused_with_the_values(message):
    with pytest.raises(KernelError) as raised:
        WRONG[message]()
    assert message in str(raised.value)
