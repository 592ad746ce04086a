"""convert: what it refuses, and what it must not touch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import (
    P46,
    P68,
    block,
    magnitude,
    save_tensors,
    write_raw,
)
from tiny_models import tiny_tokens

from slidesparse.checkpoint import files
from slidesparse.checkpoint.config import provenance
from slidesparse.checkpoint.convert import convert
from slidesparse.checkpoint.preview import preview
from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.errors import CalibrationError, CheckpointError, RecipeError, UsageError
from slidesparse.problem import DType
from slidesparse.recipe import Method, Recipe

TORCH = {DType.FP8: torch.float8_e4m3fn, DType.INT8: torch.int8}
DOWN, UP = "model.layers.1.mlp.down_proj", "model.layers.1.mlp.up_proj"


def test_recipes_that_do_not_fit(source: Path, tmp_path: Path) -> None:
    layers = {"model.layers.9.mlp.up_proj": P68, "model.layers.8.mlp.up_proj": P68}
    with pytest.raises(
        RecipeError, match=r"names 2 linears that the checkpoint does not have, model.layers.8"
    ):
        convert(source, tmp_path / "out", magnitude(layers=layers))
    with pytest.raises(CalibrationError, match="wanda needs calibration text"):
        convert(source, tmp_path / "out", Recipe(P68, Method.WANDA))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("part", "what"),
    [(".weight_packed", "packed 4-bit"), (".weight_scale_inv", "per block"), (".qweight", "GPTQ")],
)
def test_linears_of_other_forms_are_not_copied_as_if_they_were_none(
    tmp_path: Path, seed: int, part: str, what: str
) -> None:
    tensors = {**block(), f"model.layers.0.mlp.down_proj{part}": torch.ones(3, 4)}
    source = save_tensors(tmp_path / "src", tensors)
    with pytest.raises(CheckpointError, match=f"model.layers.0.mlp.down_proj holds .*{what}"):
        convert(source, tmp_path / "out", magnitude())
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8"])
def test_sources_quantised_by_other_methods(tmp_path: Path, seed: int, method: str) -> None:
    config = {"quantization_config": {"quant_method": method}}
    source = save_tensors(tmp_path / "src", block(), config)
    with pytest.raises(CheckpointError, match=f"quantised by '{method}'; read are BF16"):
        convert(source, tmp_path / "out", magnitude())


def test_sources_that_are_no_causal_lm(tmp_path: Path, seed: int) -> None:
    source = save_tensors(tmp_path / "src", {"encoder.layers.0.a.weight": torch.ones(4, 4)})
    with pytest.raises(CheckpointError, match=r"no decoder blocks named \.\.\.layers\.N"):
        convert(source, tmp_path / "out", magnitude())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path: Path, seed: int, value: float) -> None:
    tensors = block()
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = value
    source = save_tensors(tmp_path / "src", tensors)
    with pytest.raises(CheckpointError, match=r"up_proj.weight holds 1 values that are NaN or Inf"):
        convert(source, tmp_path / "out", magnitude())
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out", magnitude(keep=("up_proj", "lm_head")), force=True)


def test_an_existing_destination(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, out, magnitude())
    (out / "mine.txt").write_text("old")
    with pytest.raises(UsageError, match="out exists; name another folder, or replace it with --f"):
        convert(source, out, magnitude(P46))
    assert provenance(CheckpointReader(out).config).pattern == P68  # type: ignore[union-attr]
    convert(source, out, magnitude(P46), force=True)
    assert provenance(CheckpointReader(out).config).pattern == P46  # type: ignore[union-attr]
    assert not (out / "mine.txt").exists()
    assert list(tmp_path.iterdir()) == [out]


def test_folders_that_are_never_replaced(source: Path, tmp_path: Path) -> None:
    for folder in (source, source / "inside", source.parent):
        with pytest.raises(UsageError, match="lie in each other; name another folder"):
            convert(source, folder, magnitude(), force=True)
    home = tmp_path / "home"
    home.mkdir()
    convert(source, home, magnitude())  # An empty folder is as good as none.
    shutil.rmtree(home)
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match=r"has no config.json: it is no checkpoint"):
        convert(source, home, magnitude(), force=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="file exists and is no folder"):
        convert(source, tmp_path / "file", magnitude(), force=True)
    assert (home / "letter.txt").read_text() == "dear"


def test_a_source_of_links(source: Path, tmp_path: Path) -> None:
    """A snapshot in the Hugging Face cache holds links to blobs."""
    links = tmp_path / "snapshot"
    links.mkdir()
    for path in source.iterdir():
        (links / path.name).symlink_to(path)
    convert(links, tmp_path / "out", magnitude())
    for path in (tmp_path / "out").iterdir():
        assert not path.is_symlink()
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"model": 1}'


def test_calibration_tokens_are_no_matter_for_magnitude(source: Path, tmp_path: Path) -> None:
    """Tokens are not looked at, and not written down as if they had been."""
    convert(source, tmp_path / "a", magnitude())
    convert(source, tmp_path / "b", magnitude(), tokens=tiny_tokens())
    for path in (tmp_path / "a").iterdir():
        if path.is_file():
            assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


def test_a_destination_that_appears_meanwhile(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def appear(done: int, total: int, name: str) -> None:
        out.mkdir(exist_ok=True)
        (out / "config.json").write_text("somebody's")

    with pytest.raises(UsageError, match="out exists; name another folder, or replace it with --f"):
        convert(source, out, magnitude(), progress=appear)
    assert (out / "config.json").read_text() == "somebody's"
    made = convert(source, out, magnitude(), force=True)
    assert made.resumed == made.preview.shards
    assert list(tmp_path.iterdir()) == [out]


def test_a_source_where_the_work_would_be_done(source: Path, tmp_path: Path) -> None:
    work = tmp_path / "out.partial"
    shutil.copytree(source, work / "inner")
    before = sorted(work.rglob("*"))
    for folder in (work / "inner", work):
        if folder == work:
            shutil.copytree(source, work, dirs_exist_ok=True)
            before = sorted(work.rglob("*"))
        with pytest.raises(UsageError, match=r"works in .*out.partial, where .*; name another"):
            convert(folder, tmp_path / "out", magnitude(), force=True)
        assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize("name", ["loop", "x" * 300, "~no-such-user-here/out"], ids=len)
def test_destinations_that_are_no_place(source: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    target = name if name.startswith("~") else tmp_path / name
    with pytest.raises(UsageError) as caught:
        convert(source, target, magnitude())
    assert str(target) in str(caught.value)
    assert str(caught.value).endswith("name another")
    assert "\n" not in str(caught.value)


def test_what_is_copied_must_be_readable(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.os, "access", lambda path, mode: path.name != "tokenizer.json")
    with pytest.raises(
        CheckpointError, match=r"cannot read .*tokenizer.json, which is copied: per"
    ):
        convert(source, tmp_path / "out", magnitude())
    assert not list(tmp_path.iterdir())


def test_tensors_of_dtypes_that_are_not_written(tmp_path: Path, seed: int) -> None:
    folder = save_tensors(tmp_path / "src", block())
    content = (folder / "model.safetensors").read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    header, end = json.loads(content[8:data]), len(content) - data
    header["odd"] = {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [end, end + 4]}
    write_raw(folder / "model.safetensors", header, content[data:] + b"odd!")
    with pytest.raises(
        CheckpointError, match="odd is F8_E8M0, which is not written; known are F64"
    ):
        convert(folder, tmp_path / "out", magnitude())


@pytest.mark.parametrize("shape", [(16, 0), (0, 16)])
def test_linears_without_weights(tmp_path: Path, seed: int, shape: tuple[int, int]) -> None:
    empty = {"model.layers.0.mlp.odd.weight": torch.zeros(shape)}
    folder = save_tensors(tmp_path / "src", {**block(), **empty})
    with pytest.raises(
        CheckpointError, match=r"mlp.odd has shape \[.*\]; a linear's weight has at"
    ):
        convert(folder, tmp_path / "out", magnitude())


def test_a_note_on_names_that_keep_nothing(source: Path) -> None:
    keep = ("lm_head", "lm_heed", "model.layers.0", "v_proj", "q_proj", "k_proj")
    notes = preview(source, magnitude(keep=keep)).notes
    assert len(notes) == 2
    for note, name in zip(notes, ("lm_heed", "model.layers.0"), strict=True):
        assert note.startswith(f"keep names {name}, which matches no linear that is converted")


def test_an_old_name_of_the_quantisation_goes(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "src"
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["compression_config"] = {
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": {"a": 1},
    }
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "out", magnitude())
    made = CheckpointReader(tmp_path / "out").config
    assert "compression_config" not in made
    assert made["quantization_config"]["kv_cache_scheme"] == {"a": 1}
