"""Converted checkpoints are evaluated as they are: the same figures as their variant in memory."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_models import learned_model, make_text, make_tokenizer, save
from safetensors.torch import load_file, save_file

from slidesparse.accuracy.converted import (
    converted_variant,
    is_converted,
    load_converted,
    quantised_linears,
)
from slidesparse.accuracy.evaluate import Variant, evaluate, evaluate_converted
from slidesparse.accuracy.load import load_model
from slidesparse.accuracy.text import Window, evaluation_windows
from slidesparse.checkpoint.config import converted_config
from slidesparse.errors import CheckpointError
from slidesparse.kernels.reference import quantize
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.prune.model import linears_of, prune_model
from slidesparse.recipe import Method, Recipe
from slidesparse.tensors import TORCH_DTYPES

P24 = Pattern.parse("2:4")


@pytest.fixture(scope="module")
def learned() -> Any:
    return learned_model(20)


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    ids = torch.tensor(make_tokenizer()(make_text(300, seed=7))["input_ids"])
    return evaluation_windows(ids, 48)


def write(learned: Any, folder: Path, recipe: Recipe) -> Path:
    """A checkpoint as `slidesparse convert` leaves it, made here by hand."""
    model = deepcopy(learned)
    prune_model(model, recipe)
    save(model, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, linear in linears_of(model, recipe).items() if recipe.dtype else ():
        q, scale = quantize(linear.weight.data, TORCH_DTYPES[recipe.dtype])  # type: ignore[index]
        tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"] = q, scale[:, None]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    made = converted_config(json.loads(path.read_text()), recipe, ("lm_head",), {})
    path.write_text(json.dumps(made))
    return folder


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8, None])
def test_a_checkpoint_is_the_variant_that_it_holds(
    learned: Any, windows: list[Window], tmp_path: Path, dtype: DType | None
) -> None:
    layers = {"model.layers.0.mlp.up_proj": DENSE}
    recipe = Recipe(P24, Method.MAGNITUDE, dtype, layers=layers)
    folder = write(learned, tmp_path, recipe)
    assert is_converted(folder)
    variant = converted_variant(folder)
    assert variant == Variant.of(recipe)
    names = quantised_linears(folder)
    assert set(names) == (set(linears_of(learned)) if dtype else set())
    found = evaluate_converted(learned, load_model(folder), windows, variant, names)
    (wanted,) = evaluate(learned, windows, [variant])
    assert found.zeros == pytest.approx(wanted.zeros, abs=1e-3)
    assert found.metrics.kl > 0
    assert found.metrics.tokens == wanted.metrics.tokens
    assert found.metrics.loss == pytest.approx(wanted.metrics.loss, rel=1e-4)
    assert found.metrics.kl == pytest.approx(wanted.metrics.kl, rel=1e-2)


def test_inputs_are_quantised_too(learned: Any, windows: list[Window], tmp_path: Path) -> None:
    folder = write(learned, tmp_path, Recipe(DENSE, Method.MAGNITUDE, dtype=DType.FP8))
    model = load_converted(folder, None, "cpu")
    names = quantised_linears(folder)
    with_inputs = evaluate_converted(learned, model, windows, Variant(dtype=DType.FP8), names)
    weights_only = evaluate_converted(learned, model, windows, Variant(), ())
    assert with_inputs.metrics.kl > weights_only.metrics.kl > 0


def test_a_plain_model_is_none(learned: Any, tmp_path: Path) -> None:
    assert not is_converted(save(learned, tmp_path))
    assert quantised_linears(tmp_path) == ()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"quant_method": "gptq"}, "is quantised by 'gptq'; only compressed-tensors is evaluated"),
        ({"format": "pack-quantized"}, "is 'pack-quantized' and not W8A8 with inputs quantised"),
        ({"config_groups": {"g": {"input_activations": None}}}, "and not W8A8 with inputs"),
    ],
)
def test_other_quantisations_are_refused(
    learned: Any, tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    folder = write(learned, tmp_path, Recipe(DENSE, Method.MAGNITUDE, dtype=DType.INT8))
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(change)
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=problem):
        load_model(folder)


def test_static_inputs_are_refused(learned: Any, tmp_path: Path) -> None:
    folder = write(learned, tmp_path, Recipe(DENSE, Method.MAGNITUDE, dtype=DType.INT8))
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"dynamic": true', '"dynamic": false'))
    with pytest.raises(CheckpointError, match="with dynamic per-token inputs"):
        load_model(folder)


def test_a_missing_tensor_and_a_foreign_linear(
    learned: Any, windows: list[Window], tmp_path: Path
) -> None:
    folder = write(learned, tmp_path, Recipe(DENSE, Method.MAGNITUDE, dtype=DType.INT8))
    names = (*quantised_linears(folder), "model.layers.7.mlp.up_proj")
    model = load_model(folder)
    problem = "model.layers.7.mlp.up_proj of the checkpoint is no linear of LlamaForCausalLM"
    with pytest.raises(CheckpointError, match=problem):
        evaluate_converted(learned, model, windows, Variant(dtype=DType.INT8), names)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks model.norm.weight \(1 in all\)"):
        load_model(folder)
