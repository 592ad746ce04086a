"""GEMM problems: what they accept, their keys, buckets, sizes and 32-bit limits."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidesparse.errors import ProblemError, UsageError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import (
    INT32_MAX,
    SEARCH_M,
    SMALLEST_BUCKET,
    SWEEP_M,
    DType,
    GemmProblem,
    Scales,
    bucket_m,
    default_output,
    default_scales,
    parse_dtype,
)

GATE_UP = GemmProblem(4096, 37888, 3584, DType.FP8, DType.BF16)
"""gate_up of Qwen2.5-7B."""


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("fp8", DType.FP8),
        (" FP8 ", DType.FP8),
        ("fp8_e4m3", DType.FP8),
        ("e4m3", DType.FP8),
        ("float8_e4m3fn", DType.FP8),
        ("int8", DType.INT8),
        ("INT8", DType.INT8),
    ],
)
def test_dtype_spellings(text: str, dtype: DType) -> None:
    assert parse_dtype(text) is dtype


@pytest.mark.parametrize("text", ["", "bf16", "fp32", "int4", "fp8_e5m2", "8"])
def test_dtype_that_operands_cannot_have(text: str) -> None:
    with pytest.raises(ProblemError) as error:
        parse_dtype(text)
    assert str(error.value) == f"unknown dtype {text!r}; use fp8 or int8"


def test_dtype_sizes_and_names() -> None:
    sizes = {str(dtype): dtype.bytes for dtype in DType}
    assert sizes == {"fp8_e4m3": 1, "int8": 1, "bf16": 2, "fp16": 2, "fp32": 4, "int32": 4}


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
def test_what_is_scaled_is_bf16_unless_told(dtype: DType) -> None:
    for scales in (Scales.TENSOR, Scales.ROWCOL):
        assert GemmProblem(16, 32, 64, dtype, default_output(dtype, scales), scales)
        assert default_output(dtype, scales) is DType.BF16
    assert default_output(DType.INT8, Scales.NONE) is DType.INT32


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
def test_defaults_make_a_valid_problem(dtype: DType) -> None:
    out = default_output(dtype)
    problem = GemmProblem(16, 32, 64, dtype, out, default_scales(out))
    assert problem.out is (DType.BF16 if dtype is DType.FP8 else DType.INT32)
    assert problem.scales is (Scales.TENSOR if dtype is DType.FP8 else Scales.NONE)


@pytest.mark.parametrize(
    ("m", "bucket"),
    [(1, 16), (15, 16), (16, 16), (17, 32), (129, 256), (4096, 4096), (4097, 8192), (65536, 65536)],
)
def test_bucket_of_m(m: int, bucket: int) -> None:
    assert bucket_m(m) == bucket


@given(st.integers(1, 2**20))
def test_bucket_is_the_next_power_of_two(m: int) -> None:
    bucket = bucket_m(m)
    assert bucket & (bucket - 1) == 0
    assert m <= bucket
    assert bucket == SMALLEST_BUCKET or bucket < 2 * m
    assert bucket_m(bucket) == bucket


@given(st.integers(1, 2**20), st.integers(1, 2**20))
def test_bucket_grows_with_m(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert bucket_m(small) <= bucket_m(large)


@pytest.mark.parametrize("m", [0, -1])
def test_bucket_needs_tokens(m: int) -> None:
    with pytest.raises(ProblemError) as error:
        bucket_m(m)
    assert str(error.value) == f"M={m} is not a positive number of tokens"


def test_default_token_counts_are_their_own_buckets() -> None:
    for m in SEARCH_M + SWEEP_M:
        assert bucket_m(m) == m


@pytest.mark.parametrize("name", ["m", "n", "k"])
@pytest.mark.parametrize("size", [0, -16])
def test_sizes_must_be_positive(name: str, size: int) -> None:
    sizes: dict[str, Any] = {name: size}
    with pytest.raises(ProblemError) as error:
        replace(GATE_UP, **sizes)
    assert str(error.value) == f"{name.upper()}={size} is not a positive whole number"


@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP16, DType.FP32, DType.INT32])
def test_operands_must_have_eight_bits(dtype: DType) -> None:
    with pytest.raises(ProblemError) as error:
        replace(GATE_UP, dtype=dtype)
    assert str(error.value) == f"operands cannot be {dtype}; use fp8 or int8"


@pytest.mark.parametrize("out", [DType.FP8, DType.INT8, DType.INT32])
def test_output_must_fit_the_operands(out: DType) -> None:
    with pytest.raises(ProblemError) as error:
        replace(GATE_UP, out=out)
    assert str(error.value) == f"fp8_e4m3 operands cannot give {out}; use one of bf16, fp16, fp32"


def test_int8_cannot_give_fp8() -> None:
    with pytest.raises(ProblemError, match=r"^int8 operands cannot give fp8_e4m3; use one of "):
        GemmProblem(1, 1, 1, DType.INT8, DType.FP8)


@pytest.mark.parametrize(
    ("out", "scales", "valid"),
    [
        (DType.INT32, Scales.NONE, True),
        (DType.INT32, Scales.TENSOR, False),
        (DType.INT32, Scales.ROWCOL, False),
        (DType.BF16, Scales.NONE, False),
        (DType.BF16, Scales.TENSOR, True),
        (DType.BF16, Scales.ROWCOL, True),
        (DType.INT8, Scales.TENSOR, True),
    ],
)
def test_scales_go_with_the_output(out: DType, scales: Scales, valid: bool) -> None:
    if valid:
        assert GemmProblem(1, 1, 1, DType.INT8, out, scales).scales is scales
        return
    with pytest.raises(ProblemError) as error:
        GemmProblem(1, 1, 1, DType.INT8, out, scales)
    assert str(error.value).startswith(f"{out} output does not go with scales {scales}: ")


def test_problem_error_is_bad_usage() -> None:
    assert issubclass(ProblemError, UsageError)


def some_problems() -> list[GemmProblem]:
    """Every valid combination of dtypes, scales, pattern and bias at a few sizes."""
    problems = []
    patterns = (DENSE, Pattern(2, 4), Pattern(6, 8))
    sizes = ((16, 32, 64), (32, 32, 64), (16, 64, 32), (16, 32, 128))
    fields = product(sizes, DType, DType, Scales, patterns, (False, True))
    for (m, n, k), dtype, out, scales, pattern, bias in fields:
        try:
            problems.append(GemmProblem(m, n, k, dtype, out, scales, pattern, bias))
        except ProblemError:
            continue
    return problems


def test_keys_of_different_problems_differ() -> None:
    problems = some_problems()
    assert len(problems) > 100
    assert len({problem.key for problem in problems}) == len(problems)


def test_key_holds_the_bucket_and_not_the_tokens() -> None:
    assert replace(GATE_UP, m=2049).key == GATE_UP.key
    assert replace(GATE_UP, m=4097).key != GATE_UP.key
    assert GATE_UP.key == "m4096-n37888-k3584-fp8_e4m3-bf16-tensor-nobias-dense"


@given(st.integers(1, 2**17), st.integers(1, 10**5), st.integers(1, 10**5))
def test_key_can_be_read_back(m: int, n: int, k: int) -> None:
    key = GemmProblem(m, n, k, DType.FP8, DType.BF16, pattern=Pattern(8, 10), bias=True).key
    assert key.split("-") == [
        *(f"m{bucket_m(m)}", f"n{n}", f"k{k}"),
        *("fp8_e4m3", "bf16", "tensor", "bias", "8:10"),
    ]


def test_flops_and_rate() -> None:
    assert GATE_UP.flops == 2 * 4096 * 37888 * 3584
    assert GATE_UP.tflops(824.0) == pytest.approx(1350.0, rel=1e-3)
    sparse = replace(GATE_UP, pattern=Pattern(6, 8))
    assert sparse.flops == GATE_UP.flops  # rates are dense-equivalent


@pytest.mark.parametrize(
    ("pattern", "k"), [(DENSE, 3584), (Pattern(2, 4), 3584), (Pattern(6, 8), 5376)]
)
def test_width_that_runs(pattern: Pattern, k: int) -> None:
    assert replace(GATE_UP, pattern=pattern).k_run == k


@pytest.mark.parametrize(
    ("problem", "name", "elements"),
    [
        (GATE_UP, "D", 4096 * 37888),
        (replace(GATE_UP, m=16), "W", 37888 * 3584),
        (replace(GATE_UP, m=16, pattern=Pattern(6, 8)), "W", 37888 * 5376),
        (GemmProblem(65536, 3584, 18944, DType.FP8, DType.BF16), "X", 65536 * 18944),
    ],
)
def test_largest_tensor(problem: GemmProblem, name: str, elements: int) -> None:
    assert problem.largest_tensor == (name, elements)


@pytest.mark.parametrize(
    ("m", "n", "k", "pattern", "passes"),
    [
        (65536, 37888, 3584, DENSE, True),
        (32768, 37888, 3584, DENSE, False),
        (65536, 3584, 18944, Pattern(8, 10), False),
        (65536, 16, 30000, DENSE, False),
        (65536, 16, 30000, Pattern(6, 8), True),  # the lifted X
        (16, 65536, 32768, DENSE, True),  # the weight: 2^31 exactly
        (1, INT32_MAX, 1, DENSE, False),
        (1, INT32_MAX + 1, 1, DENSE, True),
    ],
)
def test_int32_limit(m: int, n: int, k: int, pattern: Pattern, passes: bool) -> None:
    problem = GemmProblem(m, n, k, DType.FP8, DType.BF16, pattern=pattern)
    assert problem.passes_int32 is passes


def test_dense_view_keeps_everything_else() -> None:
    sparse = replace(GATE_UP, pattern=Pattern(6, 8), bias=True)
    assert sparse.on_dense() == replace(GATE_UP, bias=True)
    assert GATE_UP.on_dense() == GATE_UP


def test_text_of_a_problem() -> None:
    assert str(GATE_UP) == "M=4096 N=37888 K=3584 fp8_e4m3->bf16 tensor dense"
    biased = replace(GATE_UP, pattern=Pattern(6, 8), bias=True, scales=Scales.ROWCOL)
    assert str(biased) == "M=4096 N=37888 K=3584 fp8_e4m3->bf16 rowcol 6:8 +bias"
