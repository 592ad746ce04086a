"""`slidesparse inspect`: what the weights hold, and what the cache of this machine says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from tiny_checkpoints import all_tensors, bitmask, save_tensors, save_tiny, zeros_per_block

from slidesparse.cache import TuningCache
from slidesparse.candidate import ProblemResult
from slidesparse.checkpoint.convert import convert
from slidesparse.cli.main import cli
from slidesparse.devices import CPU, detect
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, Scales
from slidesparse.recipe import Method, Recipe

UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"
HEADS = 64
"""Columns of q_proj's output; k and v have half."""


def run(cache: Path, *arguments: object) -> Result:
    options = ["--device", "cpu", "--cache-dir", str(cache)]
    environment = {"COLUMNS": "100"}
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments), *options], env=environment)


def parsed(cache: Path, *arguments: object) -> dict[str, Any]:
    result = run(cache, *arguments, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert isinstance(content, dict)
    return content


def rows(output: str) -> dict[str, list[str]]:
    lines = [line.split() for line in output.splitlines() if line.startswith(("model.", "lm_"))]
    return {name: rest for name, *rest in lines}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "src"
    save_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def converted(source: Path) -> Path:
    out = source.parent / "out"
    layers = {UP: Pattern(2, 4), DOWN: Pattern()}
    convert(source, out, Recipe(Pattern(6, 8), Method.MAGNITUDE, DType.FP8, layers=layers))
    return out


def test_json_says_all(converted: Path, tmp_path: Path) -> None:
    content = parsed(tmp_path, converted)
    tensors = all_tensors(converted)
    assert content["path"] == str(converted)
    assert content["machine"] == str(detect(CPU))
    assert content["m"] == 16384
    assert content["converted"] == {
        "version": "0.1.0",
        "pattern": "6:8",
        "layers": {UP: "2:4", DOWN: "dense"},
        "method": "magnitude",
        "dtype": "fp8_e4m3",
        "keep": ["lm_head"],
    }
    linears = {linear.pop("name"): linear for linear in content["linears"]}
    assert linears.keys() == {
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and name.endswith(".weight") and "embed" not in name
    }
    weights = zeros = 0
    for name, linear in linears.items():
        weight = tensors[f"{name}.weight"].float()
        none = int((weight == 0).sum())
        weights, zeros = weights + weight.numel(), zeros + none
        assert linear["shape"] == list(weight.shape)
        assert linear["zeros"] == pytest.approx(none / weight.numel())
        assert linear["speedup"] is None
        if name == UP:
            assert linear["pattern"] == "2:4"
        elif name in (DOWN, "lm_head"):
            assert linear["pattern"] == "dense"
        else:
            assert linear["pattern"] == "6:8"
            assert zeros_per_block(weight, 6) < 2
        plain = name == "lm_head"
        assert (linear["dtype"], linear["form"]) == (
            ("BF16", "plain") if plain else ("F8_E4M3", "w8a8")
        )
    assert content["totals"] == {
        "linears": 22,
        "weights": weights,
        "zeros": pytest.approx(zeros / weights),
        "bytes": sum(it.nbytes for it in tensors.values()),
    }


def test_the_table_joins_what_is_alike(converted: Path, tmp_path: Path) -> None:
    result = run(tmp_path, converted)
    assert result.exit_code == 0, result.output
    heading = result.stdout.splitlines()[0]
    assert heading == (
        f"{converted}: converted by slidesparse 0.1.0 to a recipe of 2 patterns, otherwise 6:8, "
        "magnitude, fp8_e4m3"
    )
    found = rows(result.stdout)
    assert found["model.layers.*.self_attn.q_proj"] == [
        *("3", "64", "48", "F8_E4M3", "25.0%", "6:8", "-", "-")
    ]
    assert found["model.layers.*.mlp.up_proj"][0] == "2"
    assert found[UP] == ["1", "88", "48", "F8_E4M3", "50.0%", "2:4", "-", "-"]
    assert found["lm_head"][0] == "1"
    assert "22 linears, 0.1 M weights, " in result.stdout
    assert "speedup: nothing was measured on" in result.stdout
    assert "run slidesparse search on this model" in result.stdout
    every = rows(run(tmp_path, converted, "--all").stdout)
    assert len(every) == 22
    assert all(cells[0] == "1" for cells in every.values())


def test_a_checkpoint_of_somebody_else(source: Path, tmp_path: Path) -> None:
    result = run(tmp_path, source)
    assert result.stdout.splitlines()[0] == f"{source}: not converted by slidesparse"
    assert parsed(tmp_path, source)["converted"] is None
    assert {cells[5] for cells in rows(result.stdout).values()} == {"dense"}


def test_a_packed_checkpoint(tmp_path: Path, seed: int) -> None:
    w = torch.randn(8, 16)
    w = (w * (torch.rand(8, 4, 4).argsort(dim=2) < 2).reshape(8, 16)).to(torch.bfloat16)
    folder = save_tensors(tmp_path / "src", bitmask("model.layers.0.mlp.up_proj", w))
    cells = rows(run(tmp_path, folder).stdout)["model.layers.0.mlp.up_proj"]
    assert cells == ["1", "8", "16", "BF16", "packed", "50.0%", "2:4", "-", "-"]


def race(
    make: Callable[..., ProblemResult], n: int, k: int, m: int, pattern: str, gain: float
) -> ProblemResult:
    """A result in which the sparse candidate takes 10 us and the dense one `gain` times that."""
    result = make(m=m, n=n, k=k, pattern=pattern, us=10.0)
    assert result.baseline is not None
    dense = replace(result.baseline, median_us=10.0 * gain)
    ranked = tuple(sorted((result.ranked[0], dense), key=lambda each: each.median_us))
    problem = replace(result.problem, scales=Scales.ROWCOL)
    return replace(result, problem=problem, ranked=ranked, baseline=dense)


def test_speedups_are_those_of_the_joined_linear(
    converted: Path, tmp_path: Path, make_result: Callable[..., ProblemResult]
) -> None:
    cache = TuningCache(tmp_path, detect(CPU), bundled=tmp_path / "none")
    cache.put_many(
        [
            race(make_result, 2 * HEADS, 48, 16384, "6:8", 1.25),
            race(make_result, 2 * HEADS, 48, 64, "6:8", 1.05),
            race(make_result, 2 * 88, 48, 4096, "6:8", 0.8),
            race(make_result, 48, HEADS, 16384, "8:10", 1.5),
        ]
    )
    linears = {it["name"]: it["speedup"] for it in parsed(tmp_path, converted)["linears"]}
    joined = {"gain": 1.25, "m": 16384, "n": 2 * HEADS, "provenance": "cached"}
    for part in ("q", "k", "v"):
        assert linears[f"model.layers.0.self_attn.{part}_proj"] == joined
    # Dense was faster and runs; measured at the nearest M.
    dense = {"gain": 1.0, "m": 4096, "n": 2 * 88, "provenance": "cached"}
    assert linears["model.layers.0.mlp.gate_proj"] == dense
    assert linears["model.layers.0.mlp.up_proj"] == dense
    # Its parts have different patterns; another pattern was measured; it is not quantised.
    assert linears["model.layers.1.mlp.gate_proj"] is None
    assert linears["model.layers.0.self_attn.o_proj"] is None
    assert linears["lm_head"] is None
    few = {it["name"]: it["speedup"] for it in parsed(tmp_path, converted, "--m", 50)["linears"]}
    assert few["model.layers.0.self_attn.q_proj"]["gain"] == 1.05

    result = run(tmp_path, converted)
    assert rows(result.stdout)["model.layers.*.self_attn.q_proj"][-2:] == ["1.25x", "cached"]
    last = result.stdout.splitlines()[-1]
    assert "over the best dense one at M=16384 (measured at M=4096, 16384) on" in last


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"12345", "model.safetensors is damaged: it has 5 bytes"),
        ("config.json", b"{", "config.json is not JSON"),
    ],
)
def test_damage_is_one_line(
    source: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    folder = tmp_path / "src"
    save_tensors(folder, all_tensors(source))
    (folder / name).write_bytes(content)
    result = run(tmp_path, folder)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = run(tmp_path, tmp_path / "gone")
    assert result.exit_code == 1
    assert "gone is not a directory" in result.stderr
