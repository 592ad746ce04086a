"""Calibrated conversion: block by block from disk gives what the whole model in memory gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_checkpoints import all_tensors, save_tensors, save_tiny, w8a8, zeros_per_block
from tiny_models import tiny_tokens

from slidesparse.checkpoint.blocks import _store
from slidesparse.checkpoint.convert import convert
from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.errors import CheckpointError, ModelError
from slidesparse.kernels.reference import quantize
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.prune.model import prune_model
from slidesparse.recipe import Method, Recipe
from slidesparse.tensors import TORCH_DTYPES

P68 = Pattern(6, 8)
DOWN = "model.layers.1.mlp.down_proj"


def in_memory(source: Path, recipe: Recipe, permute: bool) -> tuple[Any, dict[str, torch.Tensor]]:
    """The reports and the tensors that a converted checkpoint should hold."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    tokens = tiny_tokens() if recipe.method.calibrated else None
    quantise = recipe.dtype is not None
    reports = prune_model(model, recipe, tokens, quantise=quantise, permute=permute)
    made = {name: it.data for name, it in model.named_parameters()}
    for name in list(made):
        linear = name.removesuffix("_proj.weight") + "_proj"
        if recipe.dtype is not None and name == f"{linear}.weight" and not recipe.kept(linear):
            q, scale = quantize(made[name], TORCH_DTYPES[recipe.dtype])
            made |= {name: q, f"{linear}.weight_scale": scale[:, None]}
    return reports, made


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Gemma2"])
@pytest.mark.parametrize("permute", [False, True])
@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        (Method.WANDA, DType.FP8),
        (Method.SPARSEGPT, DType.INT8),
        (Method.WANDA, None),
        (Method.MAGNITUDE, DType.FP8),
    ],
    ids=str,
)
def test_it_is_what_the_model_in_memory_gives(
    tmp_path: Path, kind: str, permute: bool, method: Method, dtype: DType | None
) -> None:
    save_tiny(tmp_path / "src", kind)
    keep = ("lm_head", "model.layers.0.mlp.gate_proj")
    recipe = Recipe(P68, method, dtype, keep, {DOWN: Pattern(4, 6)})
    tokens = tiny_tokens() if method.calibrated else None
    made = convert(tmp_path / "src", tmp_path / "out", recipe, tokens=tokens, permute=permute)
    reports, expected = in_memory(tmp_path / "src", recipe, permute)
    after = all_tensors(tmp_path / "out")
    expected = {name: it for name, it in expected.items() if name in after}
    assert after.keys() == expected.keys()
    for name, tensor in expected.items():
        assert after[name].dtype is tensor.dtype, name
        assert torch.equal(after[name].float(), tensor.float()), name
    assert {it.name: it.zeros for it in made.reports} == {
        name: it.zeros for name, it in reports.items()
    }
    for it in made.reports:
        assert it.error == pytest.approx(reports[it.name].error, rel=1e-3)
        assert it.measure == reports[it.name].measure
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    calibration = config["slidesparse"]["calibration"]
    assert config["slidesparse"]["permute"] == permute
    assert calibration is None if tokens is None else calibration["shape"] == [4, 24]


@pytest.mark.parametrize("method", [Method.WANDA, Method.SPARSEGPT], ids=str)
def test_the_head_is_calibrated_too(tmp_path: Path, method: Method) -> None:
    save_tiny(tmp_path / "src")
    recipe = Recipe(P68, method, None, keep=())
    made = convert(tmp_path / "src", tmp_path / "out", recipe, tokens=tiny_tokens())
    _, expected = in_memory(tmp_path / "src", recipe, False)
    head = all_tensors(tmp_path / "out")["lm_head.weight"]
    assert torch.equal(head, expected["lm_head.weight"])
    assert zeros_per_block(head, 8) == 2
    assert [it.name for it in made.reports][-1] == "lm_head"


def test_a_quantised_source_is_calibrated(tmp_path: Path) -> None:
    """FP8 in, 2:4 INT8 out: calibrated on the weights that the source stands for."""
    save_tiny(tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    plain, quantised = {}, {}
    for name, tensor in all_tensors(tmp_path / "dense").items():
        plain[name] = quantised[name] = tensor
        if "_proj." in name:
            linear = name.removesuffix(".weight")
            pair = w8a8(linear, tensor, torch.float8_e4m3fn)
            scale = pair[f"{linear}.weight_scale"].float()
            plain[name] = (pair[name].float() * scale).to(torch.bfloat16)
            quantised |= pair
    save_tensors(tmp_path / "plain", plain, config)
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    save_tensors(tmp_path / "quantised", quantised, config)
    recipe = Recipe(Pattern(2, 4), Method.SPARSEGPT, DType.INT8)
    for name in ("plain", "quantised"):
        convert(tmp_path / name, tmp_path / f"{name}-out", recipe, tokens=tiny_tokens())
    one, other = all_tensors(tmp_path / "plain-out"), all_tensors(tmp_path / "quantised-out")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor.float(), other[name].float()), name


def test_methods_differ(tmp_path: Path) -> None:
    """The better a method, the nearer the outputs: all three must not be the same code."""
    model = save_tiny(tmp_path / "src").float()
    tokens = tiny_tokens(8, seed=6)
    errors = {}
    for method in Method:
        recipe = Recipe(Pattern(2, 4), method, None)
        given = tiny_tokens(16) if method.calibrated else None
        convert(tmp_path / "src", tmp_path / str(method), recipe, tokens=given)
        load = transformers.AutoModelForCausalLM.from_pretrained
        pruned = load(tmp_path / str(method), dtype=torch.float32)
        with torch.no_grad():
            errors[method] = float((pruned(tokens).logits - model(tokens).logits).norm())
    assert errors[Method.SPARSEGPT] < errors[Method.WANDA] < errors[Method.MAGNITUDE]


def test_a_model_whose_blocks_are_not_those_of_the_checkpoint(tmp_path: Path) -> None:
    save_tiny(tmp_path / "src")
    path = tmp_path / "src" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_hidden_layers": 2}))
    recipe = Recipe(P68, Method.WANDA)
    with pytest.raises(CheckpointError, match=r"layers.2 is not in both the checkpoint and the mo"):
        convert(tmp_path / "src", tmp_path / "out", recipe, tokens=tiny_tokens())
    path.write_text(json.dumps({**config, "model_type": "no_such_model"}))
    with pytest.raises(ModelError, match="transformers cannot build the model"):
        convert(tmp_path / "src", tmp_path / "out2", recipe, tokens=tiny_tokens())


def test_linears_that_the_model_does_not_have(tmp_path: Path) -> None:
    source = tmp_path / "src"
    save_tiny(source)
    config = json.loads((source / "config.json").read_text())
    extra = {"model.layers.0.self_attn.extra_proj.weight": torch.ones(8, 8, dtype=torch.bfloat16)}
    save_tensors(source, all_tensors(source) | extra, config)
    with pytest.raises(CheckpointError, match="extra_proj is no linear in transformers' model"):
        convert(source, tmp_path / "out", Recipe(P68, Method.WANDA), tokens=tiny_tokens())
    keep = ("lm_head", "extra_proj")
    convert(source, tmp_path / "out", Recipe(P68, keep=keep), tokens=tiny_tokens(), force=True)
    assert CheckpointReader(tmp_path / "out").linear("model.layers.0.self_attn.extra_proj").all()


def test_where_activations_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        device, dtype = torch.device("cuda"), torch.bfloat16
        model = type("M", (), {"config": type("C", (), {"hidden_size": 64})})

    tokens = tiny_tokens(4, 25)
    needed = 100 * 64 * 2
    for free, place in ((4 * needed + 1, None), (4 * needed, "cpu")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 1 << 40))
        assert _store(tokens, Model()) == place  # type: ignore[arg-type]
