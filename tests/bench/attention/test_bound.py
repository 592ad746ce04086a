"""Bounds and targets: document C's tiers, and the three floors by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from attention_records import CAUSAL, FULL

from slidesparse.bench.attention.bound import (
    EXPS_PER_CLOCK,
    Rates,
    Reach,
    Resource,
    Unit,
    bound_of,
    judge,
)
from slidesparse.bench.attention.rates import table_rates
from slidesparse.gpus import find_gpu
from slidesparse.problem import DType


@pytest.fixture
def h100() -> Rates:
    found = table_rates(find_gpu("h100-sxm"), DType.BF16)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("target", "pflops", "factor"), [(3.82, 36.0, 33.6), (3.0, 45.8, 42.8), (2.0, 68.7, 64.2)]
)
def test_the_tiers_of_document_c_are_beyond_an_h100(
    h100: Rates, target: float, pflops: float, factor: float
) -> None:
    verdict = judge(FULL, bound_of(FULL, h100), target, Unit.HEAD)
    assert verdict.total_us == pytest.approx(96 * target)
    assert verdict.tflops / 1e3 == pytest.approx(pflops, abs=0.05)
    assert verdict.reachable is Reach.NO
    assert verdict.factor == pytest.approx(factor, abs=0.05)
    masked = judge(CAUSAL, bound_of(CAUSAL, h100), target, Unit.HEAD)
    assert masked.tflops == pytest.approx(verdict.tflops / 2, rel=1e-3)
    assert masked.reachable is Reach.NO


def test_the_measured_baseline_of_document_c_is_within_the_bound(h100: Rates) -> None:
    verdict = judge(FULL, bound_of(FULL, h100), 223.57, Unit.HEAD)
    assert verdict.reachable is Reach.YES
    assert verdict.factor == pytest.approx(615 / h100.tflops, rel=1e-3)


def test_each_floor_is_its_work_over_its_rate() -> None:
    rates = Rates("made up", 90, 10, 1000.0, "me", DType.BF16, 4096, EXPS_PER_CLOCK, 100.0, "me")
    assert rates.tflops == pytest.approx(10 * 1e9 * 4096 / 1e12)
    assert rates.texps == pytest.approx(10 * 1e9 * 16 / 1e12)
    bound = bound_of(FULL, rates)
    assert bound.tensor_us == pytest.approx(1e6 * FULL.flops / (10 * 1e9 * 4096))
    assert bound.exponential_us == pytest.approx(1e6 * FULL.scores / (10 * 1e9 * 16))
    assert bound.memory_us == pytest.approx(1e6 * FULL.bytes / 100e9)
    assert bound.us == bound.tensor_us
    assert bound.resource is Resource.TENSOR
    slow = bound_of(FULL, replace(rates, bandwidth_gbs=1.0))
    assert slow.resource is Resource.MEMORY
    assert slow.us == slow.hard_us == slow.memory_us


def test_a_target_between_two_floors_needs_exponentials_multiplied_out(h100: Rates) -> None:
    """D=32 halves the tensor cores' time twice, and leaves the exponentials' as it was."""
    problem = replace(FULL, head_dim=32)
    bound = bound_of(problem, h100)
    assert bound.resource is Resource.EXPONENTIAL
    assert bound.us == pytest.approx(2 * bound.tensor_us)
    between = (bound.us + bound.tensor_us) / 2 / problem.heads
    assert judge(problem, bound, between, Unit.HEAD).reachable is Reach.MULTIPLIED
    assert judge(problem, bound, between / 2, Unit.HEAD).reachable is Reach.NO
    assert judge(problem, bound, between * 2, Unit.HEAD).reachable is Reach.YES


def test_a_head_of_the_batch_is_another_unit_than_a_head(h100: Rates) -> None:
    bound = bound_of(FULL, h100)
    head, both = judge(FULL, bound, 8.0, Unit.HEAD), judge(FULL, bound, 8.0, Unit.BATCH_HEAD)
    assert both.total_us == 16 * head.total_us
    assert head.bound_us == pytest.approx(16 * both.bound_us)
    assert head.tflops == pytest.approx(16 * both.tflops)
    assert Unit.HEAD.text == "us per head (total / H)"
    assert Unit.BATCH_HEAD.text == "us per batch-head (total / (B H))"


def test_without_a_bound_a_target_still_says_what_it_needs() -> None:
    verdict = judge(FULL, None, 3.82, Unit.HEAD)
    assert verdict.tflops > 3e4
    assert (verdict.bound_us, verdict.reachable, verdict.factor) == (None, None, None)
