"""CheckpointReader: single files and shards, every stored form, and checkpoints that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import all_tensors, bitmask, save_tensors, save_tiny, w8a8

from slidesparse.checkpoint.formats import Form
from slidesparse.checkpoint.reader import CheckpointReader, read_json
from slidesparse.errors import CheckpointError

LINEAR = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_reads_what_transformers_saved(tmp_path: Path, shard: str) -> None:
    save_tiny(tmp_path, shard=shard)
    reader = CheckpointReader(tmp_path)
    expected = all_tensors(tmp_path)
    assert len(reader.files) == (1 if shard == "1GB" else len(list(tmp_path.glob("*.safetensors"))))
    assert len(reader.files) > 1 or shard == "1GB"
    assert reader.names() == tuple(sorted(expected))
    for name, tensor in expected.items():
        assert torch.equal(reader.tensor(name), tensor)
        assert reader.stored(name).shape == tuple(tensor.shape)
    assert "nothing" not in reader
    assert reader.config["model_type"] == "llama"
    assert reader.form(LINEAR) is Form.PLAIN
    assert torch.equal(reader.linear(LINEAR), expected[f"{LINEAR}.weight"])
    assert b"".join(reader.pieces("model.norm.weight")) == (
        expected["model.norm.weight"].view(torch.uint8).numpy().tobytes()
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_linears_of_every_form(tmp_path: Path, seed: int, dtype: torch.dtype, packed: bool) -> None:
    w = torch.randn(10, 24)
    w = w * (torch.rand(10, 6, 4).argsort(dim=2) < 2).reshape(10, 24)
    tensors = w8a8(LINEAR, w, dtype)
    expected = tensors[f"{LINEAR}.weight"].float() * tensors[f"{LINEAR}.weight_scale"].float()
    if packed:
        tensors |= bitmask(LINEAR, tensors.pop(f"{LINEAR}.weight"))
    reader = CheckpointReader(save_tensors(tmp_path / "a", tensors))
    assert reader.form(LINEAR) is (Form.W8A8_BITMASK if packed else Form.W8A8)
    assert reader.shape(LINEAR) == (10, 24)
    assert reader.quantised_or_plain(LINEAR).dtype is dtype
    made = reader.linear(LINEAR)
    assert made.dtype is torch.float32
    assert torch.equal(made, expected)
    for step in (1, 3, 10, 99):
        pieces = list(reader.linear_rows(LINEAR, step))
        assert [len(piece) for piece in pieces[:-1]] == [step] * (len(pieces) - 1)
        assert torch.equal(torch.cat(pieces), expected)


def test_a_packed_bf16_linear(tmp_path: Path, seed: int) -> None:
    w = torch.randn(6, 8, dtype=torch.bfloat16)
    w = w * (torch.rand(6, 2, 4).argsort(dim=2) < 2).reshape(6, 8)
    reader = CheckpointReader(save_tensors(tmp_path / "a", bitmask(LINEAR, w)))
    assert reader.form(LINEAR) is Form.BITMASK
    assert torch.equal(reader.linear(LINEAR), w)


def test_an_asymmetric_linear_is_refused(tmp_path: Path, seed: int) -> None:
    tensors = w8a8(LINEAR, torch.randn(4, 8), torch.int8)
    tensors[f"{LINEAR}.weight_zero_point"] = torch.ones(4, 1, dtype=torch.int8)
    reader = CheckpointReader(save_tensors(tmp_path / "a", tensors))
    with pytest.raises(CheckpointError, match="asymmetrically; only zero points of 0"):
        reader.linear(LINEAR)


def test_what_is_not_there(tmp_path: Path) -> None:
    reader = CheckpointReader(save_tensors(tmp_path / "a", {"x.weight": torch.ones(3)}))
    with pytest.raises(CheckpointError, match="holds no tensor y"):
        reader.tensor("y")
    with pytest.raises(CheckpointError, match="holds no linear y"):
        reader.linear("y")
    with pytest.raises(CheckpointError, match=r"x has shape \[3\]; a linear's weight is \[N, K\]"):
        reader.linear("x")


def test_packed_four_bit_weights_are_named(tmp_path: Path) -> None:
    tensors = {"x.weight_packed": torch.ones(3, 1, dtype=torch.int32)}
    reader = CheckpointReader(save_tensors(tmp_path / "a", tensors))
    with pytest.raises(CheckpointError, match="packed 4-bit weights"):
        reader.linear("x")


def test_one_shard_by_itself(tmp_path: Path, seed: int) -> None:
    made = torch.randn(3, 4)
    save_file({"x.weight": made}, tmp_path / "part.safetensors")
    assert torch.equal(CheckpointReader.of_file(tmp_path / "part.safetensors").linear("x"), made)


def test_folders_that_hold_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a directory"):
        CheckpointReader(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor model.*index.json$"):
        CheckpointReader(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is of a form that is not conv"):
        CheckpointReader(tmp_path)


def index(path: Path, weight_map: object) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"x": "gone.safetensors"}, "names the shard gone.safetensors, which is missing; download"),
        ({"x": "a.safetensors", "y": "a.safetensors"}, "puts y into a.safetensors, which does not"),
        ({"x": "../a.safetensors"}, "puts x into '../a.safetensors', which is no file name"),
        ({"x": ".."}, "which is no file name"),
        ({"x": ""}, "which is no file name"),
        ({"x": 5}, "puts x into 5, which is no file name"),
        ({}, "has no weight_map"),
        ([1], "has no weight_map"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path: Path, weight_map: object, reason: str) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors")
    index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=reason):
        CheckpointReader(tmp_path)


def test_a_damaged_shard_is_found_at_once(tmp_path: Path) -> None:
    save_tiny(tmp_path, shard="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{shard.name} is damaged: it is truncated"):
        CheckpointReader(tmp_path)


def test_json_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError, match=r"cannot read .*config.json: No such file"):
        read_json(path)
    for content, reason in (
        (b"{", "config.json is not JSON"),
        (b"\xff", "config.json is not JSON"),
        (b"[" * 100_000, "config.json is not JSON"),
        (b"[]", "config.json is not a JSON object"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=reason):
            read_json(path)
    with path.open("wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(CheckpointError, match=r"config.json has more than 256 MiB"):
        read_json(path)
