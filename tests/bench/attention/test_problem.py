"""Counts of an attention: the figures of document C, and scores counted one by one."""

from __future__ import annotations

import pytest

from slidesparse.bench.attention.problem import AttentionProblem
from slidesparse.errors import ProblemError
from slidesparse.problem import DType

C_US_PER_HEAD = 223.57
"""What document C reports, "per head", of B=16, H=96, S=4096, D=128."""


def make(causal: bool = False, **sizes: int) -> AttentionProblem:
    given = {"batch": 16, "heads": 96, "kv_heads": 96, "seq": 4096, "head_dim": 128} | sizes
    return AttentionProblem(**given, causal=causal, dtype=DType.BF16)


def test_the_baseline_of_document_c_is_615_tflops() -> None:
    full, causal = make(), make(causal=True)
    total = C_US_PER_HEAD * full.heads
    assert total / 1e3 == pytest.approx(21.5, abs=0.05)
    assert full.flops == 4 * 16 * 96 * 4096**2 * 128
    assert full.flops / 1e12 == pytest.approx(13.2, abs=0.05)
    assert full.tflops(total) == pytest.approx(615, abs=0.5)
    assert causal.tflops(total) == pytest.approx(307, abs=0.5)
    assert full.per_head(total) == pytest.approx(C_US_PER_HEAD)
    assert full.per_batch_head(total) == pytest.approx(C_US_PER_HEAD / 16)


@pytest.mark.parametrize("seq", [1, 2, 7, 129])
def test_scores_are_those_that_a_mask_leaves(seq: int) -> None:
    seen = sum(key <= query for query in range(seq) for key in range(seq))
    assert make(causal=True, seq=seq, batch=3, heads=4, kv_heads=2).scores == 12 * seen
    assert make(seq=seq, batch=3, heads=4, kv_heads=2).scores == 12 * seq * seq


def test_a_mask_halves_the_work_but_for_one_part_in_s() -> None:
    assert 2 * make(causal=True).flops / make().flops == pytest.approx(1 + 1 / 4096)


def test_bytes_count_each_tensor_once_and_shared_heads_once() -> None:
    one = 16 * 4096 * 128 * 2
    assert make().bytes == 4 * 96 * one
    grouped = make(kv_heads=8)
    assert grouped.grouped
    assert grouped.bytes == (2 * 96 + 2 * 8) * one
    assert grouped.flops == make().flops
    assert grouped.gbs(1e3) == pytest.approx(grouped.bytes / 1e6)


def test_the_text_names_what_differs() -> None:
    assert str(make()) == "B=16 H=96 S=4096 D=128 bf16 full"
    assert str(make(causal=True, kv_heads=8)) == "B=16 H=96 KV=8 S=4096 D=128 bf16 causal"


def test_heads_that_cannot_be_shared_and_other_dtypes_are_refused() -> None:
    with pytest.raises(ProblemError, match="96 heads cannot share 7 K/V heads evenly; use"):
        make(kv_heads=7)
    with pytest.raises(ProblemError, match="bf16 or fp16, not in fp8_e4m3"):
        AttentionProblem(1, 1, 1, 1, 1, False, DType.FP8)
