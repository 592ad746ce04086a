"""Weights from the headers of a checkpoint: exact, and no tensor is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import CONFIG, bitmask, save_tensors, save_tiny, w8a8, write_raw

from slidesparse.candidate import Provenance
from slidesparse.capacity import Quant, Settings, make_plan
from slidesparse.capacity.figure import total
from slidesparse.capacity.stored import configured_quant, has_weights, read_stored
from slidesparse.capacity.weights import total_parameters
from slidesparse.checkpoint.config import quantisation
from slidesparse.errors import CheckpointError, UsageError
from slidesparse.models import load_model
from slidesparse.problem import DType

Make = Callable[..., Settings]

LINEAR = "model.layers.0.mlp.down_proj"


def test_bytes_are_those_of_the_files(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = tmp_path / "tiny"
    save_tiny(folder)
    stored = read_stored(folder)
    assert stored.quant is Quant.NONE
    parts = stored.parts(1, 2)
    assert {part.provenance for part in parts} == {Provenance.MEASURED}
    assert total(parts) == 2 * total_parameters(load_model(str(folder)))
    header = 1 << 16
    size = sum(os.path.getsize(path) for path in folder.glob("*.safetensors"))
    assert total(parts) <= size < total(parts) + header


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    save_tiny(whole)
    save_tiny(shards, shard="20KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert read_stored(shards).parts(1, 2) == read_stored(whole).parts(1, 2)


def test_ranks_share_all_but_norms(tmp_path: Path) -> None:
    tensors = {
        f"{LINEAR}.weight": torch.zeros(8, 16, dtype=torch.bfloat16),
        "model.norm.weight": torch.zeros(8, dtype=torch.bfloat16),
        "model.layers.0.mlp.gate.weight": torch.zeros(4, 8, dtype=torch.bfloat16),
        "model.embed_tokens.weight": torch.zeros(32, 8, dtype=torch.bfloat16),
        "lm_head.weight": torch.zeros(32, 8, dtype=torch.bfloat16),
        "mtp.norm.weight": torch.zeros(1000, dtype=torch.bfloat16),
        "visual.proj.weight": torch.zeros(1000, 8, dtype=torch.bfloat16),
    }
    stored = read_stored(save_tensors(tmp_path / "toy", tensors))
    one = {part.name: part.bytes for part in stored.parts(1, 2)}
    two = {part.name: part.bytes for part in stored.parts(2, 2)}
    assert one == {
        "linears": 256,
        "embedding": 512,
        "output head": 512,
        "norms and routers": 16 + 64,
    }
    assert two == {**one, "linears": 128, "embedding": 256, "output head": 256}
    assert {part.provenance for part in stored.parts(2, 2)} == {Provenance.DERIVED}


def test_more_ranks_than_heads_hold_copies_of_keys_and_values(tmp_path: Path) -> None:
    names = ("q_proj", "k_proj", "v_proj")
    tensors = {
        f"model.layers.0.self_attn.{name}.weight": torch.zeros(64, 16, dtype=torch.bfloat16)
        for name in names
    }
    stored = read_stored(save_tensors(tmp_path / "toy", tensors))
    each = 64 * 16 * 2
    assert total(stored.parts(2, 2)) == 3 * each // 2
    assert total(stored.parts(4, 2)) == each // 4 + 2 * each // 2


def test_shards_without_an_index_are_refused(tmp_path: Path) -> None:
    assert not has_weights(tmp_path)
    write_raw(tmp_path / "model-00002-of-00003.safetensors", b"{}")
    with pytest.raises(UsageError) as caught:
        has_weights(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds model-00002-of-00003.safetensors without a "
        "model.safetensors.index.json; download it, or name a folder with the config.json alone"
    )


@pytest.mark.parametrize(
    ("dtype", "quant"), [(torch.float8_e4m3fn, Quant.FP8), (torch.int8, Quant.INT8)]
)
def test_eight_bits_are_recognised(dtype: torch.dtype, quant: Quant, tmp_path: Path) -> None:
    folder = save_tensors(tmp_path / "toy", w8a8(LINEAR, torch.randn(16, 32), dtype))
    stored = read_stored(folder)
    assert stored.quant is quant
    assert total(stored.parts(1, 2)) == 16 * 32 + 16 * 2


@pytest.mark.parametrize(
    ("method", "quant"),
    [("awq", Quant.AWQ), ("gptq", Quant.GPTQ), ("compressed-tensors", Quant.GPTQ)],
)
def test_four_bits_are_recognised(method: str, quant: Quant, tmp_path: Path) -> None:
    tensors = {
        f"{LINEAR}.qweight": torch.zeros(64, 8, dtype=torch.int32),
        f"{LINEAR}.scales": torch.zeros(1, 64, dtype=torch.float16),
    }
    config = {**CONFIG, "quantization_config": {"quant_method": method}}
    assert read_stored(save_tensors(tmp_path / "toy", tensors, config)).quant is quant


def test_unknown_four_bits_are_refused(tmp_path: Path) -> None:
    tensors = {f"{LINEAR}.qweight": torch.zeros(64, 8, dtype=torch.int32)}
    folder = save_tensors(tmp_path / "toy", tensors)
    with pytest.raises(UsageError) as caught:
        read_stored(folder)
    assert str(caught.value) == (
        "weights are stored as I32 and config.json names the quantisation None; known are awq, "
        "gptq, compressed-tensors: name a preset and --quant instead"
    )


def test_packed_weights_are_refused(tmp_path: Path) -> None:
    dense = torch.zeros(16, 32, dtype=torch.bfloat16)
    dense[:, ::2] = 1
    folder = save_tensors(tmp_path / "toy", bitmask(LINEAR, dense))
    with pytest.raises(UsageError) as caught:
        read_stored(folder)
    assert str(caught.value) == (
        f"{folder} holds bitmask-packed weights ({LINEAR}.bitmask), which are unpacked when they "
        "are loaded: name a preset or a folder with its config.json alone, and --quant"
    )


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    write_raw(tmp_path / "model.safetensors", b"not json")
    assert has_weights(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        read_stored(tmp_path)


def test_a_plan_counts_them_as_they_are_or_derives_another_form(
    tmp_path: Path, make_settings: Make
) -> None:
    folder = save_tensors(tmp_path / "toy", {"lm_head.weight": torch.zeros(10, 10)})
    stored = read_stored(folder)
    plan = make_plan(make_settings("llama3.2-1b"), stored)
    assert total(plan.weights) == 400
    eight = make_plan(make_settings("llama3.2-1b", quant=Quant.FP8), stored)
    assert total(eight.weights) > 10**9


EIGHT_INT = {"config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}}}
FOUR_AND_EIGHT = {
    "config_groups": {
        "group_0": {"weights": {"num_bits": 8, "type": "float"}},
        "group_1": {"weights": {"num_bits": 4, "type": "int"}},
    }
}


@pytest.mark.parametrize(
    ("said", "quant"),
    [
        (None, Quant.NONE),
        ({}, Quant.NONE),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, Quant.FP8),
        ({"quant_method": "awq", "bits": 4}, Quant.AWQ),
        ({"quant_method": "awq", "w_bit": 4}, Quant.AWQ),
        ({"quant_method": "gptq", "bits": 4}, Quant.GPTQ),
        ({"quant_method": "compressed-tensors", **EIGHT_INT}, Quant.INT8),
        (quantisation(DType.FP8, ("lm_head",)), Quant.FP8),
    ],
)
def test_a_config_says_how_weights_are_stored(said: object, quant: Quant) -> None:
    assert configured_quant({"quantization_config": said}, "it") is quant


@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "gptq", "bits": 3},
        {"quant_method": "bitsandbytes"},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "compressed-tensors", **FOUR_AND_EIGHT},
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": 8}},
        "mxfp4",
    ],
)
def test_a_config_of_an_unknown_form_is_refused(said: object) -> None:
    with pytest.raises(UsageError) as caught:
        configured_quant({"quantization_config": said}, "it")
    method = said["quant_method"] if isinstance(said, dict) else said
    assert str(caught.value) == (
        f"the config.json of it names the quantisation {method!r} in a form that no plan knows; "
        "name the nearest with --quant: awq, gptq, fp8, int8 or none"
    )
