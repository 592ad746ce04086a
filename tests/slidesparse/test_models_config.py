"""Reading config.json: every supported architecture, odd configurations, every error message."""

from __future__ import annotations

from typing import Any

import pytest

from slidesparse.errors import ModelError
from slidesparse.models import SUPPORTED, ModelSpec, spec_from_config

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
MOE = {
    **LLAMA,
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
NEXT = {
    **MOE,
    "model_type": "qwen3_next",
    "architectures": ["Qwen3NextForCausalLM"],
    "shared_expert_intermediate_size": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
}


def read(base: dict[str, Any], **changes: Any) -> ModelSpec:
    config = {key: value for key, value in {**base, **changes}.items() if value != "absent"}
    return spec_from_config(config, "toy", "here", "toy.json")


def counts(spec: ModelSpec) -> dict[str, int]:
    return {layer.name: layer.count for layer in spec.linears()}


def test_plain_config() -> None:
    spec = read(LLAMA)
    expected = ModelSpec("toy", "llama", 64, 4, 96, 8, 2, 8, 128, "here")
    assert spec == expected


@pytest.mark.parametrize("absent", ["absent", None])
def test_absent_or_null_heads_follow_transformers(absent: str | None) -> None:
    spec = read(LLAMA, num_key_value_heads=absent, head_dim=absent)
    assert (spec.kv_heads, spec.head_dim) == (8, 8)


def test_head_dim_need_not_match_the_hidden_size() -> None:
    spec = read(LLAMA, head_dim=32, hidden_size=60)
    assert [(layer.n, layer.k) for layer in spec.linears()][:2] == [(12 * 32, 60), (60, 8 * 32)]


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_every_supported_model_type_is_read(model_type: str) -> None:
    spec = read(NEXT, model_type=model_type, architectures="absent", num_local_experts=8)
    assert spec.architecture == model_type
    assert spec.linears()


def test_architectures_win_over_model_type() -> None:
    assert read(LLAMA, model_type="custom").architecture == "llama"
    assert read(LLAMA, architectures=["Qwen2ForCausalLM"]).architecture == "qwen2"


def test_unknown_class_of_a_known_model_type_is_read_by_model_type() -> None:
    assert read(LLAMA, architectures=["LlamaForSequenceClassification"]).architecture == "llama"


def test_multimodal_config_uses_its_text_config() -> None:
    outer = {"model_type": "mistral3", "architectures": ["Mistral3ForConditionalGeneration"]}
    text = {**LLAMA, "model_type": "mistral", "architectures": None}
    spec = read({**outer, "text_config": text, "vision_config": {"hidden_size": 7}})
    assert (spec.architecture, spec.hidden) == ("mistral", 64)


@pytest.mark.parametrize(
    ("changes", "biased"),
    [
        ({}, []),
        ({"attention_bias": True}, ["qkv", "o"]),
        ({"mlp_bias": True}, ["gate_up", "down"]),
        ({"architectures": ["Qwen2ForCausalLM"]}, ["qkv"]),
        ({"architectures": ["Qwen3ForCausalLM"], "attention_bias": True}, ["qkv"]),
        ({"architectures": ["MistralForCausalLM"], "attention_bias": True}, []),
    ],
)
def test_biases(changes: dict[str, Any], biased: list[str]) -> None:
    assert [layer.name for layer in read(LLAMA, **changes).linears() if layer.bias] == biased


@pytest.mark.parametrize(
    ("changes", "dense", "sparse"),
    [
        ({}, 0, 4),
        ({"mlp_only_layers": [0]}, 1, 3),
        ({"decoder_sparse_step": 2}, 2, 2),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [0, 1]}, 3, 1),
        ({"mlp_only_layers": None, "decoder_sparse_step": None}, 0, 4),
        ({"mlp_only_layers": [0, 1, 2, 3]}, 4, 0),
        ({"decoder_sparse_step": 5}, 4, 0),
        ({"num_experts": 0}, 4, 0),
    ],
)
def test_which_layers_have_experts(changes: dict[str, Any], dense: int, sparse: int) -> None:
    found = counts(read(MOE, **changes))
    assert found.get("gate_up", 0) == found.get("down", 0) == dense
    assert found.get("expert_gate_up", 0) == found.get("expert_down", 0) == 8 * sparse


def test_dense_width_may_be_absent_where_every_layer_has_experts() -> None:
    assert read(MOE, intermediate_size="absent").intermediate == 0
    with pytest.raises(ModelError, match=r"^toy\.json: key 'intermediate_size' is missing$"):
        read(MOE, intermediate_size="absent", mlp_only_layers=[1])


def test_mixtral_experts_have_the_intermediate_size() -> None:
    changes = {"num_local_experts": 4, "architectures": ["MixtralForCausalLM"]}
    spec = read(LLAMA, **changes, num_experts_per_tok=2)
    assert counts(spec) == {"qkv": 4, "o": 4, "expert_gate_up": 16, "expert_down": 16}
    assert spec.linears()[-1].k == 96


@pytest.mark.parametrize("width", ["absent", None, 0])
def test_no_shared_expert(width: object) -> None:
    spec = read(NEXT, shared_expert_intermediate_size=width)
    assert spec.moe is not None
    assert spec.moe.shared_intermediate == 0


@pytest.mark.parametrize(
    ("changes", "linear"),
    [
        ({}, 3),
        ({"full_attention_interval": 2}, 2),
        ({"num_hidden_layers": 7}, 6),
        ({"layer_types": ["linear_attention", "full_attention"] * 2}, 2),
        ({"layer_types": ["full_attention"] * 4}, 0),
        ({"full_attention_interval": 1}, 0),
    ],
)
def test_which_layers_are_linear_attention(changes: dict[str, Any], linear: int) -> None:
    spec = read(NEXT, **changes)
    found = counts(spec)
    names = ("in_proj_qkvz", "in_proj_ba", "out_proj")
    assert [found.get(name, 0) for name in names] == [linear] * 3
    assert found["qkv"] == spec.layers - linear


def test_output_gate_doubles_the_queries() -> None:
    gated, plain = read(NEXT), read(NEXT, attn_output_gate=False)
    assert gated.linears()[0].n == (2 * 8 + 2 + 2) * 8
    assert plain.linears()[0].n == (8 + 2 + 2) * 8


ERRORS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (LLAMA, {"hidden_size": "absent"}, "key 'hidden_size' is missing"),
    (LLAMA, {"num_hidden_layers": None}, "key 'num_hidden_layers' is missing"),
    (LLAMA, {"intermediate_size": "absent"}, "key 'intermediate_size' is missing"),
    (LLAMA, {"num_attention_heads": "absent"}, "key 'num_attention_heads' is missing"),
    (LLAMA, {"vocab_size": "absent"}, "key 'vocab_size' is missing"),
    (LLAMA, {"hidden_size": -64}, "key 'hidden_size' must be a positive integer, not -64"),
    (LLAMA, {"hidden_size": 0}, "key 'hidden_size' must be a positive integer, not 0"),
    (LLAMA, {"hidden_size": 64.0}, "key 'hidden_size' must be a positive integer, not 64.0"),
    (LLAMA, {"hidden_size": "64"}, "key 'hidden_size' must be a positive integer, not '64'"),
    (LLAMA, {"hidden_size": True}, "key 'hidden_size' must be a positive integer, not True"),
    (LLAMA, {"head_dim": 0}, "key 'head_dim' must be a positive integer, not 0"),
    (
        LLAMA,
        {"hidden_size": ["x" * 90]},
        f"key 'hidden_size' must be a positive integer, not ['{'x' * 55}...",
    ),
    (LLAMA, {"attention_bias": 1}, "key 'attention_bias' must be true or false, not 1"),
    (
        LLAMA,
        {"num_key_value_heads": 3},
        "num_attention_heads=8 is not a multiple of num_key_value_heads=3",
    ),
    (
        LLAMA,
        {"hidden_size": 65},
        "head_dim is absent and hidden_size=65 is not a multiple of num_attention_heads=8",
    ),
    (
        LLAMA,
        {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]},
        "architecture deepseek_v3 DeepseekV3ForCausalLM is not supported; "
        "supported: llama, mistral, mixtral, qwen2, qwen2_moe, qwen3, qwen3_moe, qwen3_next, "
        "bitnet, gemma, gemma2",
    ),
    (
        LLAMA,
        {"model_type": "absent", "architectures": "absent"},
        "has neither 'model_type' nor 'architectures'; is it a model's config.json?",
    ),
    (
        LLAMA,
        {"architectures": "LlamaForCausalLM"},
        "key 'architectures' must be a list of strings, not 'LlamaForCausalLM'",
    ),
    (
        MOE,
        {"num_experts_per_tok": 9},
        "num_experts_per_tok=9 is more than num_experts=8",
    ),
    (MOE, {"moe_intermediate_size": "absent"}, "key 'moe_intermediate_size' is missing"),
    (MOE, {"num_experts": "absent"}, "key 'num_experts' is missing"),
    (
        MOE,
        {"decoder_sparse_step": 0},
        "key 'decoder_sparse_step' must be a positive integer, not 0",
    ),
    (
        MOE,
        {"mlp_only_layers": [4]},
        "key 'mlp_only_layers' must be a list of layers from 0 to 3, not [4]",
    ),
    (
        NEXT,
        {"shared_expert_intermediate_size": -1},
        "key 'shared_expert_intermediate_size' must be a positive integer, not -1",
    ),
    (
        NEXT,
        {"layer_types": ["sliding_attention"] * 4},
        "layer_types holds 'sliding_attention'; known: linear_attention, full_attention",
    ),
    (
        NEXT,
        {"layer_types": ["full_attention"]},
        "layer_types has 1 entries, num_hidden_layers=4",
    ),
    (NEXT, {"linear_key_head_dim": "absent"}, "key 'linear_key_head_dim' is missing"),
    (
        NEXT,
        {"linear_num_value_heads": 3},
        "linear_num_value_heads=3 is not a multiple of linear_num_key_heads=2",
    ),
]


@pytest.mark.parametrize(("base", "changes", "message"), ERRORS)
def test_bad_config(base: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        read(base, **changes)
    assert str(error.value) == f"toy.json: {message}"


def test_error_in_a_nested_config_says_so() -> None:
    text = {**LLAMA, "hidden_size": 0}
    with pytest.raises(ModelError, match=r"^toy\.json \(text_config\): key 'hidden_size'"):
        read({"model_type": "llava", "text_config": text})


def test_transformers_builds_the_same_shapes() -> None:
    """The sum over our fused layers equals the sum over the projections transformers makes."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    toy = {**NEXT, "num_local_experts": 8, "layer_types": None, "head_dim": 8}
    for model_type in SUPPORTED:
        config = {**toy, "model_type": model_type, "architectures": None}
        sizes = {key: value for key, value in config.items() if key != "model_type"}
        reference = transformers.AutoConfig.for_model(model_type, **sizes)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(reference)
        weights = sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if ("_proj" in name and not name.endswith("bias"))
        )
        assert read(config).parameters == weights, model_type
