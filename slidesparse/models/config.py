"""From a parsed config.json to a ModelSpec, for each supported architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slidesparse.models.keys import Keys
from slidesparse.models.spec import DeltaNet, Experts, ModelSpec


@dataclass(frozen=True)
class _Family:
    """How one model_type differs from llama.

    Args:
        classes: names in "architectures" that mean this family.
        qkv_bias: key of a flag, or the flag itself.
        o_bias: likewise.
        mlp_bias: likewise.
        experts: key that holds the number of routed experts, "" for a dense family.
        expert_size: key that holds the width of one expert.
        mixed: whether decoder_sparse_step and mlp_only_layers can make some layers dense.
        shared: whether there can be an expert that every token passes.
        hybrid: whether some layers are gated DeltaNet and queries have an output gate.
        tied: whether the output head is the embedding where the config does not say.
        norms: norms of the residual stream per decoder layer.
        qk_norm: whether queries and keys have norms.
        sub_norms: whether the inputs of o and down have norms.
        window: whether a "sliding_window" counts: "all" layers, "types" that layer_types lists or
            each other layer, "switch" for those from max_window_layers on if use_sliding_window.
    """

    classes: tuple[str, ...]
    qkv_bias: str | bool = False
    o_bias: str | bool = False
    mlp_bias: str | bool = False
    experts: str = ""
    expert_size: str = "moe_intermediate_size"
    mixed: bool = True
    shared: bool = False
    hybrid: bool = False
    tied: bool = False
    norms: int = 2
    qk_norm: bool = False
    sub_norms: bool = False
    window: Literal["", "all", "types", "switch"] = ""


_FAMILIES = {
    "llama": _Family(("LlamaForCausalLM",), "attention_bias", "attention_bias", "mlp_bias"),
    "mistral": _Family(("MistralForCausalLM",), window="all"),
    "mixtral": _Family(
        ("MixtralForCausalLM",),
        experts="num_local_experts",
        expert_size="intermediate_size",
        mixed=False,
        window="all",
    ),
    "qwen2": _Family(("Qwen2ForCausalLM",), qkv_bias=True, window="switch"),
    "qwen2_moe": _Family(
        ("Qwen2MoeForCausalLM",),
        qkv_bias=True,
        experts="num_experts",
        shared=True,
        window="switch",
    ),
    "qwen3": _Family(("Qwen3ForCausalLM",), "attention_bias", qk_norm=True, window="switch"),
    "qwen3_moe": _Family(
        ("Qwen3MoeForCausalLM",),
        "attention_bias",
        experts="num_experts",
        qk_norm=True,
        window="switch",
    ),
    "qwen3_next": _Family(
        ("Qwen3NextForCausalLM",),
        "qkv_bias",
        experts="num_experts",
        shared=True,
        hybrid=True,
        qk_norm=True,
    ),
    "bitnet": _Family(("BitNetForCausalLM",), "attention_bias", "attention_bias", sub_norms=True),
    "gemma": _Family(("GemmaForCausalLM",), "attention_bias", "attention_bias", tied=True),
    "gemma2": _Family(
        ("Gemma2ForCausalLM",),
        "attention_bias",
        "attention_bias",
        tied=True,
        norms=4,
        window="types",
    ),
}

SUPPORTED = tuple(_FAMILIES)
"""Families whose linear layers are known, as config.json's model_type spells them."""


def spec_from_config(config: Mapping[str, Any], name: str, source: str, where: str) -> ModelSpec:
    """Read the sizes of a model from its configuration.

    A multimodal configuration is read from its nested "text_config": only the language model's
    layers are listed. Absent "head_dim" means hidden_size / num_attention_heads, absent
    "num_key_value_heads" means num_attention_heads, as in transformers.

    Args:
        config: the parsed config.json.
        name: for ModelSpec.name.
        source: for ModelSpec.source.
        where: what error messages call the file, for example its path.

    Raises:
        ModelError: the architecture is not supported, or a key is missing or has a bad value.
    """
    nested = config.get("text_config")
    if isinstance(nested, Mapping):
        config, where = nested, f"{where} (text_config)"
    keys = Keys(config, where)
    model_type = _model_type(keys)
    family = _FAMILIES[model_type]
    hidden, layers = keys.size("hidden_size"), keys.size("num_hidden_layers")
    heads, kv_heads, head_dim = _heads(keys, hidden)
    moe = _experts(keys, family, layers)
    some_dense = moe is None or moe.layers < layers
    window, window_layers = _window(keys, family, layers)
    return ModelSpec(
        name=name,
        architecture=model_type,
        hidden=hidden,
        layers=layers,
        intermediate=keys.size("intermediate_size", default=None if some_dense else 0),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=keys.size("vocab_size"),
        source=source,
        moe=moe,
        delta_net=_delta_net(keys, layers) if family.hybrid else None,
        output_gate=family.hybrid and keys.flag("attn_output_gate", default=True),
        qkv_bias=keys.flag_or(family.qkv_bias),
        o_bias=keys.flag_or(family.o_bias),
        mlp_bias=keys.flag_or(family.mlp_bias),
        tied=keys.flag("tie_word_embeddings", default=family.tied),
        norms=family.norms,
        qk_norm=family.qk_norm,
        sub_norms=family.sub_norms,
        window=window,
        window_layers=window_layers,
        longest=keys.size("max_position_embeddings", default=0),
    )


def _model_type(keys: Keys) -> str:
    """The family: by class name as vLLM chooses, else by model_type."""
    classes = keys.names("architectures")
    for model_type, family in _FAMILIES.items():
        if any(name in family.classes for name in classes):
            return model_type
    stated = keys.config.get("model_type")
    if isinstance(stated, str) and stated in _FAMILIES:
        return stated
    if stated is None and not classes:
        keys.fail("has neither 'model_type' nor 'architectures'; is it a model's config.json?")
    shown = " ".join(str(part) for part in (stated, *classes) if part is not None)
    keys.fail(f"architecture {shown} is not supported; supported: {', '.join(SUPPORTED)}")


def _heads(keys: Keys, hidden: int) -> tuple[int, int, int]:
    """Query heads, key/value heads and the width of one."""
    heads = keys.size("num_attention_heads")
    kv_heads = keys.size("num_key_value_heads", default=heads)
    if heads % kv_heads:
        keys.fail(
            f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}"
        )
    head_dim = keys.size("head_dim", default=0)
    if not head_dim and hidden % heads:
        keys.fail(
            f"head_dim is absent and hidden_size={hidden} is not a multiple of "
            f"num_attention_heads={heads}"
        )
    return heads, kv_heads, head_dim or hidden // heads


def _window(keys: Keys, family: _Family, layers: int) -> tuple[int, int]:
    """The sliding window and how many layers have it, by the rule of vLLM and transformers."""
    if not family.window or not keys.config.get("sliding_window"):
        return 0, 0
    if family.window == "switch" and not keys.flag("use_sliding_window"):
        return 0, 0
    types = keys.names("layer_types")
    if types and family.window != "all":
        count = types.count("sliding_attention")
    elif family.window == "types":
        count = (layers + 1) // 2
    elif family.window == "switch":
        first = keys.config.get("max_window_layers")
        count = layers - min(first, layers) if isinstance(first, int) else layers
    else:
        count = layers
    return (keys.size("sliding_window"), count) if count else (0, 0)


def _experts(keys: Keys, family: _Family, layers: int) -> Experts | None:
    """The experts, if there are any."""
    if not family.experts or keys.config.get(family.experts) == 0:
        return None
    experts, active = keys.size(family.experts), keys.size("num_experts_per_tok")
    if active > experts:
        keys.fail(f"num_experts_per_tok={active} is more than {family.experts}={experts}")
    sparse = _sparse_layers(keys, layers) if family.mixed else layers
    if not sparse:
        return None
    shared_key = "shared_expert_intermediate_size"
    has_shared = family.shared and keys.config.get(shared_key) != 0
    return Experts(
        experts=experts,
        active=active,
        intermediate=keys.size(family.expert_size),
        shared_intermediate=keys.size(shared_key, default=0) if has_shared else 0,
        layers=sparse,
    )


def _sparse_layers(keys: Keys, layers: int) -> int:
    """How many layers have experts, by the rule of vLLM and transformers."""
    step = keys.size("decoder_sparse_step", default=1)
    dense = keys.indices("mlp_only_layers", layers)
    return sum((index + 1) % step == 0 and index not in dense for index in range(layers))


def _delta_net(keys: Keys, layers: int) -> DeltaNet | None:
    """The linear-attention layers: listed by layer_types, or all but each interval-th."""
    types = keys.names("layer_types")
    if types:
        unknown = sorted(set(types) - {"linear_attention", "full_attention"})
        if unknown:
            keys.fail(f"layer_types holds {unknown[0]!r}; known: linear_attention, full_attention")
        if len(types) != layers:
            keys.fail(f"layer_types has {len(types)} entries, num_hidden_layers={layers}")
        linear = types.count("linear_attention")
    else:
        linear = layers - layers // keys.size("full_attention_interval", default=4)
    if not linear:
        return None
    key_heads = keys.size("linear_num_key_heads")
    value_heads = keys.size("linear_num_value_heads")
    if value_heads % key_heads:
        keys.fail(
            f"linear_num_value_heads={value_heads} is not a multiple of "
            f"linear_num_key_heads={key_heads}"
        )
    return DeltaNet(
        layers=linear,
        key_heads=key_heads,
        value_heads=value_heads,
        key_head_dim=keys.size("linear_key_head_dim"),
        value_head_dim=keys.size("linear_value_head_dim"),
        conv_kernel=keys.size("linear_conv_kernel_dim", default=4),
    )
