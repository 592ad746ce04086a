"""Shapes of the presets against public facts, tensor parallelism, experts, 32-bit limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slidesparse.errors import ModelError
from slidesparse.models import (
    DeltaNet,
    Experts,
    LinearLayer,
    ModelSpec,
    int32_overflows,
    load_model,
    preset_names,
)
from slidesparse.pattern import DENSE, Pattern, parse_patterns
from slidesparse.problem import INT32_MAX, SWEEP_M

Shape = tuple[int, int, int]

SHAPES: dict[str, dict[str, Shape]] = {
    "llama3.2-1b": {
        "qkv": (3072, 2048, 16),
        "o": (2048, 2048, 16),
        "gate_up": (16384, 2048, 16),
        "down": (2048, 8192, 16),
    },
    "llama3.2-3b": {
        "qkv": (5120, 3072, 28),
        "o": (3072, 3072, 28),
        "gate_up": (16384, 3072, 28),
        "down": (3072, 8192, 28),
    },
    "llama3.1-8b": {
        "qkv": (6144, 4096, 32),
        "o": (4096, 4096, 32),
        "gate_up": (28672, 4096, 32),
        "down": (4096, 14336, 32),
    },
    "qwen2.5-7b": {
        "qkv": (4608, 3584, 28),
        "o": (3584, 3584, 28),
        "gate_up": (37888, 3584, 28),
        "down": (3584, 18944, 28),
    },
    "qwen2.5-14b": {
        "qkv": (7168, 5120, 48),
        "o": (5120, 5120, 48),
        "gate_up": (27648, 5120, 48),
        "down": (5120, 13824, 48),
    },
    "qwen3-8b": {
        "qkv": (6144, 4096, 36),
        "o": (4096, 4096, 36),
        "gate_up": (24576, 4096, 36),
        "down": (4096, 12288, 36),
    },
    "qwen3-14b": {
        "qkv": (7168, 5120, 40),
        "o": (5120, 5120, 40),
        "gate_up": (34816, 5120, 40),
        "down": (5120, 17408, 40),
    },
    "bitnet-2b": {
        "qkv": (3840, 2560, 30),
        "o": (2560, 2560, 30),
        "gate_up": (13824, 2560, 30),
        "down": (2560, 6912, 30),
    },
    "qwen3-30b-a3b": {
        "qkv": (5120, 2048, 48),
        "o": (2048, 4096, 48),
        "expert_gate_up": (1536, 2048, 48 * 128),
        "expert_down": (2048, 768, 48 * 128),
    },
    "qwen3-next-80b-a3b": {
        "qkv": ((2 * 16 + 2 * 2) * 256, 2048, 12),
        "o": (2048, 4096, 12),
        "in_proj_qkvz": (2 * 16 * 128 + 2 * 32 * 128, 2048, 36),
        "in_proj_ba": (64, 2048, 36),
        "out_proj": (2048, 4096, 36),
        "shared_gate_up": (1024, 2048, 48),
        "shared_down": (2048, 512, 48),
        "expert_gate_up": (1024, 2048, 48 * 512),
        "expert_down": (2048, 512, 48 * 512),
    },
}
"""(N, K, count) of every linear of every preset."""

PUBLISHED = {
    "llama3.2-1b": (1_235_814_400, True),
    "llama3.2-3b": (3_212_749_824, True),
    "llama3.1-8b": (8_030_261_248, False),
    "qwen2.5-7b": (7_615_616_512, False),
    "qwen2.5-14b": (14_770_033_664, False),
    "qwen3-8b": (8_190_735_360, False),
    "qwen3-14b": (14_768_307_200, False),
    "bitnet-2b": (2_412_820_480, True),
    "qwen3-30b-a3b": (30_532_122_624, False),
    "qwen3-next-80b-a3b": (79_674_391_296, False),
}
"""Parameters of each published checkpoint (its safetensors header), and whether lm_head is tied."""


def shapes(layers: tuple[LinearLayer, ...]) -> dict[str, Shape]:
    return {layer.name: (layer.n, layer.k, layer.count) for layer in layers}


def unlisted_parameters(spec: ModelSpec, tied: bool) -> int:
    """What a checkpoint holds besides its linears: embeddings, norms, biases, routers, decays."""
    embeddings = spec.vocab * spec.hidden * (1 if tied else 2)
    norms = (2 * spec.layers + 1) * spec.hidden
    if spec.architecture.startswith("qwen3"):
        norms += spec.attention_layers * 2 * spec.head_dim
    if spec.architecture == "bitnet":
        norms += spec.layers * (spec.hidden + spec.intermediate)
    biases = sum(layer.n * layer.count for layer in spec.linears() if layer.bias)
    moe, net = spec.moe, spec.delta_net
    routers = moe.layers * moe.experts * spec.hidden if moe else 0
    if moe and moe.shared_intermediate:
        routers += moe.layers * spec.hidden
    if net:
        convolution = 4 * (2 * net.key_width + net.value_width)
        norms += net.layers * (convolution + 2 * net.value_heads + net.value_head_dim)
    return embeddings + norms + biases + routers


def test_presets_are_those_of_the_table() -> None:
    assert set(preset_names()) == set(SHAPES) == set(PUBLISHED)


@pytest.mark.parametrize("name", SHAPES)
def test_preset_linears(name: str) -> None:
    spec = load_model(name)
    assert spec.name == name
    assert shapes(spec.linears()) == SHAPES[name]
    assert spec.parameters == sum(n * k * count for n, k, count in SHAPES[name].values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_adds_up_to_the_published_checkpoint(name: str) -> None:
    total, tied = PUBLISHED[name]
    spec = load_model(name)
    assert spec.parameters + unlisted_parameters(spec, tied) == total


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B"),
        ("bitnet-2b", "microsoft/bitnet-b1.58-2B-4T"),
        ("qwen3-next-80b-a3b", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
    ],
)
def test_preset_names_its_source(name: str, source: str) -> None:
    assert load_model(name).source == source


def test_only_qwen2_presets_have_biases() -> None:
    with_bias = {
        (name, layer.name)
        for name in preset_names()
        for layer in load_model(name).linears()
        if layer.bias
    }
    assert with_bias == {("qwen2.5-7b", "qkv"), ("qwen2.5-14b", "qkv")}


@pytest.mark.parametrize(
    ("name", "tp", "expected"),
    [
        ("qwen2.5-7b", 2, {"qkv": (2304, 3584), "o": (3584, 1792)}),
        ("qwen2.5-7b", 4, {"gate_up": (9472, 3584), "down": (3584, 4736)}),
        ("llama3.1-8b", 8, {"qkv": (768, 4096), "o": (4096, 512), "gate_up": (3584, 4096)}),
        # 8 key/value heads on 16 and 32 ranks: one replicated key and value head each.
        ("llama3.1-8b", 16, {"qkv": ((2 + 1 + 1) * 128, 4096), "o": (4096, 256)}),
        ("llama3.1-8b", 32, {"qkv": ((1 + 1 + 1) * 128, 4096), "down": (4096, 448)}),
        ("qwen3-30b-a3b", 8, {"qkv": ((4 + 2) * 128, 2048), "expert_gate_up": (192, 2048)}),
        ("qwen3-30b-a3b", 8, {"expert_down": (2048, 96), "o": (2048, 512)}),
        ("qwen3-next-80b-a3b", 2, {"qkv": ((16 + 2) * 256, 2048), "in_proj_qkvz": (6144, 2048)}),
        ("qwen3-next-80b-a3b", 4, {"qkv": ((8 + 2) * 256, 2048), "in_proj_ba": (16, 2048)}),
        ("qwen3-next-80b-a3b", 8, {"qkv": ((4 + 2) * 256, 2048), "out_proj": (2048, 512)}),
        ("qwen3-next-80b-a3b", 8, {"shared_gate_up": (128, 2048), "shared_down": (2048, 64)}),
    ],
)
def test_tensor_parallel_shapes(name: str, tp: int, expected: dict[str, tuple[int, int]]) -> None:
    found = {layer.name: (layer.n, layer.k) for layer in load_model(name).linears(tp)}
    assert expected.items() <= found.items()


@pytest.mark.parametrize("name", SHAPES)
def test_tensor_parallel_keeps_counts_and_never_loses_weights(name: str) -> None:
    spec = load_model(name)
    whole = {layer.name: layer for layer in spec.linears()}
    for tp in spec.tp_sizes():
        for layer in spec.linears(tp):
            assert layer.count == whole[layer.name].count
            held = tp * layer.parameters
            if layer.name == "qkv" and tp > spec.kv_heads:
                assert held > whole["qkv"].parameters
            else:
                assert held == whole[layer.name].parameters


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("qwen2.5-7b", (1, 2, 4)),
        ("bitnet-2b", (1,)),
        ("llama3.2-3b", (1, 2, 4, 8)),
        ("qwen3-next-80b-a3b", (1, 2, 4, 8, 16)),
    ],
)
def test_possible_tensor_parallel_sizes(name: str, sizes: tuple[int, ...]) -> None:
    assert load_model(name).tp_sizes() == sizes


BASE = ModelSpec("toy", "llama", 64, 2, 96, 12, 6, 8, 100, "here")
MOE = Experts(experts=2, active=1, intermediate=32, shared_intermediate=0, layers=2)
NET = DeltaNet(layers=1, key_heads=4, value_heads=12, key_head_dim=8, value_head_dim=8)


@pytest.mark.parametrize(
    ("spec", "tp", "message"),
    [
        (BASE, 0, "tp=0 is not a positive number of GPUs for the layers of toy"),
        (BASE, 5, "tp=5 does not divide num_attention_heads=12 of toy"),
        (BASE, 4, "tp=4 does not divide num_key_value_heads=6 of toy"),
        (replace(BASE, kv_heads=4), 6, "tp=6 is not a multiple of num_key_value_heads=4 of toy"),
        (replace(BASE, intermediate=97), 2, "tp=2 does not divide intermediate_size=97 of toy"),
        (
            replace(BASE, moe=replace(MOE, intermediate=33)),
            2,
            "tp=2 does not divide the experts' intermediate size=33 of toy",
        ),
        (
            replace(BASE, moe=replace(MOE, shared_intermediate=7)),
            2,
            "tp=2 does not divide shared_expert_intermediate_size=7 of toy",
        ),
        (
            replace(BASE, moe=replace(MOE, intermediate=33)),
            3,
            "tp=3 is larger than num_experts=2 of toy",
        ),
        (replace(BASE, delta_net=NET), 6, "tp=6 does not divide linear_num_key_heads=4 of toy"),
    ],
)
def test_impossible_tensor_parallel_size(spec: ModelSpec, tp: int, message: str) -> None:
    sizes = ", ".join(map(str, spec.tp_sizes()))
    with pytest.raises(ModelError) as error:
        spec.linears(tp)
    assert str(error.value) == f"{message}; use a tensor-parallel size of: {sizes}"
    assert tp not in spec.tp_sizes()


def test_dense_layers_of_a_mixture_are_listed_beside_its_experts() -> None:
    spec = replace(BASE, layers=5, moe=replace(MOE, layers=3, shared_intermediate=16))
    assert shapes(spec.linears()) == {
        "qkv": ((12 + 6 + 6) * 8, 64, 5),
        "o": (64, 96, 5),
        "gate_up": (192, 64, 2),
        "down": (64, 96, 2),
        "shared_gate_up": (32, 64, 3),
        "shared_down": (64, 16, 3),
        "expert_gate_up": (64, 64, 6),
        "expert_down": (64, 32, 6),
    }
    kinds = [layer.kind for layer in spec.linears()]
    assert kinds == ["dense"] * 4 + ["shared"] * 2 + ["expert"] * 2


def test_mlp_bias_belongs_to_the_dense_mlp_only() -> None:
    spec = replace(BASE, layers=5, moe=replace(MOE, layers=3), mlp_bias=True)
    assert [layer.name for layer in spec.linears() if layer.bias] == ["gate_up", "down"]


@pytest.mark.parametrize(("m", "rows"), [(1, 1), (16, 1), (17, 2), (1024, 64), (16384, 1024)])
def test_routed_rows_of_an_expert(m: int, rows: int) -> None:
    expert = load_model("qwen3-30b-a3b").linears()[-1]
    assert (expert.kind, expert.experts, expert.active) == ("expert", 128, 8)
    assert expert.rows(m) == rows
    assert expert.grouped_rows(m) == 8 * m


def test_rows_of_a_dense_layer_are_the_tokens() -> None:
    qkv = load_model("qwen2.5-7b").linears()[0]
    assert (qkv.experts, qkv.active) == (0, 0)
    assert qkv.rows(129) == qkv.grouped_rows(129) == 129


def test_qwen_gate_up_passes_int32_at_the_largest_m() -> None:
    layers = load_model("qwen2.5-7b").linears()
    patterns = parse_patterns("dense,2:4,4:6,6:8,8:10")
    (found,) = int32_overflows(layers, SWEEP_M, patterns)
    assert (found.layer, found.m, found.tensor, found.pattern) == ("gate_up", 65536, "output", None)
    assert found.elements == 2_483_027_968


def test_lifted_input_can_pass_int32_where_the_dense_one_does_not() -> None:
    layer = LinearLayer("down", 16, 30000, 1)
    found = int32_overflows([layer], [65536], [DENSE, Pattern(6, 8), Pattern(2, 4)])
    assert [(hit.tensor, str(hit.pattern)) for hit in found] == [("input", "6:8")]
    assert found[0].elements == 65536 * 45024  # 3750 blocks of 12, padded to a multiple of 32


@pytest.mark.parametrize(("n", "flagged"), [(INT32_MAX, False), (INT32_MAX + 1, True)])
def test_int32_limit_is_inclusive(n: int, flagged: bool) -> None:
    assert bool(int32_overflows([LinearLayer("edge", n, 1, 1)], [1], [DENSE])) is flagged


def test_experts_are_checked_with_all_routed_copies() -> None:
    layers = load_model("qwen3-next-80b-a3b").linears()
    (found,) = int32_overflows(layers, [65536], [Pattern(8, 10)])
    assert (found.layer, found.rows, found.columns) == ("expert_gate_up", 655360, 3296)
