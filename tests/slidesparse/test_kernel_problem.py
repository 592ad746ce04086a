"""Kernel problems: what they accept, their buckets, keys and words."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidesparse.errors import ProblemError
from slidesparse.kernel_problem import KernelProblem, Op, bucket_k
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType

QUANTIZE = KernelProblem(Op.QUANTIZE, 100, 3584, DType.BF16, DType.FP8, Pattern(6, 8))
DEQUANTIZE = KernelProblem(Op.DEQUANTIZE, 100, 3584, DType.INT32, DType.BF16)


@pytest.mark.parametrize(
    ("k", "bucket"),
    [
        *((1, 64), (63, 64), (64, 64), (65, 80), (80, 80), (81, 96), (97, 112), (113, 128)),
        *((129, 160), (3584, 3584), (3585, 4096), (4096, 4096), (18944, 20480), (2**40, 2**40)),
    ],
)
def test_bucket_of_k(k: int, bucket: int) -> None:
    assert bucket_k(k) == bucket


@given(st.integers(1, 2**40))
def test_bucket_is_next_and_near(k: int) -> None:
    bucket = bucket_k(k)
    assert bucket >= k
    assert bucket_k(bucket) == bucket
    assert bucket <= 64 or bucket < 1.25 * k + 1
    power = 1 << (bucket.bit_length() - 1)
    assert bucket / power in (1, 1.25, 1.5, 1.75)


def test_buckets_rise_in_four_steps_per_power_of_two() -> None:
    buckets = sorted({bucket_k(k) for k in range(1, 1025)})
    assert len(buckets) == 1 + 4 * 4
    assert all(1.1 < b / a <= 1.25 for a, b in pairwise(buckets))


@pytest.mark.parametrize("k", [0, -1, 2.5])
def test_bucket_of_nothing(k: int) -> None:
    with pytest.raises(ProblemError, match=f"^K={k} is not a positive row width$"):
        bucket_k(k)


@pytest.mark.parametrize(
    ("problem", "change", "message"),
    [
        (QUANTIZE, {"m": 0}, "M=0 is not a positive whole number"),
        (QUANTIZE, {"k": -8}, "K=-8 is not a positive whole number"),
        (QUANTIZE, {"k": 1.5}, "K=1.5 is not a positive whole number"),
        (
            QUANTIZE,
            {"source": DType.INT32},
            "quantize cannot read int32; use one of bf16, fp16, fp32",
        ),
        (QUANTIZE, {"out": DType.BF16}, "quantize cannot write bf16; use one of fp8_e4m3, int8"),
        (
            DEQUANTIZE,
            {"source": DType.FP8},
            "dequantize cannot read fp8_e4m3; use one of int32, fp32, bf16, fp16",
        ),
        (
            DEQUANTIZE,
            {"out": DType.INT8},
            "dequantize cannot write int8; use one of bf16, fp16, fp32",
        ),
        (
            DEQUANTIZE,
            {"pattern": Pattern(6, 8)},
            "dequantize lifts nothing, so pattern 6:8 must be dense",
        ),
        (
            QUANTIZE,
            {"residual": True},
            "quantize adds no residual; use residual=False or one of rmsnorm_quantize, "
            "dequantize, dequant_rmsnorm_quantize",
        ),
    ],
)
def test_impossible_problems(
    problem: KernelProblem, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ProblemError) as caught:
        replace(problem, **change)
    assert str(caught.value) == message


@pytest.mark.parametrize("op", Op)
def test_every_op_has_possible_problems(op: Op) -> None:
    source = DType.INT32 if op.dequantizes else DType.FP32
    out = DType.INT8 if op.quantizes else DType.FP16
    problem = KernelProblem(op, 1, 7, source, out)
    assert problem.key == f"{op}-m16-k64-{source}-{out}-dense-plain"
    assert op.dequantizes == str(op).startswith("dequant")
    assert op.quantizes == str(op).endswith("_quantize") or op is Op.QUANTIZE


def test_key_holds_the_buckets() -> None:
    assert QUANTIZE.key == "quantize-m128-k3584-bf16-fp8_e4m3-6:8-plain"
    assert replace(QUANTIZE, m=65, k=3073).key == QUANTIZE.key
    assert replace(QUANTIZE, m=129).key != QUANTIZE.key
    assert replace(QUANTIZE, k=3585).key != QUANTIZE.key
    norm = replace(QUANTIZE, op=Op.RMSNORM_QUANTIZE, residual=True)
    assert norm.key == "rmsnorm_quantize-m128-k3584-bf16-fp8_e4m3-6:8-residual"


def test_keys_of_different_problems_differ() -> None:
    found = []
    fields = product(Op, (16, 4096), (512, 3584), DType, DType, (DENSE, Pattern(4, 6)), (0, 1))
    for op, m, k, source, out, pattern, residual in fields:
        try:
            found.append(KernelProblem(op, m, k, source, out, pattern, bool(residual)))
        except ProblemError:
            continue
    assert len(found) > 100
    assert len({problem.key for problem in found}) == len(found)


def test_text_of_a_problem() -> None:
    assert str(QUANTIZE) == "quantize M=100 K=3584 bf16->fp8_e4m3 6:8"
    text = str(replace(DEQUANTIZE, residual=True))
    assert text == "dequantize M=100 K=3584 int32->bf16 dense +residual"
