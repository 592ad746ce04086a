"""`slidesparse convert`: from options to a checkpoint, and every mistake in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from tiny_checkpoints import all_tensors, save_tensors, save_tiny
from tiny_models import VOCABULARY

from slidesparse.checkpoint import convert as module
from slidesparse.checkpoint.config import provenance
from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.cli.main import cli
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method, Recipe


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["convert", *map(str, arguments)], env={"HF_HUB_OFFLINE": "1"})


def failed(result: Result, code: int) -> str:
    """The one line of a mistake, after the lines that say what was planned."""
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: ")
    assert not any(line.startswith(("Error", "Traceback")) for line in lines[:-1])
    return lines[-1]


def made(out: Path) -> Recipe:
    known = provenance(CheckpointReader(out).config)
    assert known is not None
    return known.recipe


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "src"
    save_tiny(folder)
    return folder


@pytest.fixture
def ids(tmp_path: Path, seed: int) -> Path:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(torch.randint(3, VOCABULARY, (600,)).tolist()))
    return path


def test_the_defaults_are_wanda_and_fp8(source: Path, tmp_path: Path, ids: Path) -> None:
    out = tmp_path / "out"
    result = run(source, out, "--calibration", ids, "--sequences", 4, "--length", 16)
    assert result.exit_code == 0, result.output
    assert made(out) == Recipe(Pattern(6, 8), Method.WANDA, DType.FP8, ("lm_head",))
    assert CheckpointReader(out).config["slidesparse"]["calibration"]["shape"] == [4, 16]
    plan = result.stderr.splitlines()
    assert plan[:3] == [
        f"{source} -> {out}",
        "linears: 21 to 6:8 by wanda, quantised to fp8_e4m3",
        "kept: lm_head",
    ]
    assert plan[3].startswith("size: ")
    assert plan[3].endswith(" kB in 4 shards")
    first, second, third = result.stdout.splitlines()
    assert first == f"wrote {out}"
    assert second.startswith("relative error of scaled weights: median 0.")
    assert third == f"next: slidesparse inspect {out}"


def test_every_option(source: Path, tmp_path: Path, ids: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    options = ["--pattern", "2:10", "--dtype", "INT8", "--method", "SparseGPT", "--permute"]
    options += ["--keep", "lm_head, o_proj,", "--calibration", ids, "--sequences", 3]
    result = run(source, out, *options, "--length", 20, "--seed", 3, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert made(out) == Recipe(Pattern(8, 10), Method.SPARSEGPT, DType.INT8, ("lm_head", "o_proj"))
    assert CheckpointReader(out).config["slidesparse"]["permute"] is True
    again = run(source, out, *options)
    assert "exists; name another folder, or replace it with --force" in failed(again, 2)
    assert run(source, out, "--method", "magnitude", "--force").exit_code == 0
    assert made(out).method is Method.MAGNITUDE


def test_a_recipe_from_a_file(source: Path, tmp_path: Path) -> None:
    layers = {"model.layers.1.mlp.up_proj": Pattern(2, 4), "model.layers.0.mlp.up_proj": Pattern()}
    recipe = Recipe(Pattern(6, 8), Method.MAGNITUDE, None, layers=layers)
    path = tmp_path / "recipe.json"
    path.write_text(recipe.to_json())
    result = run(source, tmp_path / "out", "--recipe", path)
    assert result.exit_code == 0, result.output
    assert made(tmp_path / "out") == recipe
    assert "linears: 19 to 6:8, 1 to 2:4 by magnitude, not quantised" in result.stderr
    for name in ("pattern", "dtype", "method", "keep"):
        value = {"pattern": "6:8", "dtype": "fp8", "method": "wanda", "keep": "lm_head"}[name]
        both = run(source, tmp_path / "out2", "--recipe", path, f"--{name}", value)
        assert f"--recipe and --{name} exclude each other" in failed(both, 2)
    path.write_text("{}")
    assert "is no recipe" in failed(run(source, tmp_path / "out2", "--recipe", path), 2)
    assert not (tmp_path / "out2").exists()


def test_a_dry_run_writes_nothing(source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", "--dry-run", "--keep", "lm_head,v_proj")
    assert result.exit_code == 0, result.output
    assert "linears: 18 to 6:8 by wanda" in result.stderr
    assert (
        "kept: lm_head, model.layers.0.self_attn.v_proj, model.layers.1.self_attn.v_proj, mod"
        in (result.stderr)
    )
    assert "note: in 3 places, model.layers.0.self_attn first, some of q_proj" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "wanda needs --calibration FILE with text; or use --method magnitude"),
        (["--pattern", "5:8"], 2, "5:8 is not of the (2N-2):2N family"),
        (
            ["--method", "magnitude", "--calibration", "x"],
            2,
            "magnitude to this pattern looks at no",
        ),
        (["--pattern", "dense"], 0, ""),
        (["--method", "magnitude", "--device", "tpu"], 2, "tpu"),
        (["--method", "magnitude", "--keep", ""], 0, ""),
        (["--calibration", "gone.txt"], 1, "cannot read gone.txt"),
    ],
)
def test_mistakes(
    source: Path, tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    result = run(source, tmp_path / "out", *options)
    if code:
        assert message in failed(result, code)
        assert not (tmp_path / "out").exists()
    else:
        assert result.exit_code == 0
        assert (made(tmp_path / "out").keep == ()) == ("--keep" in options)


def test_calibration_that_does_not_fit(source: Path, tmp_path: Path, ids: Path) -> None:
    result = run(source, tmp_path / "out", "--calibration", ids)
    assert "128 x 2048 = 262,144 tokens; ids.json has 600" in failed(result, 1)
    ids.write_text(json.dumps([5] * 100 + [VOCABULARY]))
    result = run(source, tmp_path / "out", "--calibration", ids, "--sequences", 1, "--length", 101)
    assert f"token id {VOCABULARY} is not in the model's vocabulary" in failed(result, 1)
    assert not (tmp_path / "out").exists()


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    assert "nowhere is not a directory" in failed(run(tmp_path / "nowhere", tmp_path / "o"), 1)
    result = run("some/model", tmp_path / "o")
    message = failed(result, 2)
    assert "no directory 'some/model', and the Hugging Face cache does not hold it" in message
    assert "hf download some/model" in message
    damaged = tmp_path / "src"
    save_tiny(damaged)
    path = damaged / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert "model.safetensors is damaged: it is truncated" in failed(
        run(damaged, tmp_path / "o"), 1
    )
    assert [it.name for it in tmp_path.iterdir()] == ["src"]


def test_an_id_in_the_cache_of_hugging_face(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def snapshot(repo: str, local_files_only: bool) -> str:
        assert (repo, local_files_only) == ("some/model", True)
        return str(source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    result = run("some/model", tmp_path / "out", "--method", "magnitude")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith(f"{source} -> {tmp_path / 'out'}")


def test_ctrl_c_keeps_what_is_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, calls = module._make, []

    def interrupted(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        make(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_make", interrupted)
        result = run(source, tmp_path / "out", "--method", "magnitude")
    assert result.exit_code == 130
    assert "interrupted; finished shards are kept, the same command goes on" in result.stderr
    assert not (tmp_path / "out").exists()
    result = run(source, tmp_path / "out", "--method", "magnitude")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].endswith("out, 2 shards from an earlier start")


@pytest.mark.parametrize("name", ["a--b/c", "a..b/c", "foo/bar.git"])
def test_ids_that_no_hub_has(tmp_path: Path, name: str) -> None:
    line = failed(run(name, tmp_path / "out", "--method", "magnitude"), 2)
    assert f"there is no directory {name!r}, and the Hugging Face cache does not hold it" in line


@pytest.mark.parametrize("name", ["x" * 300, "~no-such-user-here/src"], ids=len)
def test_sources_that_are_no_place(tmp_path: Path, name: str) -> None:
    line = failed(run(name, tmp_path / "out", "--method", "magnitude"), 2)
    assert f"cannot read {name}: " in line


@pytest.mark.parametrize("number", [-1, 10**30])
def test_seeds_out_of_range(source: Path, tmp_path: Path, ids: Path, number: int) -> None:
    result = run(source, tmp_path / "out", "--calibration", ids, "--seed", number)
    assert result.exit_code == 2
    assert "Invalid value for '--seed'" in result.stderr


def test_a_dry_run_finds_a_destination_that_may_not_be_replaced(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    line = failed(run(source, tmp_path, "--dry-run"), 2)
    assert "exists; name another folder, or replace it with --force" in line


def test_a_dry_run_says_that_text_is_needed(source: Path, tmp_path: Path) -> None:
    told = run(source, tmp_path / "out", "--dry-run").stderr.splitlines()
    assert "calibration: wanda runs the model on text" in told
    told = run(source, tmp_path / "out", "--dry-run", "--method", "magnitude").stderr.splitlines()
    assert not any(line.startswith("calibration") for line in told)


@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "real"])
def test_text_that_nothing_looks_at(
    source: Path, tmp_path: Path, ids: Path, dry: list[str]
) -> None:
    asked = (source, tmp_path / "out", "--method", "magnitude", "--calibration", ids)
    assert "looks at no text; leave out --calibration" in failed(run(*asked, *dry), 2)
    assert not (tmp_path / "out").exists()


def test_what_a_failed_conversion_leaves_is_named(source: Path, tmp_path: Path) -> None:
    tensors = all_tensors(source)
    broken = tensors[max(name for name in tensors if name.endswith("down_proj.weight"))]
    broken[3, 5] = float("nan")
    config = json.loads((source / "config.json").read_text())
    folder = save_tensors(tmp_path / "bad", tensors, config)
    result = run(folder, tmp_path / "out", "--method", "magnitude")
    assert "NaN or Inf" in failed(result, 1)
    kept = f"{tmp_path / 'out.partial'} keeps the finished shards: the same command goes on"
    assert result.stderr.strip().splitlines()[-2] == kept
