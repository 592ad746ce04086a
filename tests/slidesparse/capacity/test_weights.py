"""Parameters and bytes of weights, against what the models' own cards and transformers say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from slidesparse.capacity import Quant, Settings
from slidesparse.capacity.figure import total
from slidesparse.capacity.weights import (
    padded_vocab,
    second_forms,
    sparse_bytes,
    total_parameters,
    weight_parts,
)
from slidesparse.models import SUPPORTED, load_model, spec_from_config
from slidesparse.pattern import Pattern

Make = Callable[..., Settings]

PARAMETERS = {
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-30b-a3b": 30_532_122_624,
    "llama3.1-8b": 8_030_261_248,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
}
"""As Hugging Face counts them in the safetensors files of the models' repositories."""

TOY: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "num_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
}


@pytest.mark.parametrize(("model", "count"), PARAMETERS.items())
def test_parameters_of_known_models(model: str, count: int) -> None:
    assert total_parameters(load_model(model)) == count


@pytest.mark.parametrize("model_type", SUPPORTED)
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_that_transformers_builds(model_type: str, tied: bool) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = {**TOY, "tie_word_embeddings": tied}
    reference = transformers.AutoConfig.for_model(model_type, **config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(reference)
    built = {id(parameter): parameter.numel() for parameter in model.parameters()}
    spec = spec_from_config({**config, "model_type": model_type}, "toy", "here", "toy.json")
    assert total_parameters(spec) == sum(built.values())
    assert spec.tied is tied


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_an_absent_tie_word_embeddings_means_what_transformers_means(model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoConfig.for_model(model_type, **TOY)
    spec = spec_from_config({**TOY, "model_type": model_type}, "toy", "here", "toy.json")
    assert spec.tied is reference.tie_word_embeddings


def test_bytes_of_16_bits_are_two_for_each_parameter(make_settings: Make) -> None:
    settings = make_settings("llama3.1-8b")
    rotary = 131072 * 128
    # The vocabulary of 128,256 is a multiple of 64, so nothing is padded.
    assert total(weight_parts(settings)) == 2 * (PARAMETERS["llama3.1-8b"] + rotary)


def test_a_tied_head_is_counted_once(make_settings: Make) -> None:
    names = [part.name for part in weight_parts(make_settings("llama3.2-1b"))]
    assert "embedding" in names
    assert "output head" not in names


def test_four_bits_have_scales_and_zero_points_per_group() -> None:
    n, k = 256, 1024
    assert Quant.AWQ.weight_bytes(n, k) == n * k // 2 + 2 * n * 8 + n * 8 // 2
    assert Quant.GPTQ.weight_bytes(n, k) == n * k // 2 + 2 * n * 8
    assert Quant.FP8.weight_bytes(n, k) == Quant.INT8.weight_bytes(n, k) == n * k + 4 * n
    assert Quant.NONE.weight_bytes(n, k) == 2 * n * k


def test_awq_of_qwen3_14b_weighs_what_its_published_checkpoint_does(make_settings: Make) -> None:
    """Qwen/Qwen3-14B-AWQ: 9.97 GB in safetensors files. Not 3.5 GB, nor 14 x 0.5 = 7."""
    parts = weight_parts(make_settings("qwen3-14b", quant=Quant.AWQ))
    assert total(parts) == pytest.approx(9.97e9, rel=0.01)


def test_sparse_weights_are_five_eighths_of_what_is_slid(make_settings: Make) -> None:
    six = Pattern.parse("6:8")
    assert sparse_bytes(4096, 4096, six) == 4096 * 6144 * 5 // 8
    dense = make_settings("qwen2.5-7b", quant=Quant.FP8)
    sparse = make_settings("qwen2.5-7b", quant=Quant.FP8, pattern=six)

    def linears(settings: Settings) -> int:
        names = {"qkv", "o", "gate_up", "down"}
        return sum(part.bytes for part in weight_parts(settings) if part.name in names)

    # Scales and biases apart: 1.5 x 0.625.
    assert linears(sparse) / linears(dense) == pytest.approx(0.9375, rel=2e-3)
    assert second_forms(sparse) == dense.spec.parameters
    assert second_forms(dense) == 0


def test_sparse_bytes_are_what_layers_count() -> None:
    weight = pytest.importorskip("slidesparse.layers.weight")
    for text in ("2:4", "4:6", "6:8", "8:10"):
        pattern = Pattern.parse(text)
        for n, k in ((4608, 3584), (16, 100)):
            assert sparse_bytes(n, k, pattern) == weight.format_bytes("native", n, k, pattern)


def test_experts_stay_dense(make_settings: Make) -> None:
    six = Pattern.parse("6:8")
    parts = [
        {part.name: part for part in weight_parts(make_settings("qwen3-30b-a3b", **changes))}
        for changes in ({"quant": Quant.FP8}, {"quant": Quant.FP8, "pattern": six})
    ]
    assert parts[0]["expert_down"].bytes == parts[1]["expert_down"].bytes
    assert parts[0]["qkv"].bytes > parts[1]["qkv"].bytes


def test_ranks_share_linears_and_vocabulary_but_not_norms(make_settings: Make) -> None:
    one, two = (
        {part.name: part.bytes for part in weight_parts(make_settings("qwen3-14b", tp=tp))}
        for tp in (1, 2)
    )
    assert two["gate_up"] * 2 == one["gate_up"]
    assert two["embedding"] * 2 == one["embedding"]
    assert two["norms, routers, rotary table"] == one["norms, routers, rotary table"]


def test_the_vocabulary_is_padded_to_64_before_the_ranks_share_it() -> None:
    spec = replace(load_model("qwen3-14b"), vocab=151_900)
    assert [padded_vocab(spec, tp) for tp in (1, 4, 8)] == [151_936, 37_984, 18_992]
