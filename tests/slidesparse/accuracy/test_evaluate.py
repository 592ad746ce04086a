"""Variants of one model: each is what pruning and quantising by hand give, none leaves a trace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from eval_models import learned_model, make_text, make_tokenizer
from tiny_models import tiny_model

from slidesparse.accuracy import evaluate as module
from slidesparse.accuracy.evaluate import Outcome, Variant, evaluate, variants
from slidesparse.accuracy.text import Window, evaluation_windows
from slidesparse.errors import CalibrationError, RecipeError
from slidesparse.kernels.reference import quantize
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.prune.model import linears_of, prune_model
from slidesparse.recipe import Method, Recipe
from slidesparse.tensors import TORCH_DTYPES

P24, P68 = Pattern.parse("2:4"), Pattern.parse("6:8")


@pytest.fixture(scope="module")
def learned() -> Any:
    return learned_model()


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    ids = torch.tensor(make_tokenizer()(make_text(900, seed=7))["input_ids"])
    return evaluation_windows(ids, 48)


@pytest.fixture(scope="module")
def calibration() -> torch.Tensor:
    ids = make_tokenizer()(make_text(32 * 40, seed=8))["input_ids"]
    return torch.tensor(ids).view(32, 40)


@pytest.fixture
def untouched(learned: Any) -> Iterator[None]:
    before = deepcopy(learned.state_dict())
    yield
    after = learned.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for _, linear in learned.named_modules():
        assert "forward" not in linear.__dict__


def by_hand(
    model: Any, windows: list[Window], variant: Variant, calibration: torch.Tensor | None
) -> float:
    """The mean loss of a copy that was pruned and whose weights and inputs were rounded."""
    made = deepcopy(model)
    if variant.method is not None:
        prune_model(made, Recipe(variant.pattern, variant.method, None), calibration)
    for linear in linears_of(made).values() if variant.dtype else ():
        q, scale = quantize(linear.weight.data, TORCH_DTYPES[variant.dtype])  # type: ignore[index]
        linear.weight.data = q.float() * scale[:, None]

        def rounded(_: Any, args: tuple[torch.Tensor], dtype: Any = variant.dtype) -> Any:
            q, scale = quantize(args[0].reshape(-1, args[0].shape[-1]), TORCH_DTYPES[dtype])
            return ((q.float() * scale[:, None]).reshape(args[0].shape),)

        linear.register_forward_pre_hook(rounded)
    losses = []
    for window in windows:
        with torch.no_grad():
            logits = made(input_ids=window.tokens[None]).logits[0, :-1].double()
        losses.append(
            torch.nn.functional.cross_entropy(logits, window.tokens[1:], reduction="none")
        )
    return float(torch.cat(losses).mean())


@pytest.mark.usefixtures("untouched")
def test_every_variant_is_what_it_says(
    learned: Any, windows: list[Window], calibration: torch.Tensor
) -> None:
    wanted = variants((DENSE, P24, P68), tuple(Method), (None, DType.FP8, DType.INT8))
    assert len(wanted) == 3 + 2 * 3 * 3
    found = list(evaluate(learned, windows, wanted, calibration, batch=4))
    assert [outcome.variant for outcome in found] == list(wanted)
    for outcome in found:
        variant = outcome.variant
        tokens = calibration if variant.calibrated else None
        loss = by_hand(learned, windows, variant, tokens)
        assert outcome.metrics.loss == pytest.approx(loss, rel=2e-4), str(variant)
        assert outcome.zeros == pytest.approx(float(variant.pattern.zeros), abs=1e-3)
    _sensible(found)


def _sensible(found: list[Outcome]) -> None:
    """On a model that has learned something: what has to be worse is worse."""
    by = {str(outcome.variant): outcome.metrics for outcome in found}
    assert by["dense"].perplexity < 20, "90 words, nearly all of it learned"
    assert by["dense"].kl == 0
    for method in Method:
        assert by["dense"].loss < by[f"6:8 {method}"].loss < by[f"2:4 {method}"].loss
        assert by[f"6:8 {method}"].kl < by[f"2:4 {method}"].kl
    assert by["2:4 sparsegpt"].loss < by["2:4 magnitude"].loss
    for dtype in ("fp8_e4m3", "int8"):
        assert by[f"dense {dtype}"].agreement > by["2:4 wanda"].agreement


@pytest.mark.usefixtures("untouched")
def test_variants_of_one_pruning_are_pruned_once(
    learned: Any,
    windows: list[Window],
    calibration: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    def counted(model: Any, recipe: Recipe, *rest: Any, **named: Any) -> Any:
        calls.append(f"{recipe.pattern} {recipe.method}")
        return prune_model(model, recipe, *rest, **named)

    monkeypatch.setattr(module, "prune_model", counted)
    methods = (Method.MAGNITUDE, Method.WANDA)
    wanted = variants((DENSE, P68), methods, (None, DType.FP8, DType.INT8))
    found = list(evaluate(learned, windows[:2], wanted, calibration[:4]))
    assert calls == ["6:8 magnitude", "6:8 wanda"]
    assert [outcome.pruning_s > 0.001 for outcome in found[3:]] == [True, False, False] * 2


@pytest.mark.usefixtures("untouched")
def test_a_run_that_ends_early_leaves_the_dense_model(learned: Any, windows: list[Window]) -> None:
    wanted = variants((P24,), (Method.MAGNITUDE,), (DType.FP8, None))
    run = evaluate(learned, windows[:2], wanted)
    next(run)
    assert any((linear.weight == 0).any() for linear in linears_of(learned).values())
    run.close()


@pytest.mark.usefixtures("untouched")
def test_a_recipe_keeps_what_it_keeps(learned: Any, windows: list[Window]) -> None:
    layer = "model.layers.1.mlp.up_proj"
    variant = Variant(DENSE, Method.MAGNITUDE, DType.INT8, {layer: P24})
    assert str(variant) == "recipe (dense) magnitude int8"
    (found,) = evaluate(learned, windows[:3], [variant], keep=("lm_head", "o_proj"))
    made = deepcopy(learned)
    prune_model(made, Recipe(DENSE, Method.MAGNITUDE, None, layers={layer: P24}))
    weights = [it.weight for n, it in linears_of(made).items() if not n.endswith("o_proj")]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert found.zeros == pytest.approx(zeros / sum(weight.numel() for weight in weights))
    (all_of_it,) = evaluate(learned, windows[:3], [variant])
    assert all_of_it.metrics.loss != found.metrics.loss, "o_proj was not quantised"


def test_what_a_variant_asks_of_pruning() -> None:
    recipe = Recipe(P68, Method.SPARSEGPT, DType.FP8, layers={"a": DENSE})
    assert Variant.of(recipe).recipe() == recipe
    assert not Variant(DENSE, Method.WANDA).calibrated
    assert Variant(DENSE, None, DType.FP8).pruned_like(Variant())
    assert not Variant(P68, Method.WANDA).pruned_like(Variant(P68, Method.SPARSEGPT))


@pytest.mark.usefixtures("untouched")
def test_tasks_see_the_variant(learned: Any, windows: list[Window]) -> None:
    def zeros(model: Any) -> dict[str, Any]:
        weight = model.model.layers[0].mlp.up_proj.weight
        return {"zeros": float((weight == 0).float().mean())}

    wanted = variants((DENSE, P24), (Method.MAGNITUDE,), (None,))
    found = list(evaluate(learned, windows[:1], wanted, also=zeros))
    assert [outcome.tasks["zeros"] for outcome in found] == [0.0, 0.5]


def test_progress_names_what_is_in_hand(windows: list[Window], calibration: torch.Tensor) -> None:
    seen: list[tuple[str, int, int]] = []
    wanted = variants((P68,), (Method.WANDA,), (DType.FP8,))
    model = tiny_model()
    list(
        evaluate(
            model, windows[:3], wanted, calibration[:2], progress=lambda *step: seen.append(step)
        )
    )
    assert ("dense reference", 3, 3) in seen
    assert ("pruning 6:8 wanda", 3, 3) in seen
    assert seen[-1] == ("6:8 wanda fp8_e4m3", 3, 3)


def test_what_cannot_be_evaluated_is_refused_before_anything_runs(
    windows: list[Window],
) -> None:
    model = tiny_model()

    def refused(problem: str, *arguments: Any, **named: Any) -> None:
        with pytest.raises(CalibrationError) as caught:
            next(evaluate(model, *arguments, **named))
        assert str(caught.value).startswith(problem), caught.value

    sparse = [Variant(P68, Method.WANDA)]
    refused("6:8 wanda needs calibration text: give --calibration", windows, sparse)
    refused("there is no text to evaluate on", [], [Variant()])
    refused("lm_head has to be kept", windows, [Variant()], keep=())
    long = evaluation_windows(torch.zeros(200, dtype=torch.int64), 65)
    refused("sequences of 65 tokens; LlamaForCausalLM reads at most 64", long, [Variant()])
    long_calibration = torch.zeros((1, 65), dtype=torch.int64)
    refused("sequences of 65 tokens", windows, sparse, long_calibration)
    refused("token id 110 is not in", windows, sparse, torch.full((2, 8), 110))
    foreign = [Window(torch.tensor([1, 2, 97]), 2)]
    refused("token id 97 is not in the model's vocabulary of 97", foreign, [Variant()])
    unknown = Variant(DENSE, Method.MAGNITUDE, None, {"model.layers.9.mlp.up_proj": P68})
    with pytest.raises(RecipeError, match="names 1 linears that LlamaForCausalLM does not have"):
        next(evaluate(model, windows, [unknown]))
    assert not math.isnan(next(evaluate(model, windows, [Variant()])).metrics.loss)
