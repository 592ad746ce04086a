"""`slidesparse profile show`: every GPU of the table, JSON, refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from slidesparse.cli.main import cli
from slidesparse.gpus import find_gpu, gpu_keys


@pytest.fixture
def show(tmp_path: Path) -> Any:
    def run(*arguments: str) -> Result:
        command = ["profile", "show", "--cache-dir", str(tmp_path / "cache"), *arguments]
        return CliRunner().invoke(cli, command, env={"COLUMNS": "120"})

    return run


def test_every_gpu_is_shown(show: Any) -> None:
    result = show()
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[0] == "Settings for qwen2.5-7b, sequences of 4,096 tokens, one GPU"
    assert [line for line in lines if line in {find_gpu(key).name for key in gpu_keys()}] == [
        find_gpu(key).name for key in gpu_keys()
    ]
    assert sum(line.startswith("attention ") for line in lines) == len(gpu_keys())


def test_a_family_as_json(show: Any) -> None:
    result = show("--gpu", "v100", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert [it["gpu"] for it in content["profiles"]] == ["v100-sxm2-16gb", "v100-sxm2-32gb"]
    found = {it["name"]: it for it in content["profiles"][0]["settings"]}
    assert (found["dtype"]["value"], found["sparse"]["value"]) == ("fp16", "no")
    assert set(found["dtype"]) == {"name", "value", "reason", "provenance"}


def test_json_to_a_file(show: Any, tmp_path: Path) -> None:
    file = tmp_path / "profiles.json"
    result = show("--gpu", "h200,l4", "--model", "llama3.2-1b", "--quiet", "--json", str(file))
    assert (result.exit_code, result.output) == (0, "")
    content = json.loads(file.read_text(encoding="utf-8"))
    assert [it["gpu"] for it in content["profiles"]] == ["l4", "h200"]
    assert content["model"] == "llama3.2-1b"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--gpu", "h20"), "unknown GPU 'h20'; nearest: h200"),
        (("--gpu", "h200,"), "unknown GPU ''"),
        (("--model", "qwen2.5-8b"), "qwen2.5-8b"),
        (("--context", "0"), "0 is not in the range x>=1"),
        (("--json", "no/such/folder/x.json"), "cannot write no/such/folder/x.json"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    show: Any, arguments: tuple[str, ...], text: str
) -> None:
    result = show(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_here_without_a_gpu(show: Any) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = show("--gpu", "here")
    assert result.exit_code == 2
    assert "no GPU here: " in result.stderr
    assert "name one with --gpu, for example --gpu h200" in result.stderr
