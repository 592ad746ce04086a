"""Stock transformers loads what was converted, with the very weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from tiny_checkpoints import save_tiny, zeros_per_block
from tiny_models import SIZES, tiny_tokens

from slidesparse.checkpoint.config import FORMATS, quantisation
from slidesparse.checkpoint.convert import convert
from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.errors import CheckpointError
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method, Recipe

P68 = Pattern(6, 8)


def linears(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    modules = dict(model.named_modules())
    return {name: it for name, it in modules.items() if isinstance(it, torch.nn.Linear)}


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Gemma2"])
def test_a_pruned_checkpoint_loads(tmp_path: Path, kind: str) -> None:
    save_tiny(tmp_path / "src", kind)
    recipe = Recipe(P68, Method.WANDA, None)
    convert(tmp_path / "src", tmp_path / "out", recipe, tokens=tiny_tokens())
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    reader = CheckpointReader(tmp_path / "out")
    assert model.dtype is torch.bfloat16
    for name, linear in linears(model).items():
        if name != "lm_head":
            assert zeros_per_block(linear.weight.detach(), 8) == 2
            assert torch.equal(linear.weight.detach(), reader.linear(name))
    assert model(tiny_tokens()).logits.isfinite().all()


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_a_quantised_checkpoint_loads(tmp_path: Path, dtype: DType, tied: bool) -> None:
    """With the compressed-tensors package, which dequantises to BF16 on a CPU."""
    pytest.importorskip("compressed_tensors")
    dense = save_tiny(tmp_path / "src", tie_word_embeddings=tied)
    recipe = Recipe(P68, Method.MAGNITUDE, dtype, keep=("lm_head", "model.layers.0.*"))
    convert(tmp_path / "src", tmp_path / "out", recipe)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = tiny_tokens()
    with torch.no_grad():
        logits = model(tokens).logits
    assert logits.isfinite().all()
    reader = CheckpointReader(tmp_path / "out")
    for name, linear in linears(model).items():
        weight = linear.weight.detach().float()
        if recipe.kept(name):
            assert torch.equal(weight, linears(dense)[name].weight.detach().float())
            continue
        assert zeros_per_block(weight, 8) == 2
        ours = reader.linear(name)
        # The package keeps scales in BF16: half a unit in the last of 8 bits, and again on output.
        assert (weight - ours).abs().max() <= 2**-7 * ours.abs().max()
        assert torch.equal(weight == 0, ours == 0)


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8], ids=str)
def test_the_package_reads_the_quantisation(dtype: DType) -> None:
    package = pytest.importorskip("compressed_tensors.quantization")
    read = package.QuantizationConfig.model_validate(quantisation(dtype, ("lm_head",)))
    (scheme,) = read.config_groups.values()
    assert read.format == FORMATS[dtype]
    assert read.quantization_status == package.QuantizationStatus.COMPRESSED
    assert scheme.weights.strategy == package.QuantizationStrategy.CHANNEL
    assert scheme.input_activations.strategy == package.QuantizationStrategy.TOKEN
    assert scheme.input_activations.dynamic is True
    assert scheme.weights.dynamic is False
    preset = package.preset_name_to_scheme(
        "FP8_DYNAMIC" if dtype is DType.FP8 else "INT8", ["Linear"]
    )
    for part in ("weights", "input_activations"):
        ours, theirs = getattr(scheme, part), getattr(preset, part)
        for field in ("num_bits", "type", "symmetric", "strategy", "dynamic"):
            assert getattr(ours, field) == getattr(theirs, field), (part, field)


def test_the_config_is_one_that_transformers_takes(tmp_path: Path) -> None:
    save_tiny(tmp_path / "src")
    convert(tmp_path / "src", tmp_path / "out", Recipe(P68, Method.MAGNITUDE))
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.slidesparse["pattern"] == "6:8"
    assert config.quantization_config["quant_method"] == "compressed-tensors"
    config.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (
        again["slidesparse"]
        == json.loads((tmp_path / "out" / "config.json").read_text())["slidesparse"]
    )


def test_a_mixture_of_experts(tmp_path: Path, seed: int) -> None:
    """Experts are pruned by magnitude, the router is not; calibration is refused by name."""
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    dense = transformers.AutoModelForCausalLM.from_config(
        transformers.Qwen3MoeConfig(**(SIZES | sizes))
    ).to(torch.bfloat16)
    dense.save_pretrained(tmp_path / "src")
    recipe = Recipe(P68, Method.MAGNITUDE, None)
    made = convert(tmp_path / "src", tmp_path / "out", recipe)
    experts = {it.name for it in made.reports if ".experts." in it.name}
    assert len(experts) == 3 * 4 * 3
    assert "model.layers.0.mlp.gate" in made.preview.kept
    reader = CheckpointReader(tmp_path / "out")
    assert all(zeros_per_block(reader.linear(name), 8) == 2 for name in experts)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    router = "model.layers.0.mlp.gate.weight"
    assert torch.equal(model.state_dict()[router], dense.state_dict()[router])
    with pytest.raises(CheckpointError, match="magnitude method"):
        convert(tmp_path / "src", tmp_path / "o", Recipe(P68, Method.WANDA), tokens=tiny_tokens())
