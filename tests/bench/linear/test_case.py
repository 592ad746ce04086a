"""Weights and activations of the linear benchmark: the same on both sides, checked by float64."""

from __future__ import annotations

import pytest
import torch

from slidesparse.bench.linear.case import LinearCase, count_sets, make_weights, without_ties
from slidesparse.kernels.case import MOST_SETS
from slidesparse.models import LinearLayer
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, Scales
from slidesparse.slide import detect_pattern
from slidesparse.tensors import TOP, TORCH_DTYPES

CPU = torch.device("cpu")
LAYER = LinearLayer("o", 48, 80, 2, bias=True)
SIX = Pattern.parse("6:8")


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
@pytest.mark.parametrize("pattern", [DENSE, SIX, Pattern.parse("2:4")], ids=str)
def test_both_sides_have_the_same_pruned_weight(dtype: DType, pattern: Pattern, seed: int) -> None:
    made = make_weights(LAYER, dtype, pattern, 3, CPU, seed)
    assert not made.error
    assert len(made.ours) == len(made.theirs) == 3
    theirs = made.theirs[0]
    assert detect_pattern(theirs.q) == pattern
    for own, other in zip(made.ours, made.theirs, strict=True):
        assert torch.equal(own.weight.view(torch.uint8), theirs.q.view(torch.uint8))
        assert torch.equal(own.weight_scale.view(-1), theirs.scale)
        assert torch.equal(own.bias, theirs.bias)
        assert torch.equal(other.q.view(torch.uint8), theirs.q.view(torch.uint8))
    # All sets lie in other memory: otherwise the cache would not be cold.
    places = {it.q.data_ptr() for it in made.theirs} | {it.weight.data_ptr() for it in made.ours}
    assert len(places) == 6


def test_all_patterns_prune_the_same_weight(seed: int) -> None:
    whole = make_weights(LAYER, DType.INT8, DENSE, 1, CPU, seed).theirs[0]
    part = make_weights(LAYER, DType.INT8, SIX, 1, CPU, seed).theirs[0]
    kept = part.q != 0
    values = whole.q.double() * whole.scale.double()[:, None]
    pruned = part.q.double() * part.scale.double()[:, None]
    # Each row's largest weight survives, so that the scales are equal and the rest as well.
    assert torch.equal(values[kept], pruned[kept])


def test_what_ours_refuses_is_an_error_of_that_pattern(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeError("no such kernel\nand much more")

    monkeypatch.setattr("slidesparse.layers.SparseLinear.from_linear", refuse)
    made = make_weights(LAYER, DType.FP8, SIX, 2, CPU, seed)
    assert made.error == "RuntimeError: no such kernel"
    assert made.ours == []
    assert len(made.theirs) == 2


def test_sets_outrun_the_cache() -> None:
    assert count_sets(1000, 0) == 1
    assert count_sets(1000, 1000) == 3
    assert count_sets(10**9, 1000) == 2, "what was read last lies in the cache"
    assert count_sets(1, 10**6) == MOST_SETS


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
@pytest.mark.parametrize("m", [1, 7, 200])
def test_a_right_result_passes_and_wrong_ones_fail(dtype: DType, m: int, seed: int) -> None:
    weights = make_weights(LAYER, dtype, SIX, 1, CPU, seed)
    case = LinearCase(LAYER, m, dtype, CPU, seed, 1, 0)
    problem = case.problem(SIX)
    assert (problem.m, problem.pattern, problem.scales, problem.bias) == (
        m,
        SIX,
        Scales.ROWCOL,
        True,
    )
    y = weights.ours[0](case.xs[0])
    check = case.check(y, weights)
    assert check.failure(problem) is None
    assert 1e-4 < check.error < 4e-3, "BF16 rounds"
    for wrong in (2 * y, y - weights.theirs[0].bias, torch.full_like(y, float("nan"))):
        assert "wrong result" in str(case.check(wrong, weights).failure(problem))
    last = y.clone()
    last[m - 1] = float("nan")
    assert case.check(last, weights).failure(problem), "both ends are checked"
    for other in (y.float(), y[:, 1:], y.t()):
        with pytest.raises(ValueError, match=r"it gives .* not bfloat16"):
            case.check(other, weights)


def test_the_reference_is_the_product_of_what_was_quantised(seed: int) -> None:
    weights = make_weights(LAYER, DType.INT8, SIX, 1, CPU, seed)
    case = LinearCase(LAYER, 5, DType.INT8, CPU, seed, 1, 0)
    it, x = weights.theirs[0], case.xs[0].double()
    w = it.q.double() * it.scale.double()[:, None]
    want = x @ w.t() + it.bias.double()
    # Against unquantised activations only their rounding is left: one part in 254 of the largest.
    assert float((case.reference(weights) - want).norm() / want.norm()) < 0.02


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
def test_activations_quantise_alike_however_the_last_bit_is_rounded(
    dtype: DType, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn((512, 512), generator=generator, dtype=torch.bfloat16)

    def flips(x: torch.Tensor) -> int:
        rows, top = x.double(), TOP[dtype]
        scaled = rows * (top / rows.abs().amax(dim=1, keepdim=True))
        lower, upper = ((scaled * (1 + off)).clamp(-top, top) for off in (-1e-6, 1e-6))
        if dtype is DType.INT8:
            lower, upper = lower.round(), upper.round()
        kind = TORCH_DTYPES[dtype]
        return int((lower.float().to(kind).float() != upper.float().to(kind).float()).sum())

    assert flips(drawn) > 0
    mended = without_ties(drawn)
    assert flips(mended) == 0
    # They stay what a model has: few move, by one bit of BF16 or to zero.
    moved = mended != drawn
    assert 0 < float(moved.float().mean()) < 0.01
    ratios = mended[moved].float() / drawn[moved].float()
    assert bool(((ratios == 0) | ((ratios - 1).abs() <= 2**-7)).all())


def test_a_routed_expert_sees_its_share_of_the_tokens(seed: int) -> None:
    layer = LinearLayer("expert_down", 16, 32, 8, "expert", experts=8, active=2)
    case = LinearCase(layer, 64, DType.FP8, CPU, seed, 4, 2**20)
    assert case.m == 16
    assert [x.shape for x in case.xs] == [(16, 32)] * 4
    assert len({x.data_ptr() for x in case.xs}) == 4
