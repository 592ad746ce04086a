"""A weight is refused if it is none, and its forms are the same weight."""

from __future__ import annotations

import layer_checks as checks
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_checks import FP8, INT8

from slidesparse.errors import KernelError, PatternError
from slidesparse.layers import SparseWeight
from slidesparse.layers.layer_plan import DENSE_FORM, NATIVE_FORM
from slidesparse.layers.weight import format_bytes, from_format, to_format
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType

DTYPES = {DType.FP8: FP8, DType.INT8: INT8}
SIX_EIGHT = Pattern.parse("6:8")
patterns = st.integers(2, 9).map(lambda n: Pattern(2 * n - 2, 2 * n))
dtypes = st.sampled_from(list(DTYPES))


def weight(n=37, k=100, pattern=SIX_EIGHT, dtype=DType.FP8, seed=1) -> SparseWeight:
    linear = checks.linear_of(n, k, pattern, torch.float32, seed=seed)
    return SparseWeight.quantise(linear.weight, pattern, dtype)


@given(st.integers(1, 70), st.integers(1, 200), patterns | st.just(DENSE), dtypes)
def test_quantising_rounds_each_channel_by_its_largest(n, k, pattern, dtype):
    linear = checks.linear_of(n, k, pattern, torch.float32)
    made = SparseWeight.quantise(linear.weight, pattern, dtype)
    want = checks.quantised(linear.weight, DTYPES[dtype])
    assert made.dtype is dtype
    assert torch.equal(made.q.double(), want.q)
    assert torch.equal(made.scale.double(), want.scale)


@given(st.integers(1, 70), st.integers(1, 300), patterns, dtypes)
def test_the_packed_form_is_the_same_weight(n, k, pattern, dtype):
    made = weight(n, k, pattern, dtype)
    packed = to_format(made.q, pattern, NATIVE_FORM)
    back = from_format(packed, NATIVE_FORM, (n, k), pattern, dtype)
    assert packed.dtype is torch.uint8
    assert back.dtype is made.q.dtype
    assert torch.equal(back.float(), made.q.float())
    # Whole slabs of 64 channels and four blocks of 64 columns are stored.
    whole = format_bytes(NATIVE_FORM, -(-n // 64) * 64, k, pattern)
    columns = -(-pattern.expanded_k(k) // 256) * 256
    assert packed.numel() == whole * columns // pattern.expanded_k(k)


def test_the_dense_form_is_the_weight_itself():
    q = weight().q
    assert to_format(q, SIX_EIGHT, DENSE_FORM).data_ptr() == q.data_ptr()
    turned = q.t().contiguous().t()
    assert to_format(turned, SIX_EIGHT, DENSE_FORM).is_contiguous()
    assert from_format(q, DENSE_FORM, (37, 100), SIX_EIGHT, DType.FP8) is q
    assert format_bytes(DENSE_FORM, 37, 100, SIX_EIGHT) == q.numel()


def test_packing_refuses_what_breaks_the_pattern():
    with pytest.raises(PatternError, match=r"row 0, block 0"):
        to_format(weight(pattern=DENSE).q, SIX_EIGHT, NATIVE_FORM)


@pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
def test_the_first_block_with_too_many_weights_is_named(dtype):
    linear = checks.linear_of(37, 100, SIX_EIGHT, torch.float32)
    with torch.no_grad():
        linear.weight[29, 40:47], linear.weight[29, 47] = 1.0, 0.0
        linear.weight[31] = 1.0
    with pytest.raises(PatternError) as raised:
        SparseWeight.quantise(linear.weight, SIX_EIGHT, dtype)
    assert str(raised.value) == (
        "row 29, block 5 (columns 40 to 47) holds 7 non-zeros, pattern 6:8 allows 6; prune the "
        "weight first"
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
@pytest.mark.parametrize("pattern", [DENSE, SIX_EIGHT], ids=str)
def test_a_weight_that_is_not_finite_is_refused(pattern, dtype, bad):
    linear = checks.linear_of(37, 100, pattern, torch.float32)
    with torch.no_grad():
        linear.weight[[11, 30], 3] = bad
    with pytest.raises(KernelError) as raised:
        SparseWeight.quantise(linear.weight, pattern, dtype)
    assert str(raised.value) == (
        "row 11 of the weight holds NaN or infinity, as do 2 of 37 rows; such a layer cannot be "
        "quantised"
    )


def test_a_channel_of_zeros_is_a_weight():
    linear = checks.linear_of(8, 16, SIX_EIGHT, torch.float32)
    with torch.no_grad():
        linear.weight[3] = 0
    made = SparseWeight.quantise(linear.weight, SIX_EIGHT, DType.FP8)
    assert made.scale.isfinite().all()
    assert not made.q[3].float().any()


def q_of(*shape: int, dtype: torch.dtype = FP8) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("q", "scale", "message"),
    [
        (
            q_of(4, 8, dtype=torch.bfloat16),
            torch.ones(4),
            "a weight of torch.bfloat16 (4, 8); float8_e4m3fn or int8 [N, K] is needed",
        ),
        (
            q_of(4, 8, dtype=torch.uint8),
            torch.ones(4),
            "a weight of torch.uint8 (4, 8); float8_e4m3fn or int8 [N, K] is needed",
        ),
        (
            q_of(4),
            torch.ones(4),
            "a weight of torch.float8_e4m3fn (4,); float8_e4m3fn or int8 [N, K] is needed",
        ),
        (
            q_of(4, 0),
            torch.ones(4),
            "a weight of torch.float8_e4m3fn (4, 0); float8_e4m3fn or int8 [N, K] is needed",
        ),
        (
            q_of(4, 8),
            torch.ones(4, 1),
            "scales of torch.float32 (4, 1) for a weight (4, 8); float32 [4] is needed",
        ),
        (
            q_of(4, 8),
            torch.ones(8),
            "scales of torch.float32 (8,) for a weight (4, 8); float32 [4] is needed",
        ),
        (
            q_of(4, 8),
            torch.ones(4, dtype=torch.float64),
            "scales of torch.float64 (4,) for a weight (4, 8); float32 [4] is needed",
        ),
    ],
)
def test_what_is_no_weight_is_refused(q, scale, message):
    with pytest.raises(KernelError) as raised:
        SparseWeight(q, scale, SIX_EIGHT)
    assert str(raised.value) == message


def test_a_weight_that_breaks_its_pattern_is_refused_however_it_is_made():
    with pytest.raises(PatternError, match=r"row 0, block 0 .* 8 non-zeros, pattern 6:8 allows 6"):
        SparseWeight(torch.ones(4, 8, dtype=INT8), torch.ones(4), SIX_EIGHT)
