"""Bad input to `slidesparse search`: one clear line, the right exit code, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from slidesparse.cli.main import cli
from slidesparse.devices import CPU, Device, detect

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny" / "config.json"
CONFIG = json.loads(TINY.read_text())


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)


def search(*arguments: str) -> Result:
    """Run it; `--device cpu` and a dtype unless the arguments say otherwise."""
    rest = [] if "--device" in arguments or "--gpus" in arguments else ["--device", "cpu"]
    rest += [] if "--dtype" in arguments else ["--dtype", "fp8"]
    return CliRunner().invoke(cli, ["search", *arguments, *rest])


def assert_one_line(result: Result, code: int, *texts: str) -> None:
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: "), result.stderr
    assert result.stderr.count("Error: ") == 1
    assert "Traceback" not in result.stderr
    for text in texts:
        assert text in line, line


def test_an_unknown_model_offers_the_nearest() -> None:
    result = search("--model", "qwen2.5-7")
    assert_one_line(result, 2, "qwen2.5-7", "qwen2.5-7b")


def test_a_directory_without_a_config(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = search("--model", str(tmp_path / "empty"))
    assert_one_line(result, 2, str(tmp_path / "empty"), "config.json")


def test_an_unsupported_architecture(tmp_path: Path) -> None:
    content = {**CONFIG, "architectures": ["MambaForCausalLM"], "model_type": "mamba"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert_one_line(search("--model", str(tmp_path)), 2, "Mamba")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--m", "0"), "M=0 is not a positive number of tokens"),
        (("--m", "16,-1"), "M=-1 is not a positive number of tokens"),
        (("--m", "16,1.5"), "M='1.5' is not an integer"),
        (("--m", "many"), "M='many' is not an integer"),
        (("--m", ""), "M='' is not an integer"),
        (("--patterns", "3:8"), "pattern 3:8 is not of the (2N-2):2N family"),
        (("--patterns", "8:6"), "pattern '8:6' keeps 8 of 6 weights"),
        (("--patterns", "2:4:6"), "cannot read pattern '2:4:6'"),
        (("--patterns", ""), "cannot read pattern ''"),
        (("--dtype", "fp4"), "unknown dtype 'fp4'; use fp8 or int8"),
        (("--budget", "0"), "0 is not a positive number of seconds"),
        (("--budget", "nan"), "nan is not a positive number of seconds"),
        (("--budget", "soon"), "'soon' is not a number of seconds"),
        (("--effort", "max"), "'max' is not one of 'quick', 'normal', 'full'"),
        (("--seed", "-1"), "-1 is not in the range 0<=x<=2147483647"),
        (("--tp", "3"), "tp=3 does not divide num_attention_heads=4 of tiny"),
        (("--backends", "cpu-slit"), "unknown backend 'cpu-slit', did you mean 'cpu-slid'; known:"),
        (("--backends", "cpu,"), "unknown backend ''"),
        (("--backends", "nosuch:Thing"), "backend 'nosuch:Thing' cannot be loaded: No module"),
        (("--backends", "json:Thing"), "backend 'json:Thing' cannot be loaded: module 'json' has"),
        (("--backends", "json:JSONDecoder"), "json:JSONDecoder is not a slidesparse backend"),
        (("--backends", "cublaslt"), "backend cublaslt runs on a GPU (--device cuda), not on cpu"),
        (("--device", "tpu"), "unknown device 'tpu'; use auto, cpu, cuda or cuda:INDEX"),
        (("--gpus", "one"), "--gpus 'one' is neither 'all' nor indices such as 0,1"),
        (("--gpus", "0,"), "--gpus '0,' is neither 'all' nor indices such as 0,1"),
        (("--gpus", "\u00b2"), "is neither 'all' nor indices such as 0,1"),
        (("--gpus", "0", "--device", "cpu"), "--gpus 0 and --device cpu exclude each other"),
        (("--out-dtype", "int32"), "fp8_e4m3 operands cannot give int32; use one of bf16, fp16"),
        (("--scales", "none"), "bf16 output does not go with scales none: int32 holds the"),
        (
            ("--dtype", "int8", "--out-dtype", "int32", "--scales", "rowcol"),
            "int32 output does not go with scales rowcol: int32 holds the unscaled sums",
        ),
        (
            ("--dtype", "int8", "--out-dtype", "bf16", "--scales", "none"),
            "bf16 output does not go with scales none",
        ),
        (("--json", "/no/such/folder/x.json"), "the folder /no/such/folder does not exist"),
        (("--csv", "/no/such/folder/x.csv"), "the folder /no/such/folder does not exist"),
        (("--json", "/"), "cannot write /: it is a folder; name a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options(model: str, options: tuple[str, ...], text: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert_one_line(search("--model", model, "--cache-dir", str(cache), *options), 2, text)
    assert not cache.exists()


@pytest.mark.parametrize("option", [("--device", "cuda"), ("--gpus", "all"), ("--gpus", "0")])
def test_a_gpu_that_is_not_there(model: str, option: tuple[str, str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert_one_line(search("--model", model, *option), 1, "cuda:0 asked for, but torch")


def test_fp8_is_refused_at_once_where_the_gpu_has_none(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = replace(detect(CPU), name="NVIDIA A100", sm=80)
    gpu = Device("cuda")
    monkeypatch.setattr("slidesparse.devices.select_device", lambda text: gpu)
    monkeypatch.setattr("slidesparse.devices.detect", lambda device: old)
    monkeypatch.setattr("slidesparse.search.nvidia.detect", lambda device: old)
    result = search("--model", model)
    assert_one_line(
        result,
        2,
        "cuda:0 cannot run this search: FP8 needs SM 8.9 or newer and this is SM 8.0; "
        "use --dtype int8",
    )


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_cache_that_cannot_be_written(model: str, tmp_path: Path, below: str) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    result = search("--model", model, "--cache-dir", str(blocked / below))
    assert_one_line(
        result,
        1,
        f"cannot write the tuning cache: {blocked} is not a directory; "
        "choose another place with --cache-dir or SLIDESPARSE_CACHE_DIR",
    )


def test_nothing_found_fails_with_an_example(model: str, tmp_path: Path) -> None:
    """Sparse backends alone have no dense problem to run, and here no memory for theirs."""
    result = search(
        *("--model", model, "--m", str(2**31 - 1), "--patterns", "dense", "--quiet"),
        *("--cache-dir", str(tmp_path / "cache"), "--backends", "cpu"),
    )
    assert_one_line(
        result,
        1,
        f"nothing was found; for example M={2**31 - 1} N=192 K=64 fp8_e4m3->bf16 tensor dense: "
        "the operands do not fit the memory (host memory: ",
    )


@pytest.mark.parametrize("arguments", [("--model", "nope"), ("--model", "qwen2.5-7b", "--m", "0")])
def test_usage_errors_do_not_wait_for_torch(arguments: tuple[str, ...]) -> None:
    """Torch alone takes longer to import than a usage error may."""
    script = (
        "import sys\nfrom slidesparse.cli.main import cli\n"
        "try:\n    cli(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 2\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "search", *arguments, "--dtype", "fp8"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "Error: " in done.stderr
