"""The oracle of attention: it accepts what is right and notices what goes wrong in kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from slidesparse.bench.attention import check as attention_check
from slidesparse.bench.attention.check import Checker, Errors, Operands, sampled_pairs
from slidesparse.bench.attention.problem import AttentionProblem
from slidesparse.problem import DType
from slidesparse.tensors import TORCH_DTYPES


def make(problem: AttentionProblem, seed: int) -> Operands:
    generator = torch.Generator().manual_seed(seed)

    def values(heads: int) -> torch.Tensor:
        shape = (problem.batch, heads, problem.seq, problem.head_dim)
        return torch.randn(shape, generator=generator).to(TORCH_DTYPES[problem.dtype])

    return Operands(values(problem.heads), values(problem.kv_heads), values(problem.kv_heads))


def right(it: Operands, problem: AttentionProblem) -> torch.Tensor:
    return scaled_dot_product_attention(
        it.q, it.k, it.v, is_causal=problem.causal, enable_gqa=problem.grouped
    )


@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "seq", "dim"),
    [(1, 1, 1, 1, 8), (2, 3, 3, 7, 16), (1, 4, 2, 129, 64), (3, 6, 1, 64, 40)],
)
def test_torchs_attention_is_right(
    batch: int, heads: int, kv_heads: int, seq: int, dim: int, causal: bool, dtype: DType, seed: int
) -> None:
    problem = AttentionProblem(batch, heads, kv_heads, seq, dim, causal, dtype)
    operands = make(problem, seed)
    found = Checker(problem, operands, seed).check(right(operands, problem))
    assert isinstance(found, Errors), found
    assert found.failure is None
    assert found.error <= found.allowed


PROBLEM = AttentionProblem(2, 4, 2, 129, 64, True, DType.BF16)


def without_the_mask(it: Operands, out: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(it.q, it.k, it.v, enable_gqa=True)


def one_key_short(it: Operands, out: torch.Tensor) -> torch.Tensor:
    """As a mask that is off by one; the first query sees its key, or there would be NaN."""
    mask = torch.ones(129, 129, dtype=torch.bool).tril(-1)
    mask[0, 0] = True
    return scaled_dot_product_attention(it.q, it.k, it.v, attn_mask=mask, enable_gqa=True)


def another_scale(it: Operands, out: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(
        it.q, it.k, it.v, is_causal=True, scale=1.1 / 8, enable_gqa=True
    )


def other_groups(it: Operands, out: torch.Tensor) -> torch.Tensor:
    """Heads 0 and 2 share K and V instead of 0 and 1."""
    k, v = (part.repeat(1, 2, 1, 1) for part in (it.k, it.v))
    return scaled_dot_product_attention(it.q, k, v, is_causal=True)


def a_late_row_off(it: Operands, out: torch.Tensor) -> torch.Tensor:
    """By a fifth of its own size, which is little beside the first rows."""
    out = out.clone()
    out[1, 3, 120] *= 1.2
    return out


@pytest.mark.parametrize(
    "wrong", [without_the_mask, one_key_short, another_scale, other_groups, a_late_row_off]
)
def test_what_kernels_get_wrong_is_noticed(
    wrong: Callable[[Operands, torch.Tensor], torch.Tensor], seed: int
) -> None:
    operands = make(PROBLEM, seed)
    checker = Checker(PROBLEM, operands, seed)
    found = checker.check(wrong(operands, right(operands, PROBLEM)))
    assert isinstance(found, Errors)
    assert found.failure is not None
    assert found.failure.startswith("wrong result: a row is off by ")


def test_one_element_that_nobody_wrote_is_noticed_in_heads_that_are_not_compared(
    seed: int,
) -> None:
    problem = AttentionProblem(4, 8, 8, 16, 16, False, DType.FP16)
    operands = make(problem, seed)
    checker = Checker(problem, operands, seed)
    out = right(operands, problem)
    missing = next((b, h) for b in range(4) for h in range(8) if (b, h) not in checker.pairs)
    out[missing][5, 3] = float("nan")
    assert checker.check(out) == ("wrong result: 1 of 8192 elements are not finite or not written")


def test_another_shape_or_dtype_is_wrong(seed: int) -> None:
    operands = make(PROBLEM, seed)
    checker, out = Checker(PROBLEM, operands, seed), right(operands, PROBLEM)
    for other in (out.transpose(1, 2), out.half()):
        assert "instead of bf16 (2, 4, 129, 64)" in str(checker.check(other))


def test_long_sequences_are_compared_in_steps(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    operands = make(PROBLEM, seed)
    out = right(operands, PROBLEM)
    whole = Checker(PROBLEM, operands, seed).check(out)
    monkeypatch.setattr(attention_check, "MOST_SCORES", 10 * 129)
    parts = Checker(PROBLEM, operands, seed).check(out)
    assert isinstance(whole, Errors)
    assert isinstance(parts, Errors)
    assert parts.error == pytest.approx(whole.error, rel=1e-3)


def test_a_sample_holds_the_first_and_the_last_head_and_few_are_all_taken() -> None:
    many = AttentionProblem(16, 96, 96, 8, 8, False, DType.BF16)
    pairs = sampled_pairs(many, 3)
    assert len(set(pairs)) == attention_check.MOST_PAIRS
    assert (pairs[0], pairs[-1]) == ((0, 0), (15, 95))
    assert pairs != sampled_pairs(many, 4)
    few = AttentionProblem(2, 4, 4, 8, 8, False, DType.BF16)
    assert sampled_pairs(few, 3) == [(b, h) for b in range(2) for h in range(4)]


def test_the_precision_of_products_is_given_back(seed: int) -> None:
    torch.set_float32_matmul_precision("high")
    try:
        Checker(PROBLEM, make(PROBLEM, seed), seed)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
