"""Converted checkpoints as models of SparseLinear: the same values as the converted weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import save_tiny
from tiny_models import tiny_tokens
from torch import nn

from slidesparse.checkpoint.convert import convert
from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.errors import CheckpointError, PatternError
from slidesparse.kernels import reference
from slidesparse.layers import SparseLinear, linear_from_checkpoint, load_model
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method, Recipe
from slidesparse.slide import detect_pattern
from slidesparse.tensors import TORCH_DTYPES

Q = "model.layers.0.self_attn.q_proj"
SIX = Pattern.parse("6:8")


@pytest.fixture
def converted(tmp_path):
    """A converted tiny model: makes it from a recipe, returns its folder."""

    def make(dtype=DType.FP8, kind="Llama", **recipe):
        save_tiny(tmp_path / "source", kind)
        wanted = Recipe(**{"pattern": SIX, "method": Method.MAGNITUDE, "dtype": dtype, **recipe})
        convert(tmp_path / "source", tmp_path / "made", wanted)
        return tmp_path / "made"

    return make


def as_quantised(x, dtype):
    """Rows as the quantised activations hold them."""
    q, scale = reference.quantize(x.flatten(0, -2), TORCH_DTYPES[dtype])
    return (q.float() * scale[:, None]).view_as(x)


def sparse_of(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseLinear)}


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_a_model_gives_what_its_dequantised_weights_give(converted, dtype, kind):
    folder = converted(dtype, kind)
    model = load_model(folder, dtype=torch.float32)
    assert all(layer.pattern == SIX for layer in sparse_of(model).values())
    assert detect_pattern(model.get_submodule(Q).weight).block <= SIX.block
    kept = [n for n, m in model.named_modules() if type(m) is nn.Linear]
    assert kept in ([], ["lm_head"])
    tokens = tiny_tokens()
    plain = load_model(folder, dtype=torch.float32)
    reader = CheckpointReader(folder)
    for name in sparse_of(plain):
        parent, _, child = name.rpartition(".")
        old = plain.get_submodule(name)
        new = nn.Linear(old.in_features, old.out_features, bias=old.bias is not None)
        new.weight.data = reader.linear(name).float()
        if old.bias is not None:
            new.bias.data = old.bias
        new.register_forward_pre_hook(lambda _, args: (as_quantised(args[0], dtype),))
        setattr(plain.get_submodule(parent), child, new)
    with torch.no_grad():
        got, want = model(tokens).logits, plain(tokens).logits
    # A value on the edge between two quantised ones may fall to either side.
    assert (got - want).norm() / want.norm() < 1e-2


def test_patterns_of_a_recipe_and_kept_linears(converted):
    folder = converted(layers={Q: Pattern.parse("2:4")}, keep=("lm_head", "down_proj"))
    model = load_model(folder)
    assert model.get_submodule(Q).pattern == Pattern.parse("2:4")
    assert type(model.get_submodule("model.layers.0.mlp.down_proj")) is nn.Linear
    assert model.get_submodule("model.layers.1.self_attn.q_proj").pattern == SIX


def test_checkpoints_of_others_are_dense(converted):
    folder = converted()
    config = json.loads((folder / "config.json").read_text())
    del config["slidesparse"]
    (folder / "config.json").write_text(json.dumps(config))
    assert {layer.pattern for layer in sparse_of(load_model(folder)).values()} == {DENSE}


def test_one_linear(converted):
    reader = CheckpointReader(converted())
    layer = linear_from_checkpoint(reader, Q)
    assert torch.equal(layer.weight.float(), reader.tensor(f"{Q}.weight").float())
    assert layer.state_dict().keys() == {"weight", "weight_scale"}
    with pytest.raises(CheckpointError, match=r"model\.embed_tokens is not quantised; use Spa"):
        linear_from_checkpoint(reader, "model.embed_tokens")


def test_a_state_dict_and_a_checkpoint_hold_the_same(converted):
    folder = converted()
    model, reader = load_model(folder), CheckpointReader(folder)
    state = model.get_submodule(Q).state_dict()
    for name in ("weight", "weight_scale"):
        stored = reader.tensor(f"{Q}.{name}")
        assert state[name].shape == stored.shape
        assert torch.equal(state[name].float(), stored.float())


def change(folder, edit):
    path = next(path for path in folder.glob("*.safetensors") if f"{Q}.weight" in load_file(path))
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def test_a_weight_that_breaks_its_pattern_is_refused(converted):
    folder = converted()
    change(folder, lambda t: t[f"{Q}.weight"].view(torch.uint8).fill_(0x38))
    with pytest.raises(PatternError, match=r"row 0, block 0 .* pattern 6:8 allows 6"):
        load_model(folder)


def test_a_config_of_another_size_is_refused(converted):
    folder = converted()
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"mlp\.\w+ is \[\d+, \d+\], config.json makes it"):
        load_model(folder)
