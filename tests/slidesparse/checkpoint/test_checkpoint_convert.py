"""convert by magnitude: every weight as an independent computation gives it, nothing else moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import (
    P46,
    P68,
    all_tensors,
    bitmask,
    block,
    magnitude,
    save_tensors,
    save_tiny,
    w8a8,
    zeros_per_block,
)

from slidesparse._version import __version__
from slidesparse.checkpoint.config import provenance
from slidesparse.checkpoint.convert import convert
from slidesparse.checkpoint.preview import preview
from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.errors import RecipeError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.prune.model import prune_model

TORCH = {DType.FP8: torch.float8_e4m3fn, DType.INT8: torch.int8}
DOWN, UP = "model.layers.1.mlp.down_proj", "model.layers.1.mlp.up_proj"


def quantised(w: torch.Tensor, dtype: DType) -> tuple[torch.Tensor, torch.Tensor]:
    """Per output channel, written out: q and scale [N, 1]."""
    largest = w.float().abs().amax(dim=1, keepdim=True)
    top = torch.tensor(448.0 if dtype is DType.FP8 else 127.0)
    scale = largest / top
    # INT8 multiplies by the inverse, which decides ties.
    q = w.float() / scale if dtype is DType.FP8 else (w.float() * (top / largest)).round()
    return q.to(TORCH[dtype]), scale


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8, None], ids=str)
@pytest.mark.parametrize("pattern", [P68, Pattern(2, 4), P46, DENSE], ids=str)
def test_every_tensor(source: Path, tmp_path: Path, dtype: DType | None, pattern: Pattern) -> None:
    import transformers

    made = convert(source, tmp_path / "out", magnitude(pattern, dtype))
    before, after = all_tensors(source), all_tensors(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    prune_model(model, magnitude(pattern, None))
    pruned = {name: it.data for name, it in model.named_parameters()}
    linears = {it.removesuffix(".weight") for it in before if it.endswith("_proj.weight")}
    expected = dict(before)
    for name in linears:
        weight = pruned[f"{name}.weight"]
        assert zeros_per_block(weight, pattern.block) >= pattern.block - pattern.nonzeros
        expected[f"{name}.weight"] = weight
        if dtype is not None:
            q, scale = quantised(weight, dtype)
            expected |= {f"{name}.weight": q, f"{name}.weight_scale": scale}
    assert after.keys() == expected.keys()
    for name, tensor in expected.items():
        assert after[name].dtype is tensor.dtype, name
        assert torch.equal(after[name].float(), tensor.float()), name
    assert len(linears) == 21
    assert len(made.reports) == (0 if pattern.dense else 21)
    for report in made.reports:
        assert report.zeros == pytest.approx(
            float((pruned[f"{report.name}.weight"] == 0).float().mean()), abs=1e-6
        )
        dense = before[f"{report.name}.weight"].double()
        change = (pruned[f"{report.name}.weight"].double() - dense).norm() / dense.norm()
        assert report.error == pytest.approx(float(change), rel=1e-5)


def test_what_is_beside_the_weights(source: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    out = tmp_path / "new" / "out"
    made = convert(source, out, magnitude())
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    shards = {f"model-0000{index}-of-00004.safetensors" for index in range(1, 5)}
    copied = {
        *("tokenizer.json", "tokenizer.model", "chat_template.jinja", "LICENSE"),
        *("additional_chat_templates/tools.jinja", "generation_config.json"),
    }
    assert names == shards | copied | {"config.json", "model.safetensors.index.json"}
    for name in copied:
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
    assert list(out.parent.iterdir()) == [out]
    assert made.path == out
    assert made.resumed == 0

    index = json.loads((out / "model.safetensors.index.json").read_text())
    tensors = all_tensors(out)
    assert index["metadata"]["total_size"] == sum(it.nbytes for it in tensors.values())
    assert made.preview.bytes == index["metadata"]["total_size"]
    assert index["weight_map"].keys() == tensors.keys()
    # A decoder block is one shard; the rest is the last.
    assert index["weight_map"]["model.layers.0.mlp.up_proj.weight"] == sorted(shards)[0]
    assert index["weight_map"]["model.layers.2.self_attn.q_proj.bias"] == sorted(shards)[2]
    assert index["weight_map"]["lm_head.weight"] == sorted(shards)[3]
    assert index["weight_map"]["model.embed_tokens.weight"] == sorted(shards)[3]


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8], ids=str)
def test_the_config_says_what_stock_software_reads(
    source: Path, tmp_path: Path, dtype: DType
) -> None:
    recipe = magnitude(P68, dtype, layers={DOWN: P46})
    convert(source, tmp_path / "out", recipe)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    before = json.loads((source / "config.json").read_text())
    quantisation = config.pop("quantization_config")
    block = config.pop("slidesparse")
    assert config == before
    kind = "float" if dtype is DType.FP8 else "int"
    group = quantisation["config_groups"]["group_0"]
    assert group["targets"] == ["Linear"]
    for part, strategy, dynamic in (
        ("weights", "channel", False),
        ("input_activations", "token", True),
    ):
        args = group[part]
        assert (args["num_bits"], args["type"], args["symmetric"]) == (8, kind, True)
        assert (args["strategy"], args["dynamic"], args["group_size"]) == (strategy, dynamic, None)
    assert group["output_activations"] is None
    assert quantisation["quant_method"] == "compressed-tensors"
    assert quantisation["format"] == f"{kind}-quantized"
    assert quantisation["quantization_status"] == "compressed"
    assert quantisation["ignore"] == ["lm_head"]
    assert quantisation["kv_cache_scheme"] is None
    assert block == {
        "version": __version__,
        "pattern": "6:8",
        "layers": {DOWN: "4:6"},
        "method": "magnitude",
        "dtype": str(dtype),
        "keep": ["lm_head"],
        "permute": False,
        "calibration": None,
    }
    known = provenance({**config, "slidesparse": block})
    assert known is not None
    assert known.recipe == recipe


def test_without_a_dtype_there_is_no_quantisation(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", magnitude(dtype=None))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["slidesparse"]["dtype"] is None


def test_patterns_by_layer_and_kept_linears(source: Path, tmp_path: Path) -> None:
    recipe = magnitude(keep=("lm_head", "o_proj", "model.layers.0.mlp.*"), layers={DOWN: P46})
    made = convert(source, tmp_path / "out", recipe)
    before, after = all_tensors(source), all_tensors(tmp_path / "out")
    kept = {it.removesuffix(".weight") for it in before if recipe.kept(it.removesuffix(".weight"))}
    assert set(made.preview.kept) == kept
    assert len(kept) == 1 + 3 + 3
    for name in kept:
        assert torch.equal(after[f"{name}.weight"], before[f"{name}.weight"])
        assert f"{name}.weight_scale" not in after
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == sorted(kept)
    assert zeros_per_block(after[f"{DOWN}.weight"], 6) == 2
    assert zeros_per_block(after[f"{UP}.weight"], 8) == 2
    assert zeros_per_block(after[f"{UP}.weight"], 6) < 2
    assert made.preview.patterns == {P68: 14, P46: 1}


def test_the_head_can_be_pruned_too(source: Path, tmp_path: Path) -> None:
    made = convert(source, tmp_path / "out", magnitude(keep=()))
    head = CheckpointReader(tmp_path / "out").quantised_or_plain("lm_head")
    assert head.dtype is torch.float8_e4m3fn
    assert zeros_per_block(head, 8) >= 2
    assert made.preview.kept == ()


@pytest.mark.parametrize("stored", [False, True])
def test_a_tied_head_stays_tied(tmp_path: Path, stored: bool) -> None:
    source = tmp_path / "src"
    save_tiny(source, tie_word_embeddings=True)
    if stored:
        tensors = all_tensors(source)
        head = tensors["model.embed_tokens.weight"].clone()
        config = json.loads((source / "config.json").read_text())
        save_tensors(source, {**tensors, "lm_head.weight": head}, config)
    with pytest.raises(RecipeError, match="lm_head shares its weight with the embedding"):
        convert(source, tmp_path / "out", magnitude(keep=()))
    convert(source, tmp_path / "out", magnitude())
    before, after = all_tensors(source), all_tensors(tmp_path / "out")
    assert ("lm_head.weight" in after) == stored
    name = "model.embed_tokens.weight"
    assert torch.equal(after[name], before[name])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head"]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
@pytest.mark.parametrize("target", [DType.FP8, DType.INT8, None], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_a_quantised_source(
    tmp_path: Path, seed: int, dtype: torch.dtype, target: DType | None, packed: bool
) -> None:
    """Weights are dequantised, pruned and quantised anew; what is kept becomes BF16."""
    tensors: dict[str, torch.Tensor] = {}
    dense = {}
    for name, w in block().items():
        linear = name.removesuffix(".weight")
        keep24 = (torch.rand(12, 6, 4).argsort(dim=2) < 2).reshape(12, 24)
        made = w8a8(linear, w * keep24 if packed else w, dtype)
        scale = made[f"{linear}.weight_scale"].float()
        dense[linear] = made[f"{linear}.weight"].float() * scale
        if packed:
            made |= bitmask(linear, made.pop(f"{linear}.weight"))
        made[f"{linear}.input_scale"] = torch.ones(1)
        tensors |= made
    cache = {"num_bits": 8, "type": "float"}
    config = {
        "dtype": "bfloat16",
        "quantization_config": {"quant_method": "compressed-tensors", "kv_cache_scheme": cache},
    }
    source = save_tensors(tmp_path / "src", tensors, config)
    kept = "model.layers.0.self_attn.o_proj"
    made = convert(source, tmp_path / "out", magnitude(dtype=target, keep=("o_proj", "lm_head")))
    after = all_tensors(tmp_path / "out")
    assert {name.rpartition(".")[2] for name in after} <= {"weight", "weight_scale"}
    for linear, w in dense.items():
        if linear == kept:
            expected: dict[str, torch.Tensor] = {"weight": w.to(torch.bfloat16)}
        else:
            ours = prune_by_hand(w, P68)
            q, scale = (ours.to(torch.bfloat16), None)
            if target is not None:
                q, scale = quantised(ours, target)
            expected = {"weight": q} if scale is None else {"weight": q, "weight_scale": scale}
        for part, tensor in expected.items():
            assert after[f"{linear}.{part}"].dtype is tensor.dtype
            assert torch.equal(after[f"{linear}.{part}"].float(), tensor.float()), (linear, part)
    out = json.loads((tmp_path / "out" / "config.json").read_text())
    if target is not None:
        assert out["quantization_config"]["kv_cache_scheme"] == cache
        assert out["quantization_config"]["ignore"] == ["lm_head", kept]
    assert any("quantised already" in note for note in made.preview.notes)
    assert any("3 fixed scales" in note for note in made.preview.notes) == (target is not None)


def prune_by_hand(w: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Zero the two smallest of each block, the left one of equals, element by element."""
    made = w.clone()
    for row in range(w.shape[0]):
        for start in range(0, w.shape[1], pattern.block):
            block = w[row, start : start + pattern.block].abs().tolist()
            short = pattern.block - len(block)
            order = sorted(range(len(block)), key=lambda place: (block[place], place))
            for place in order[: max(0, 2 - short)]:
                made[row, start + place] = 0
    return made


def test_experts_routers_and_other_towers(tmp_path: Path, seed: int) -> None:
    """Experts with a tensor each are linears; fused ones, routers and vision towers stay."""
    mlp = "model.layers.0.mlp"
    shapes = {
        f"{mlp}.experts.0.up_proj.weight": (12, 24),
        f"{mlp}.experts.11.down_proj.weight": (24, 12),
        f"{mlp}.gate.weight": (4, 24),
        f"{mlp}.shared_expert_gate.weight": (1, 24),
        "model.layers.1.mlp.experts.gate_up_proj": (4, 24, 48),
        "model.layers.1.mlp.up_proj.weight": (12, 24),
        "model.visual.layers.0.mlp.up_proj.weight": (12, 24),
        "model.visual.patch_embed.weight": (12, 24),
        "model.embed_tokens.weight": (9, 24),
        "model.projector.weight": (24, 24),
        "model.norm.weight": (24,),
    }
    tensors = {name: torch.randn(shape).to(torch.bfloat16) for name, shape in shapes.items()}
    source = save_tensors(tmp_path / "src", tensors)
    made = convert(source, tmp_path / "out", magnitude())
    after = all_tensors(tmp_path / "out")
    changed = {it for it in shapes if not torch.equal(after[it].float(), tensors[it].float())}
    assert changed == {
        f"{mlp}.experts.0.up_proj.weight",
        f"{mlp}.experts.11.down_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    }
    assert set(made.preview.kept) == {
        f"{mlp}.gate",
        f"{mlp}.shared_expert_gate",
        "model.layers.1.mlp.experts",
        "model.visual.layers.0.mlp.up_proj",
        "model.projector",
        "lm_head",
    }
    (note,) = made.preview.notes
    assert note == (
        "1 tensors hold many experts each (model.layers.1.mlp.experts.gate_up_proj first): they "
        "are left as they are"
    )


def test_blocks_are_in_their_order(tmp_path: Path, seed: int) -> None:
    tensors = {
        name: it for index in (0, 10, 2) for name, it in block(f"model.layers.{index}").items()
    }
    source = save_tensors(tmp_path / "src", tensors)
    names: list[tuple[int, int, str]] = []
    convert(
        source, tmp_path / "out", magnitude(), progress=lambda *arguments: names.append(arguments)
    )
    order = ["model.layers.0", "model.layers.2", "model.layers.10", "rest"]
    assert names == [(index + 1, 4, name) for index, name in enumerate(order)]


def test_a_note_on_linears_that_engines_join(source: Path) -> None:
    (note,) = preview(source, magnitude(keep=("lm_head", "v_proj"))).notes
    assert note.startswith("in 3 places, model.layers.0.self_attn first, some of q_proj, k_proj")
    assert "keep all or none" in note
    assert not preview(source, magnitude(keep=("lm_head", "?_proj"))).notes
    assert not preview(source, magnitude(keep=("lm_head", "v_proj"), dtype=None)).notes
