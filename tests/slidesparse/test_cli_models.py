"""`slidesparse models`: tables that fit, JSON that is complete, errors in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from slidesparse.cli.main import cli
from slidesparse.models import load_model, preset_names

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def run(*arguments: str, columns: int | None = 80) -> Result:
    environment = {"COLUMNS": None if columns is None else str(columns)}
    return CliRunner().invoke(cli, ["models", *arguments], env=environment)


def parsed(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert isinstance(content, dict)
    return content


def cells(output: str, name: str) -> list[str]:
    """The cells of the row that starts with `name`."""
    (row,) = [line for line in output.splitlines() if line.split()[:1] == [name]]
    return row.split()


def test_list_shows_every_preset_on_one_line() -> None:
    result = run()
    assert result.exit_code == 0
    for name in preset_names():
        spec = load_model(name)
        row = cells(result.stdout, name)
        assert row[1:5] == [spec.architecture, str(spec.layers), "x", str(spec.hidden)]
        assert row[5:7] == [f"{spec.parameters / 1e9:.1f}", "B"]
        assert row[-1] == spec.source


def test_one_model_shows_its_linears() -> None:
    result = run("qwen2.5-7b")
    assert result.exit_code == 0
    assert cells(result.stdout, "qkv") == [
        *("qkv", "dense", "4608", "3584", "28"),
        *("3584", "4800", "5376", "5760"),
    ]
    assert cells(result.stdout, "down") == [
        *("down", "dense", "3584", "18944", "28"),
        *("18944", "25280", "28416", "30336"),
    ]
    assert "tensor-parallel size: 1 (possible: 1, 2, 4)" in result.stdout


def test_gate_up_at_the_largest_m_is_flagged() -> None:
    result = run("qwen2.5-7b")
    *_, flagged = [line for line in result.stdout.splitlines() if line.startswith("gate_up")]
    assert flagged.split() == ["gate_up", "65536", "output", "65536", "37888", "2,483,027,968"]


def test_nothing_to_flag_is_said() -> None:
    result = run("qwen2.5-7b", "--m", "16,4096")
    assert "No output or lifted input passes 2^31 - 1 elements up to M=4096." in result.stdout


def test_lifted_input_that_is_flagged_names_its_pattern() -> None:
    result = run("qwen3-next-80b-a3b")
    assert "input lifted for 8:10 655360    3296 2,160,066,560" in result.stdout
    assert "an expert GEMM sees M x 10/512 rows" in result.stdout


def test_patterns_choose_the_columns() -> None:
    result = run("qwen2.5-7b", "--patterns", "dense,2:6")
    (header,) = [line for line in result.stdout.splitlines() if line.startswith("linear ")][:1]
    assert header.split() == ["linear", "kind", "N", "K", "count", "K'", "4:6"]


def test_tensor_parallel_size() -> None:
    assert cells(run("qwen2.5-7b", "--tp", "4").stdout, "qkv")[2:4] == ["1152", "3584"]


@pytest.mark.parametrize("columns", [80, 100, None])
@pytest.mark.parametrize("name", ["", *preset_names()])
def test_tables_are_plain_and_whole(name: str, columns: int | None) -> None:
    result = run(*([name] if name else []), columns=columns)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert ELLIPSIS not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= (columns or 120)
    for known in preset_names() if not name else [name]:
        assert load_model(known).source in result.stdout


def test_json_of_the_list() -> None:
    models = parsed()["models"]
    assert [model["name"] for model in models] == list(preset_names())
    assert {model["name"]: model["parameters"] for model in models} == {
        name: load_model(name).parameters for name in preset_names()
    }


def test_json_of_one_model() -> None:
    content = parsed("qwen2.5-7b", "--tp", "2", "--m", "65536,131072", "--patterns", "6:8")
    assert (content["name"], content["tp"], content["tp_sizes"]) == ("qwen2.5-7b", 2, [1, 2, 4])
    assert content["source"] == "Qwen/Qwen2.5-7B"
    assert content["tokens"] == [65536, 131072]
    assert content["linears"][0] == {
        **{"name": "qkv", "n": 2304, "k": 3584, "count": 28, "kind": "dense"},
        **{"bias": True, "experts": 0, "active": 0, "expanded_k": {"6:8": 5376}},
    }
    assert content["overflows"] == [
        {
            **{"layer": "gate_up", "m": 131072, "tensor": "output", "pattern": None},
            **{"rows": 131072, "columns": 18944, "elements": 2_483_027_968},
        }
    ]


def test_json_of_a_flagged_input_names_its_pattern() -> None:
    (found,) = parsed("qwen3-next-80b-a3b")["overflows"]
    assert (found["tensor"], found["pattern"]) == ("input", "8:10")


def test_directory(tmp_path: Path) -> None:
    config = {"model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2}
    sizes = {"intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 10}
    (tmp_path / "config.json").write_text(json.dumps({**config, **sizes}))
    result = run(str(tmp_path))
    assert result.exit_code == 0
    assert cells(result.stdout, "qkv")[:5] == ["qkv", "dense", "192", "64", "2"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["qwen2.5-7"], "unknown model 'qwen2.5-7'; nearest presets: qwen2.5-7b"),
        (["qwen2.5-7b", "--tp", "8"], "tp=8 does not divide num_attention_heads=28 of qwen2.5-7b"),
        (["bitnet-2b", "--tp", "2"], "tp=2 does not divide num_key_value_heads=5 of bitnet-2b"),
        (["qwen2.5-7b", "--tp", "0"], "tp=0 is not a positive number of GPUs"),
        (["qwen2.5-7b", "--tp", "two"], "Invalid value for '--tp': 'two' is not a valid integer"),
        (["qwen2.5-7b", "--m", "0"], "M=0 is not a positive number of tokens"),
        (["qwen2.5-7b", "--m", "1.5"], "M='1.5' is not an integer"),
        (["qwen2.5-7b", "--patterns", "3:8"], "pattern 3:8 is not of the (2N-2):2N family"),
        (["/nowhere/at/all"], "there is no directory '/nowhere/at/all' with a config.json"),
        (["a", "b"], "Got unexpected extra argument (b)"),
    ],
)
def test_bad_usage(arguments: list[str], problem: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert problem in line
    assert "Traceback" not in result.stderr


def test_needs_no_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from slidesparse.cli.main import cli; "
        "result = CliRunner().invoke(cli, ['models', 'qwen2.5-7b']); "
        "print(result.exit_code, *({'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.split() == ["0"]


def test_no_color_on_a_terminal() -> None:
    """On a terminal rich may use bold; NO_COLOR must keep colours out."""
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    command = [sys.executable, "-c", "from slidesparse.cli.main import main; main()", "models"]
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "80"}
    subprocess.run(command, stdout=child, env=environment, check=True, timeout=60)
    os.close(child)
    shown = os.read(parent, 100_000).decode()
    os.close(parent)
    assert "qwen3-next-80b-a3b" in shown
    assert "\x1b[3" not in shown
    assert "\x1b[9" not in shown
