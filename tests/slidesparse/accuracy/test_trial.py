"""Trials: the loss is that of the pruned model, and the model is given back as it was."""

from __future__ import annotations

import copy

import pytest
import tiny_models
import torch

from slidesparse.accuracy.partial import PartialModel
from slidesparse.accuracy.trial import Trials
from slidesparse.errors import RecipeError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.prune.model import linears_of, prune_model
from slidesparse.recipe import Method, Recipe

SIX = Pattern.parse("6:8")
CALIBRATION = tiny_models.tiny_tokens(4, 20, seed=41)
HELD_OUT = tiny_models.tiny_tokens(5, 16, seed=42)


def trials_of(model: torch.nn.Module) -> Trials:
    return Trials(model, linears_of(model), CALIBRATION, HELD_OUT)


@pytest.mark.parametrize("method", Method)
def test_the_losses_are_those_of_the_pruned_model(method: Method) -> None:
    model = tiny_models.tiny_model()
    pruned = copy.deepcopy(model)
    recipe = Recipe(SIX, method, None, layers={"model.layers.1.mlp.down_proj": DENSE})
    prune_model(pruned, recipe, CALIBRATION)
    trials = trials_of(model)
    dense = trials.dense_losses()
    assert trials.losses(recipe) == PartialModel(pruned).losses(HELD_OUT)
    assert trials.dense_losses() == dense
    assert len(dense) == 5
    assert trials.losses(recipe) != dense


def test_progress_is_reported_per_block() -> None:
    seen: list[tuple[int, int, str]] = []
    recipe = Recipe(SIX, Method.MAGNITUDE, None)
    trials_of(tiny_models.tiny_model()).losses(recipe, lambda *step: seen.append(step))
    assert seen == [(i + 1, 3, f"model.layers.{i}") for i in range(3)]


def test_weights_come_back_after_a_failure() -> None:
    model = tiny_models.tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    trials = trials_of(model)
    with pytest.raises(Exception, match="NaN") as caught:
        trials.losses(Recipe(SIX, Method.SPARSEGPT, None))
    assert not isinstance(caught.value, AssertionError)
    after = model.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert changed == ["model.layers.1.mlp.down_proj.weight"]


def test_a_recipe_for_another_model() -> None:
    with pytest.raises(RecipeError, match="names 1 linears that LlamaForCausalLM does not have"):
        trials_of(tiny_models.tiny_model()).losses(Recipe(SIX, layers={"model.layers.7.x": SIX}))
