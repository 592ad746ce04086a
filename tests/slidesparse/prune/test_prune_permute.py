"""Permuting channels changes nothing that a model computes, and spreads what a pattern drops."""

import copy

import pytest
import torch
from tiny_models import KINDS, tiny_model, tiny_tokens
from torch import nn

from slidesparse.pattern import DENSE, Pattern
from slidesparse.prune.blocks import prune_block, prune_plainly
from slidesparse.prune.collect import collect_statistics
from slidesparse.prune.inputs import blocks_of, first_inputs, outputs_of, run_block
from slidesparse.prune.permute import channel_importance, deal, permute_block
from slidesparse.prune.statistics import InputStatistics
from slidesparse.recipe import Method, Recipe

COMMON = [Pattern(2, 4), Pattern(4, 6), Pattern(6, 8), Pattern(8, 10)]
PREFIX = "model.layers.0"
DOWN, OUT = f"{PREFIX}.mlp.down_proj", f"{PREFIX}.self_attn.o_proj"


def first_block(kind="Llama", **changes):
    model = tiny_model(kind, **changes).double()
    return model.model.layers[0], first_inputs(model, tiny_tokens())


def statistics_of(block, inputs):
    linears = {DOWN: block.mlp.down_proj, OUT: block.self_attn.o_proj}
    return collect_statistics(linears, Method.SPARSEGPT, lambda: outputs_of(block, inputs))


def same_up_to_order(one, other):
    """Whether two weights hold the same numbers in another order."""
    return not torch.equal(one, other) and torch.equal(
        one.flatten().sort().values, other.flatten().sort().values
    )


@pytest.mark.parametrize("pattern", COMMON, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_block_computes_the_same(kind, pattern):
    block, inputs = first_block(kind)
    before, weights = run_block(block, inputs), copy.deepcopy(block.state_dict())
    permute_block(block, PREFIX, Recipe(pattern), statistics_of(block, inputs))
    for made, expected in zip(run_block(block, inputs), before, strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
    for name, weight in block.state_dict().items():
        moved = name.split(".")[1] in ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        assert same_up_to_order(weight, weights[name]) == moved, name


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_any_grouping_of_heads_and_biases(kv_heads, bias):
    block, inputs = first_block(num_key_value_heads=kv_heads, attention_bias=bias, mlp_bias=bias)
    before = run_block(block, inputs)
    permute_block(block, PREFIX, Recipe(Pattern(6, 8)), statistics_of(block, inputs))
    made = torch.cat(run_block(block, inputs))
    torch.testing.assert_close(made, torch.cat(before), rtol=1e-12, atol=1e-12)


def test_statistics_follow():
    block, inputs = first_block()
    made = permute_block(block, PREFIX, Recipe(Pattern(6, 8)), statistics_of(block, inputs))
    for name, fresh in statistics_of(block, inputs).items():
        torch.testing.assert_close(made[name].norms, fresh.norms)
        torch.testing.assert_close(made[name].hessian, fresh.hessian)


@pytest.mark.parametrize("k", [24, 25, 31, 88, 5])
def test_cards_are_dealt(k):
    importance = torch.arange(k, dtype=torch.float32)[torch.randperm(k)]
    order = deal(importance, Pattern(6, 8))
    assert order.sort().values.tolist() == list(range(k))
    ranks = (k - 1 - importance[order]).long()
    whole, short = k // 8, k % 8
    # The strongest go to the short block; of the rest every block has one of each level.
    assert sorted(ranks[k - short :].tolist()) == list(range(short))
    levels = (ranks[: k - short].reshape(whole, 8) - short) // max(1, whole)
    assert (levels.sort(dim=1).values == torch.arange(8)).all()


def test_equal_importance_is_dealt_the_same_every_time():
    order = deal(torch.ones(16), Pattern(6, 8))
    assert order.tolist() == [*range(0, 16, 2), *range(1, 16, 2)]


def test_importance_is_summed_over_rows(seed):
    w, x = torch.randn(7, 12), torch.randn(50, 12)
    statistics = InputStatistics(12)
    statistics.update(x)
    expected = (w.abs() * x.norm(dim=0)).sum(dim=0)
    torch.testing.assert_close(channel_importance(w, statistics), expected)
    torch.testing.assert_close(channel_importance(w, None), w.abs().sum(dim=0))


@pytest.mark.parametrize("method", list(Method))
def test_less_is_lost_where_strong_channels_lie_together(method):
    """Blocks of strong channels only, as no real model has them that clearly."""
    errors = {}
    for permute in (False, True):
        block, inputs = first_block()
        with torch.no_grad():
            block.mlp.down_proj.weight *= torch.logspace(1, -2, 88)
        reports = {}
        prune_block(
            block,
            PREFIX,
            inputs,
            Recipe(Pattern(2, 4), method),
            permute=permute,
            report=lambda it, made=reports: made.update({it.name: it.error}),
        )
        errors[permute] = reports[DOWN]
    assert errors[True] < 0.5 * errors[False]


def test_magnitude_permutes_by_the_weights_alone():
    block, _ = first_block()
    twin = copy.deepcopy(block)
    recipe = Recipe(Pattern(6, 8), Method.MAGNITUDE)
    permute_block(twin, PREFIX, recipe, {})
    prune_plainly(twin, PREFIX, recipe)
    prune_plainly(block, PREFIX, recipe, permute=True)
    for name, weight in block.state_dict().items():
        assert torch.equal(weight, twin.state_dict()[name])


@pytest.mark.parametrize("recipe", [Recipe(DENSE), Recipe(Pattern(6, 8), keep=("o_proj", DOWN))])
def test_linears_that_are_not_pruned_stay_in_order(recipe):
    block, _ = first_block()
    before = copy.deepcopy(block.state_dict())
    permute_block(block, PREFIX, recipe, {})
    assert all(torch.equal(weight, before[name]) for name, weight in block.state_dict().items())


def norm_inside(block):
    block.mlp.sub_norm = nn.LayerNorm(88)
    block.self_attn.v_norm = nn.LayerNorm(16)


def parameter_inside(block):
    block.mlp.scale = nn.Parameter(torch.ones(88))
    block.self_attn.scale = nn.Parameter(torch.ones(16))


def learned_activation(block):
    block.mlp.act_fn = nn.PReLU(88)
    block.self_attn.head_dim = None


def gated(block):
    """A q_proj that also makes a gate on the attention's output; an MLP with a fused half."""
    block.self_attn.q_proj = nn.Linear(48, 128)
    block.mlp.up_proj = nn.Linear(48, 176)


def not_linear(block):
    block.self_attn.v_proj = nn.Sequential(block.self_attn.v_proj)
    block.mlp.down_proj = nn.Sequential(block.mlp.down_proj)


def without(block):
    block.mlp = None
    block.self_attn = None


@pytest.mark.parametrize(
    "change", [norm_inside, parameter_inside, learned_activation, gated, not_linear, without]
)
def test_blocks_in_which_channels_are_not_independent_stay_in_order(change):
    block, _ = first_block()
    change(block)
    before = copy.deepcopy(block.state_dict())
    permute_block(block, PREFIX, Recipe(Pattern(6, 8)), {})
    assert all(torch.equal(weight, before[name]) for name, weight in block.state_dict().items())


def test_a_pruned_and_permuted_model_differs_only_by_pruning():
    """Layers further on meet the same channels: only v, gate, up and what follows them moved."""
    model = tiny_model().double()
    twin, tokens = copy.deepcopy(model), tiny_tokens()
    for index, block in enumerate(blocks_of(model)):
        permute_block(block, f"model.layers.{index}", Recipe(Pattern(2, 4)), {})
    torch.testing.assert_close(model(tokens).logits, twin(tokens).logits, rtol=1e-10, atol=1e-10)
