"""Random weights: their distribution, pattern and scales; everybody draws the same ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from slidesparse.bench.sweep import vllm_weights as sweep_vllm_weights
from slidesparse.bench.sweep.vllm_weights import RandomWeights
from slidesparse.errors import ModelError
from slidesparse.kernels.reference import quantize
from slidesparse.pattern import DENSE, Pattern
from slidesparse.slide import detect_pattern, prune_magnitude
from slidesparse.tensors import DTYPES, TOP

SIX = Pattern.parse("6:8")
DTYPES_8 = (torch.float8_e4m3fn, torch.int8)


class Linear(nn.Module):
    """Parameters as vLLM's W8A8 linear layers have them while weights are loaded."""

    def __init__(
        self, n: int, k: int, dtype: torch.dtype, scales: int | None = None, tp_size: int = 1
    ) -> None:
        super().__init__()
        self.tp_size = tp_size
        self.weight = fixed(torch.zeros(n, k).to(dtype))
        shape = (n, 1) if scales is None else (scales,)
        self.weight_scale = fixed(torch.full(shape, float("nan")))
        self.bias = fixed(torch.full((n,), float("nan"), dtype=torch.bfloat16))


class Norm(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.weight = fixed(torch.full((k,), float("nan"), dtype=torch.bfloat16))


class ReplicatedLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = fixed(torch.zeros(8, 64, dtype=torch.bfloat16))


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = fixed(torch.full((500, 64), float("nan"), dtype=torch.bfloat16))


class Experts(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.w13_weight = fixed(torch.zeros(3, 96, 64).to(dtype))
        self.w13_weight_scale = fixed(torch.zeros(3, 96, 1))


def fixed(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


def model(dtype: torch.dtype = torch.int8) -> nn.ModuleDict:
    linear = Linear(300, 200, dtype)
    return nn.ModuleDict(
        {
            "qkv": linear,
            "down": Linear(64, 1000, dtype),
            "norm": Norm(64),
            "gate": ReplicatedLinear(),
            "embed": Embedding(),
        }
    )


def filled(made: nn.Module, **settings: Any) -> dict[str, torch.Tensor]:
    RandomWeights(**{"seed": 3, **settings}).fill(made)
    return {name: value.data for name, value in made.named_parameters()}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a.contiguous().view(torch.uint8) == b.contiguous().view(torch.uint8)).all())


@pytest.mark.parametrize("dtype", DTYPES_8)
@pytest.mark.parametrize("pattern", [DENSE, Pattern.parse("2:4"), SIX, Pattern.parse("8:10")])
def test_weights_are_normal_pruned_and_scaled_per_channel(
    dtype: torch.dtype, pattern: Pattern
) -> None:
    found = filled(model(dtype), pattern=pattern)
    for name, k in (("qkv", 200), ("down", 1000)):
        weight, scale = found[f"{name}.weight"], found[f"{name}.weight_scale"]
        # Every row reaches to the top of the dtype, so no bit of it is wasted.
        assert bool((weight.double().abs().amax(dim=1) == TOP[DTYPES[dtype]]).all())
        assert detect_pattern(weight) == pattern
        values = weight.double() * scale.double()
        kept = values[values != 0]
        assert abs(float(values.mean())) < 0.1 * k**-0.5
        if pattern.dense:
            assert float(kept.std()) == pytest.approx(k**-0.5, rel=0.02)
            # A normal distribution's kurtosis is 3, a uniform one's 1.8.
            assert float((kept / kept.std()).pow(4).mean()) == pytest.approx(3.0, rel=0.1)
        else:
            # Exactly its share is zero; rounding to INT8 makes some more.
            zeros = float((values == 0).double().mean())
            least = float(pattern.zeros)
            assert least <= zeros + 1e-9 < least + 0.02
            assert float(kept.std()) > k**-0.5


def test_a_weight_is_what_conversion_makes_of_the_same_values() -> None:
    seen: list[torch.Tensor] = []

    def watched(rows: torch.Tensor, pattern: Pattern) -> torch.Tensor:
        seen.append(rows.clone())
        return prune_magnitude(rows, pattern)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_vllm_weights, "prune_magnitude", watched)
        found = filled(nn.ModuleDict({"qkv": Linear(300, 200, torch.float8_e4m3fn)}), pattern=SIX)
    q, scale = quantize(prune_magnitude(seen[0], SIX), torch.float8_e4m3fn)
    assert same(found["qkv.weight"], q)
    assert torch.equal(found["qkv.weight_scale"][:, 0], scale)


def test_the_rest_is_about_what_a_trained_model_has() -> None:
    found = filled(model())
    assert float(found["norm.weight"].double().mean()) == pytest.approx(1.0, abs=0.03)
    assert 0 < float(found["norm.weight"].double().std()) < 0.1
    for name in ("embed.weight", "qkv.bias", "gate.weight"):
        assert float(found[name].double().std()) == pytest.approx(0.02, rel=0.15)
        assert abs(float(found[name].double().mean())) < 0.005


def test_the_same_seed_draws_the_same_and_another_one_another() -> None:
    first, again = filled(model(), pattern=SIX), filled(model(), pattern=SIX)
    assert all(same(first[name], again[name]) for name in first)
    other = filled(model(), pattern=SIX, seed=4)
    assert not any(same(first[name], other[name]) for name in first)


def test_a_value_depends_on_its_name_and_not_on_its_neighbours() -> None:
    whole = filled(model())
    alone = filled(nn.ModuleDict({"down": Linear(64, 1000, torch.int8)}))
    assert same(whole["down.weight"], alone["down.weight"])
    twin = filled(nn.ModuleDict({"up": Linear(64, 1000, torch.int8)}))
    assert not same(whole["down.weight"], twin["up.weight"])


def test_all_patterns_prune_the_same_values() -> None:
    dense, pruned = filled(model()), filled(model(), pattern=SIX)
    a = dense["qkv.weight"].double() * dense["qkv.weight_scale"]
    b = pruned["qkv.weight"].double() * pruned["qkv.weight_scale"]
    assert torch.allclose(torch.where(b == 0, 0, a), b, atol=float(dense["qkv.weight_scale"].max()))


def test_ranks_hold_different_shards_of_the_same_model() -> None:
    first, second = filled(model(), rank=0), filled(model(), rank=1)
    for name in ("qkv.weight", "qkv.bias", "down.weight_scale", "embed.weight"):
        assert not same(first[name], second[name])
    # A router that differs would send the same token to different experts.
    for name in ("norm.weight", "gate.weight"):
        assert same(first[name], second[name])


@pytest.mark.parametrize("scales", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES_8)
def test_scales_per_tensor_are_all_alike_and_clip_nothing(dtype: torch.dtype, scales: int) -> None:
    found = filled(nn.ModuleDict({"qkv": Linear(300, 200, dtype, scales)}), pattern=SIX)
    scale = found["qkv.weight_scale"]
    assert len(set(scale.tolist())) == 1
    weight = found["qkv.weight"].double()
    assert detect_pattern(found["qkv.weight"]) == SIX
    assert 0.5 * TOP[DTYPES[dtype]] < float(weight.abs().max()) < TOP[DTYPES[dtype]]
    values = weight * scale[0].double()
    assert float(values[values != 0].std()) == pytest.approx(200**-0.5 * 1.15, rel=0.05)


@pytest.mark.parametrize("dtype", DTYPES_8)
def test_experts_are_filled_one_by_one(dtype: torch.dtype) -> None:
    found = filled(nn.ModuleDict({"experts": Experts(dtype)}), pattern=SIX)
    weight = found["experts.w13_weight"]
    for expert in range(3):
        assert detect_pattern(weight[expert]) == SIX
    assert not same(weight[0], weight[1])
    assert bool((found["experts.w13_weight_scale"] > 0).all())


def test_static_scales_take_what_follows_a_norm() -> None:
    linear = Linear(300, 200, torch.float8_e4m3fn)
    linear.input_scale = fixed(torch.full((3,), float("nan")))
    linear.input_zero_point = fixed(torch.ones(1, dtype=torch.int8))
    found = filled(nn.ModuleDict({"qkv": linear}))
    assert set(found["qkv.input_scale"].tolist()) == {torch.tensor(10 / 448).item()}
    assert int(found["qkv.input_zero_point"]) == 0


def test_a_tied_head_is_filled_once() -> None:
    embed, head = Embedding(), Embedding()
    head.weight = embed.weight
    found = filled(nn.ModuleDict({"embed": embed, "head": head}))
    alone = filled(nn.ModuleDict({"embed": Embedding()}))
    assert same(found["embed.weight"], alone["embed.weight"])


def test_rows_drawn_in_pieces_are_quantised_like_one() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_vllm_weights, "CHUNK_ELEMENTS", 7 * 200)
        found = filled(nn.ModuleDict({"qkv": Linear(300, 200, torch.int8)}), pattern=SIX)
    assert bool((found["qkv.weight"].abs().amax(dim=1) == 127).all())
    assert detect_pattern(found["qkv.weight"]) == SIX
    assert bool(found["qkv.weight_scale"].isfinite().all())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda linear: setattr(linear, "weight", fixed(torch.zeros(4, 4, dtype=torch.int32))),
        lambda linear: delattr(linear, "weight_scale"),
    ],
)
def test_what_is_not_w8a8_is_refused_by_name(spoil: Callable[[Linear], None]) -> None:
    linear = Linear(300, 200, torch.int8)
    spoil(linear)
    with pytest.raises(ModelError, match=r"no random values are known for qkv\.weight \(torch\."):
        filled(nn.ModuleDict({"qkv": linear}))
