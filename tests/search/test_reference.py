"""The check catches every way of being wrong, on every dtype; a check that cannot fail is none."""

import pytest
import torch

from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.search.operands import Operands, make_weight, quantise
from slidesparse.search.reference import Reference, limits_for, poison
from slidesparse.tensors import TORCH_DTYPES

CPU = torch.device("cpu")
FORMS = [
    (DType.FP8, DType.BF16, Scales.TENSOR),
    (DType.FP8, DType.FP16, Scales.TENSOR),
    (DType.FP8, DType.FP32, Scales.ROWCOL),
    (DType.INT8, DType.INT32, Scales.NONE),
    (DType.INT8, DType.INT8, Scales.TENSOR),
    (DType.INT8, DType.BF16, Scales.ROWCOL),
    (DType.INT8, DType.FP16, Scales.TENSOR),
    (DType.INT8, DType.FP32, Scales.TENSOR),
]


def make(form, seed, m=7, n=64, k=200, pattern="6:8", bias=False):
    dtype, out, scales = form
    problem = GemmProblem(m, n, k, dtype, out, scales, Pattern.parse(pattern), bias)
    weight = make_weight(problem, CPU, seed)
    # Another seed than the weight's: equal rows of both would give outliers of 12 rms.
    return Operands(problem, weight, CPU, seed + 1, l2_bytes=0)


def naive(operands):
    """The product in float64 from its definition."""
    problem = operands.problem
    x = operands.x(0)[: problem.m].double()
    product = x @ operands.weight.dense.double().t()
    if problem.scales is Scales.ROWCOL:
        product = product * operands.x_scale.double()[:, None] * operands.w_scale.double()
    elif problem.scales is Scales.TENSOR:
        product = product * operands.x_scale.double() * operands.w_scale.double()
    if operands.bias is not None:
        product = product + operands.bias.double()
    if problem.out is DType.INT8:
        product = product.round().clamp(-128, 127)
    return product


def as_output(operands, values):
    out = operands.out(0)
    poison(out)
    out[: operands.problem.m] = values.to(TORCH_DTYPES[operands.problem.out])
    return out


@pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(map(str, f)))
@pytest.mark.parametrize("m", [1, 7, 129])
def test_the_exact_product_passes(form, m, seed):
    operands = make(form, seed, m=m)
    check = Reference(operands).check(as_output(operands, naive(operands)))
    assert check.failure(operands.problem) is None, check


@pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(map(str, f)))
def test_an_unwritten_output_fails(form, seed):
    operands = make(form, seed)
    out = operands.out(0)
    poison(out)
    failure = Reference(operands).check(out).failure(operands.problem)
    assert failure is not None
    assert "wrong result" in failure


@pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(map(str, f)))
@pytest.mark.parametrize("where", [(0, 0), (6, 63), (3, 17)])
def test_one_unwritten_element_fails(form, where, seed):
    operands = make(form, seed)
    out = as_output(operands, naive(operands))
    poisoned = torch.empty_like(out)
    poison(poisoned)
    out[where] = poisoned[where]
    assert Reference(operands).check(out).failure(operands.problem) is not None


@pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(map(str, f)))
def test_swapped_rows_fail(form, seed):
    operands = make(form, seed)
    values = naive(operands)
    assert (
        Reference(operands)
        .check(as_output(operands, values.roll(1, dims=0)))
        .failure(operands.problem)
    )


@pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(map(str, f)))
def test_a_forgotten_last_weight_fails(form, seed):
    operands = make(form, seed, pattern="dense")
    kept = operands.weight.dense.clone()
    operands.weight.dense.view(torch.uint8)[:, -8:] = 0
    short = as_output(operands, naive(operands)).clone()
    operands.weight.dense.copy_(kept)
    assert Reference(operands).check(short).failure(operands.problem) is not None


def test_int8_sums_are_exact_where_float32_is_not(seed):
    """K = 18944 of extreme values passes 2^24, where plain float32 sums are off."""
    operands = make(
        (DType.INT8, DType.INT32, Scales.NONE), seed, m=2, n=16, k=18944, pattern="dense"
    )
    operands.weight.dense.fill_(127)
    operands.x(0).fill_(127)
    operands.x(0)[0, 0] = 126
    out = as_output(operands, torch.tensor([[127 * (18943 * 127 + 126)], [127 * 127 * 18944]]))
    assert Reference(operands).check(out).worst == 0.0
    out[0, 0] += 1
    assert Reference(operands).check(out).failure(operands.problem) is not None


@pytest.mark.parametrize("bias", [False, True])
def test_bias_counts(bias, seed):
    operands = make(FORMS[0], seed, bias=bias)
    check = Reference(operands).check(as_output(operands, naive(operands)))
    assert check.failure(operands.problem) is None
    if bias:
        without = naive(operands) - operands.bias.double()
        assert Reference(operands).check(as_output(operands, without)).failure(operands.problem)


def test_the_reference_in_blocks_equals_the_whole(monkeypatch, seed):
    operands = make(FORMS[0], seed, m=129)
    whole = Reference(operands).check(as_output(operands, naive(operands)))
    monkeypatch.setattr("slidesparse.search.reference.BLOCK_ELEMENTS", 64 * 10)
    blocks = Reference(operands).check(as_output(operands, naive(operands)))
    assert blocks.error == pytest.approx(whole.error, rel=1e-6)
    assert blocks.worst == pytest.approx(whole.worst, rel=1e-6)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(map(str, f)))
@pytest.mark.parametrize("k", [64, 3584, 18944, 65536])
def test_limits_catch_a_forgotten_step_of_k(form, k):
    """Leaving out the last 32 products is an error of (32 / K)^0.5: always outside."""
    dtype, out, scales = form
    limits = limits_for(GemmProblem(16, 64, k, dtype, out, scales))
    assert limits.error < (32 / k) ** 0.5
    assert limits.worst < 1


def test_limits_grow_with_the_additions_of_fast_accumulation_only():
    short, long = (limits_for(GemmProblem(16, 64, k, DType.FP8, DType.BF16)) for k in (3584, 18944))
    # Measured on an H200, M = 16384, fast accumulation.
    assert 2.1e-3 < short.error < 1e-2
    assert 3.9e-2 < short.worst < 0.1
    assert 3.8e-3 < long.error < 1e-2
    assert 8.1e-2 < long.worst < 0.3
    exact = [limits_for(GemmProblem(16, 64, k, DType.INT8, DType.BF16)) for k in (3584, 18944)]
    assert exact[0] == exact[1]


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
@pytest.mark.parametrize("per_row", [False, True])
def test_quantise_fills_the_range_and_survives_zeros(dtype, per_row, seed):
    x = torch.randn(5, 33, generator=torch.Generator().manual_seed(seed))
    x[2] = 0
    q, scale = quantise(x, dtype, per_row)
    top = 448.0 if dtype is DType.FP8 else 127.0
    assert q.float().abs().max() == top
    assert torch.isfinite(scale).all()
    assert scale.shape == ((5,) if per_row else (1,))
    assert (q[2].float() == 0).all()
    back = q.float() * (scale[:, None] if per_row else scale)
    # FP8 has three mantissa bits: half a step is 1/16 of a value. INT8 has steps of one scale.
    allowed = x.abs() / 16 + scale.max() / 2
    assert ((back - x).abs() <= allowed + 1e-7).all()


@pytest.mark.parametrize("m", [1, 7, 16, 17, 129])
def test_rows_past_m_are_zero_and_allocated_in_sixteens(m, seed):
    operands = make(FORMS[0], seed, m=m)
    assert operands.m_run % 16 == 0
    assert 0 <= operands.m_run - m < 16
    assert (operands.x(0)[m:].float() == 0).all()
    assert operands.out(0).shape == (operands.m_run, 64)
