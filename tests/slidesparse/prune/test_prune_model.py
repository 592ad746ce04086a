"""A whole model is pruned block after block, lm_head last, and what does not fit is refused."""

import copy

import pytest
import torch
from tiny_models import KINDS, tiny_model, tiny_tokens

from slidesparse.errors import CalibrationError, ModelError, RecipeError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.prune.blocks import prune_block
from slidesparse.prune.inputs import blocks_of, first_inputs, run_block
from slidesparse.prune.methods import prune_weight
from slidesparse.prune.model import linears_of, prune_model
from slidesparse.prune.statistics import InputStatistics
from slidesparse.recipe import Method, Recipe
from slidesparse.slide import detect_pattern

SIX = Pattern(6, 8)
COMMON = [Pattern(2, 4), Pattern(4, 6), SIX, Pattern(8, 10)]


def test_linears_in_the_order_they_run():
    model = tiny_model()
    found = linears_of(model)
    names = list(found)
    assert len(names) == 3 * 7
    assert names[:2] == ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"]
    assert names[-1] == "model.layers.2.mlp.down_proj"
    assert all(found[name] is model.get_submodule(name) for name in names)


def test_the_recipe_decides_which_linears():
    model = tiny_model()
    assert list(linears_of(model, Recipe())) == list(linears_of(model))
    assert list(linears_of(model, Recipe(keep=())))[-1] == "lm_head"
    assert len(linears_of(model, Recipe(keep=("lm_head", "v_proj")))) == 3 * 6


@torch.no_grad()
@pytest.mark.parametrize("pattern", COMMON, ids=str)
@pytest.mark.parametrize("method", list(Method))
def test_every_linear_satisfies_its_pattern(method, pattern):
    model, tokens = tiny_model(), tiny_tokens()
    kept = model.lm_head.weight.clone()
    reports = prune_model(model, Recipe(pattern, method), tokens)
    assert list(reports) == list(linears_of(model))
    for name, linear in linears_of(model).items():
        assert detect_pattern(linear.weight) == pattern
        assert reports[name].zeros == pytest.approx(float((linear.weight == 0).double().mean()))
        assert 0 < reports[name].error < 1
    assert torch.equal(model.lm_head.weight, kept)
    assert model(tokens).logits.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_is_pruned(kind):
    model = tiny_model(kind)
    reports = prune_model(model, Recipe(SIX, Method.SPARSEGPT), tiny_tokens(), permute=True)
    assert len(reports) == 7 * len(blocks_of(model))


def test_blocks_are_calibrated_on_pruned_ones():
    model, tokens = tiny_model(), tiny_tokens()
    twin = copy.deepcopy(model)
    recipe = Recipe(SIX, Method.SPARSEGPT, dtype=DType.FP8)
    prune_model(model, recipe, tokens, quantise=True)
    inputs = first_inputs(twin, tokens)
    for index, block in enumerate(blocks_of(twin)):
        inputs = prune_block(block, f"model.layers.{index}", inputs, recipe, quantise=True)
    for name, w in model.state_dict().items():
        assert torch.equal(w, twin.state_dict()[name]), name


def test_progress_is_told_after_every_block():
    told = []
    prune_model(tiny_model(), Recipe(SIX), tiny_tokens(), progress=lambda *it: told.append(it))
    assert told == [(1, 3, "model.layers.0"), (2, 3, "model.layers.1"), (3, 3, "model.layers.2")]


@torch.no_grad()
@pytest.mark.parametrize("method", list(Method))
def test_lm_head_is_pruned_by_its_own_inputs(method):
    model, tokens = tiny_model(), tiny_tokens()
    before = model.lm_head.weight.clone()
    reports = prune_model(model, Recipe(SIX, method, keep=()), tokens)
    inputs = first_inputs(model, tokens)
    for block in blocks_of(model):
        inputs = inputs.after(run_block(block, inputs))
    statistics = InputStatistics(48, gram=True)
    for hidden in inputs.hidden:
        statistics.update(model.model.norm(hidden))
    assert torch.equal(model.lm_head.weight, prune_weight(before, SIX, method, statistics))
    assert list(reports)[-1] == "lm_head"


def test_magnitude_needs_no_tokens():
    model = tiny_model()
    reports = prune_model(model, Recipe(SIX, Method.MAGNITUDE, keep=()), permute=True)
    assert len(reports) == 3 * 7 + 1
    assert {it.measure for it in reports.values()} == {"weight"}


@torch.no_grad()
def test_sparsegpt_loses_least(seed):
    """In what the model says, by the divergence from the dense model's predictions."""
    lost = {}
    tokens, fresh = tiny_tokens(16, 32), tiny_tokens(8, 32, seed=77)
    dense = tiny_model()(fresh).logits.log_softmax(dim=-1)
    for method in Method:
        model = tiny_model()
        prune_model(model, Recipe(SIX, method), tokens)
        made = model(fresh).logits.log_softmax(dim=-1)
        lost[method] = float((dense.exp() * (dense - made)).sum(dim=-1).mean())
    assert lost[Method.SPARSEGPT] < lost[Method.WANDA] < lost[Method.MAGNITUDE]


def test_a_dense_recipe_changes_nothing():
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    assert prune_model(model, Recipe(DENSE), tiny_tokens()) == {}
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())


@pytest.mark.parametrize("method", [Method.WANDA, Method.SPARSEGPT])
def test_calibrated_methods_ask_for_tokens(method):
    with pytest.raises(CalibrationError, match=f"{method} needs calibration tokens; give text or"):
        prune_model(tiny_model(), Recipe(SIX, method))


def test_names_that_do_not_exist_are_refused():
    layers = {"model.layers.7.mlp.up_proj": SIX, "model.layers.0.mlp.up_proj": SIX, "up": SIX}
    with pytest.raises(
        RecipeError,
        match=r"names 2 linears that LlamaForCausalLM does not have, model\.layers\.7\.mlp\.up_pro",
    ):
        prune_model(tiny_model(), Recipe(layers=layers, method=Method.MAGNITUDE))


def test_a_head_that_is_tied_to_the_embedding_is_refused():
    model = tiny_model(tie_word_embeddings=True)
    with pytest.raises(RecipeError, match=r"lm_head shares its weight .* keep lm_head"):
        prune_model(model, Recipe(SIX, Method.MAGNITUDE, keep=()))


def test_other_models_are_refused():
    with pytest.raises(ModelError, match=r"Linear has no decoder blocks in model\.layers"):
        prune_model(torch.nn.Linear(2, 2), Recipe(SIX, Method.MAGNITUDE))
