"""A model that is streamed from its files is pruned as the one in memory is, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import KINDS, tiny_model, tiny_tokens
from transformers import AutoModelForCausalLM, PretrainedConfig

from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.errors import CheckpointError, ModelError, RecipeError
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.prune.blocks import prune_block
from slidesparse.prune.inputs import blocks_of, run_block
from slidesparse.prune.model import prune_head, prune_model
from slidesparse.prune.quantised import rounded
from slidesparse.prune.stream import StreamedModel
from slidesparse.recipe import Method, Recipe

SIX = Pattern(6, 8)
# Its name changed in 4.56.
DTYPE = "dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype"


def save(model, path):
    model.save_pretrained(path)
    return path


def real_parameters(model):
    return {name for name, it in model.named_parameters() if it.device.type != "meta"}


def pruned_by_streaming(streamed, tokens, recipe):
    inputs, state, reports = streamed.first_inputs(tokens), {}, {}

    def report(it):
        reports[it.name] = it

    for index in range(streamed.blocks):
        prefix, block = streamed.load_block(index)
        inputs = prune_block(block, prefix, inputs, recipe, report=report)
        state |= {f"{prefix}.{name}": it.clone() for name, it in block.state_dict().items()}
        streamed.release(block)
    if not recipe.kept("lm_head"):
        head = streamed.load_head()
        prune_head(streamed.model, inputs, recipe, report)
        state["lm_head.weight"] = head.weight
    return state, reports


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_streaming_prunes_as_memory_does(kind, dtype, tmp_path):
    tokens = tiny_tokens()
    streamed = StreamedModel(save(tiny_model(kind).to(dtype), tmp_path))
    # Read back, since .to(bfloat16) also rounds the rotary frequencies.
    model = AutoModelForCausalLM.from_pretrained(tmp_path, **{DTYPE: dtype})
    assert streamed.dtype is dtype
    recipe = Recipe(SIX, Method.SPARSEGPT, keep=())
    state, reports = pruned_by_streaming(streamed, tokens, recipe)
    assert reports == prune_model(model, recipe, tokens)
    whole = model.state_dict()
    assert len(state) == len(whole) - 2
    assert all(torch.equal(weight, whole[name]) for name, weight in state.items())


def test_one_block_is_in_memory_at_a_time(tmp_path):
    streamed = StreamedModel(save(tiny_model(), tmp_path))
    # Norms are made with values in them: a few kilobytes that are overwritten when they are read.
    at_first = real_parameters(streamed.model)
    assert all("norm" in name for name in at_first)
    streamed.first_inputs(tiny_tokens(1))
    assert real_parameters(streamed.model) == at_first
    prefix, block = streamed.load_block(1)
    assert prefix == "model.layers.1"
    assert block is blocks_of(streamed.model)[1]
    inside = {f"model.layers.1.{name}" for name, _ in block.named_parameters()}
    assert real_parameters(streamed.model) == at_first | inside
    assert not any(it.requires_grad for it in block.parameters())
    streamed.release(block)
    assert real_parameters(streamed.model) == at_first - inside
    again = streamed.load_block(1)[1]
    assert torch.equal(again.mlp.up_proj.weight, tiny_model().model.layers[1].mlp.up_proj.weight)


def test_buffers_that_no_checkpoint_holds_are_real(tmp_path):
    model = tiny_model(rope_theta=500.0)
    streamed = StreamedModel(save(model, tmp_path))
    buffers = dict(streamed.model.named_buffers())
    assert buffers
    for name, buffer in model.named_buffers():
        assert torch.equal(buffers[name], buffer)


def test_another_dtype_and_place(tmp_path):
    streamed = StreamedModel(save(tiny_model(), tmp_path), "cpu", dtype=torch.float64)
    inputs = streamed.first_inputs(tiny_tokens(1), store="meta")
    assert inputs.hidden[0].device.type == "meta"
    assert inputs.hidden[0].dtype is torch.float64
    assert streamed.load_block(0)[1].mlp.up_proj.weight.dtype is torch.float64


def test_a_tied_head_needs_no_weight_of_its_own(tmp_path):
    model, tokens = tiny_model(tie_word_embeddings=True), tiny_tokens(2)
    streamed = StreamedModel(save(model, tmp_path))
    state, _ = pruned_by_streaming(streamed, tokens, Recipe(SIX, Method.WANDA))
    prune_model(model, Recipe(SIX, Method.WANDA), tokens)
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in state.items())


def quantise_files(path):
    """Make an INT8 checkpoint of compressed-tensors form out of a plain one."""
    tensors = load_file(path / "model.safetensors")
    for name in [it for it in tensors if it.endswith("_proj.weight")]:
        w = tensors[name]
        scale = w.abs().amax(dim=1, keepdim=True) / 127
        tensors[name] = (w / scale).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
    }
    (path / "config.json").write_text(json.dumps(config))


def test_quantised_checkpoints_are_dequantised(tmp_path):
    model, tokens = tiny_model(), tiny_tokens(2)
    quantise_files(save(model, tmp_path))
    streamed = StreamedModel(tmp_path)
    block = streamed.load_block(0)[1]
    expected = rounded(model.model.layers[0].mlp.up_proj.weight, DType.INT8)
    torch.testing.assert_close(block.mlp.up_proj.weight.data, expected, rtol=1e-5, atol=1e-7)
    assert run_block(block, streamed.first_inputs(tokens))[0].isfinite().all()


def test_a_block_from_another_source(tmp_path):
    """As when a conversion resumes and reads back what it wrote."""
    streamed = StreamedModel(save(tiny_model(), tmp_path / "one"))
    other = CheckpointReader(save(tiny_model(seed=9), tmp_path / "other"))
    block = streamed.load_block(2, other)[1]
    weight = tiny_model(seed=9).model.layers[2].self_attn.q_proj.weight
    assert torch.equal(block.self_attn.q_proj.weight, weight)


def change_files(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


def test_a_missing_weight_is_named(tmp_path):
    save(tiny_model(), tmp_path)
    change_files(tmp_path, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    streamed = StreamedModel(tmp_path)
    streamed.load_block(0)
    with pytest.raises(CheckpointError, match=r"no linear model\.layers\.1\.mlp\.up_proj"):
        streamed.load_block(1)


def test_a_weight_of_another_shape_is_named(tmp_path):
    save(tiny_model(), tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    change_files(tmp_path, lambda tensors: tensors.update({name: torch.zeros(88, 40)}))
    with pytest.raises(
        CheckpointError,
        match=r"up_proj\.weight has shape \(88, 40\), config\.json makes it \(88, 48",
    ):
        StreamedModel(tmp_path).load_block(1)


def test_experts_that_run_in_one_tensor_are_refused(tmp_path):
    save(tiny_model(), tmp_path)
    streamed = StreamedModel(tmp_path)
    block = blocks_of(streamed.model)[0]
    block.mlp.experts = torch.nn.Module()
    block.mlp.experts.gate_up_proj = torch.nn.Parameter(torch.zeros(2, 8, 8))
    with pytest.raises(
        CheckpointError, match=r"holds no .*experts\.gate_up_proj: .* use the magnitude method"
    ):
        streamed.load_block(0)


def test_the_head_is_refused_where_it_is_tied(tmp_path):
    streamed = StreamedModel(save(tiny_model(tie_word_embeddings=True), tmp_path))
    with pytest.raises(RecipeError, match="lm_head shares its weight with the embedding"):
        streamed.load_head()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "cannot build the model of .*config.json"),
        ("{", "cannot build the model of .*config.json"),
        ('{"model_type": "no-such-model"}', "cannot build the model of .*no-such-model"),
        ('{"model_type": "vit"}', "cannot build the model of .*ViTConfig"),
        (
            '{"model_type": "llama", "num_attention_heads": 0}',
            "cannot build .* ZeroDivisionErr",
        ),
        ('{"model_type": "llama", "hidden_size": -4}', "cannot build the model of .*-4"),
        ('{"model_type": "llama", "hidden_size": "a"}', "cannot build the model of .*hidden_size"),
        ('{"model_type": "llama", "dtype": "float77"}', "cannot build the model of .*float77"),
        ('{"model_type": "x", "auto_map": {"AutoConfig": "x.Y"}}', "cannot build .*custom code"),
        ('{"model_type": "gpt2"}', r"GPT2LMHeadModel has no decoder blocks in model\.layers"),
    ],
)
def test_configs_that_make_no_model_are_refused(config, message, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=message) as caught:
        StreamedModel(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_directory_without_weights_is_refused(tmp_path):
    save(tiny_model(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
        StreamedModel(tmp_path)
