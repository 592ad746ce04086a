"""Groups: what runs as one GEMM shares a pattern; what does not fit stays out and is named."""

from __future__ import annotations

import pytest
import tiny_models
from torch import nn

from slidesparse.accuracy.groups import Group, group_linears
from slidesparse.errors import ModelError
from slidesparse.models import spec_from_config
from slidesparse.pattern import Pattern
from slidesparse.prune.model import linears_of
from slidesparse.recipe import Recipe

NOTHING = Recipe(keep=())


def named(**shapes: tuple[int, int]) -> dict[str, nn.Linear]:
    """Linears [N, K] by name, "__" for a dot."""
    return {
        name.replace("__", "."): nn.Linear(k, n, device="meta") for name, (n, k) in shapes.items()
    }


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_every_block_of_a_real_architecture_has_four_groups(kind: str) -> None:
    model = tiny_models.tiny_model(kind)
    grouping = group_linears(linears_of(model), NOTHING)
    layers = model.config.num_hidden_layers
    assert not grouping.left_out
    expected = [(b, name) for b in range(layers) for name in ("qkv", "o", "gate_up", "down")]
    assert [(group.block, group.name) for group in grouping.groups] == expected
    members = [name for group in grouping.groups for name in group.linears]
    assert sorted(members) == sorted(linears_of(model))
    qkv = grouping.groups[0]
    prefix = "model.layers.0.self_attn."
    assert qkv.linears == tuple(prefix + part for part in ("q_proj", "k_proj", "v_proj"))
    assert str(qkv) == "block 0 qkv"


def test_shapes_are_those_that_the_search_tunes() -> None:
    model = tiny_models.tiny_model("Llama")
    config = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    spec = spec_from_config(config, "tiny", "tiny", "tiny")
    searched = {layer.name: (layer.n, layer.k) for layer in spec.linears()}
    groups = group_linears(linears_of(model), NOTHING).groups
    assert {group.name: group.shape for group in groups} == searched


def test_a_kept_linear_keeps_its_group() -> None:
    model = tiny_models.tiny_model("Llama")
    grouping = group_linears(linears_of(model), Recipe(keep=("k_proj", "model.layers.1.*")))
    assert {(g.block, g.name) for g in grouping.groups} == {
        (b, name) for b in (0, 2) for name in ("o", "gate_up", "down")
    }
    assert "model.layers.0.self_attn.q_proj" in grouping.left_out
    assert sum(name.startswith("model.layers.1.") for name in grouping.left_out) == 7


def test_rows_are_stacked_in_the_order_of_the_engine() -> None:
    linears = named(
        model__layers__0__mlp__up_proj=(6, 4),
        model__layers__0__mlp__gate_proj=(6, 4),
        model__layers__0__mlp__down_proj=(4, 6),
    )
    grouping = group_linears(linears, NOTHING)
    up = ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj")
    assert grouping.groups[0] == Group(0, "gate_up", up, 12, 4)


def test_blocks_are_in_the_order_of_numbers() -> None:
    linears = named(**{f"model__layers__{b}__mlp__down_proj": (4, 4) for b in (10, 2, 0)})
    assert [group.block for group in group_linears(linears, NOTHING).groups] == [0, 2, 10]


def test_experts_and_the_unknown_are_left_out() -> None:
    linears = named(
        model__layers__0__self_attn__o_proj=(4, 4),
        model__layers__0__mlp__experts__0__down_proj=(4, 4),
        model__layers__0__mlp__experts__11__gate_proj=(4, 4),
        model__layers__0__mlp__shared_expert__down_proj=(4, 4),
        model__layers__0__self_attn__kv_a_proj=(4, 4),
        lm_head=(9, 4),
    )
    grouping = group_linears(linears, NOTHING)
    assert [group.name for group in grouping.groups] == ["o"]
    assert len(grouping.left_out) == 5


def test_nothing_to_group() -> None:
    with pytest.raises(ModelError, match=r"none of the 1 linears is one of q_proj, .* keep fewer"):
        group_linears(named(transformer__h__0__c_attn=(4, 4)), NOTHING)
    model = tiny_models.tiny_model("Llama")
    with pytest.raises(ModelError, match="none of the 21 linears"):
        group_linears(linears_of(model), Recipe(keep=("*",)))


def test_fused_linears_of_different_width() -> None:
    linears = named(model__layers__3__mlp__gate_proj=(6, 4), model__layers__3__mlp__up_proj=(6, 5))
    with pytest.raises(ModelError, match=r"block 3: .*up_proj have \[4, 5\] input channels"):
        group_linears(linears, NOTHING)


def test_a_group_can_be_looked_up() -> None:
    group = Group(0, "o", ("a",), 4, 4)
    assert {group: Pattern.parse("6:8")}[Group(0, "o", ("a",), 4, 4)] == Pattern.parse("6:8")
