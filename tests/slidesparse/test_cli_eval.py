"""`slidesparse eval` on the CPU: a model and a text become a table and a file; errors in a line."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli_runs import assert_one_line
from click.testing import CliRunner, Result
from eval_models import learned_model, make_text, save
from safetensors.torch import load_file, save_file

from slidesparse.accuracy.evaluate import variants
from slidesparse.bench.accuracy import run as accuracy
from slidesparse.bench.accuracy.record import AccuracyRecord, read_json
from slidesparse.cli.eval import _filled
from slidesparse.cli.main import cli
from slidesparse.devices import CPU, detect
from slidesparse.errors import CalibrationError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method, Recipe

P68 = Pattern.parse("6:8")
SMALL = ("--length", "40", "--sequences", "6", "--windows", "5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a text to calibrate on and one to evaluate on."""
    made = tmp_path_factory.mktemp("eval")
    save(learned_model(20), made / "model")
    (made / "text.txt").write_text(make_text(400, seed=7))
    (made / "calibration.txt").write_text(make_text(400, seed=8))
    return made


def run(folder: Path, *arguments: str, model: str = "model") -> Result:
    given = [str(folder / model), "--device", "cpu", "--text", str(folder / "text.txt")]
    return CliRunner().invoke(cli, ["eval", *given, *SMALL, *arguments], env={"COLUMNS": None})


def with_calibration(folder: Path, *arguments: str) -> Result:
    return run(folder, "--calibration", str(folder / "calibration.txt"), *arguments)


def read(path: Path, result: Result) -> AccuracyRecord:
    assert result.exit_code == 0, result.output
    return read_json(path)


def test_the_whole_table(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    result = with_calibration(
        folder, "--patterns", "dense,2:4,6:8", "--dtypes", "none,fp8,int8", "--json", str(file)
    )
    record = read(file, result)
    wanted = variants(
        (DENSE, Pattern.parse("2:4"), P68), tuple(Method), (None, DType.FP8, DType.INT8)
    )
    assert len(record.rows) == len(wanted) == 21
    for row, variant in zip(record.rows, wanted, strict=True):
        assert (row.pattern, row.method, row.dtype) == (
            variant.pattern,
            variant.method,
            variant.dtype,
        )
        assert row.zeros == pytest.approx(float(row.pattern.zeros), abs=1e-3)
        assert row.tokens == 5 * 39
    lines = result.stdout.splitlines()
    assert lines[0] == (
        f"No GPU in use: evaluating 21 variants of model on the CPU ({detect(CPU).name}) with "
        "small defaults: 5 windows of 40 tokens, 6 calibration sequences. More text gives figures "
        "to rely on."
    )
    shown = [line.split() for line in lines if line.split()[:3] == ["6:8", "wanda", "int8"]]
    row = record.row(P68, Method.WANDA, DType.INT8) or pytest.fail("no such row")
    assert shown[0][3:6] == ["25.0", "%", f"{row.perplexity:.2f}"]
    assert shown[0][6:9] == [f"{row.increase:.4f}", "+-", f"{row.error:.4f}"]
    assert f"{100 * row.agreement:.2f}" in shown[0]
    assert shown[0][-1] == f"{row.kl:.4f}"
    assert "\x1b" not in result.stdout


def test_the_file_says_how_it_came_about(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    arguments = ("--pattern", "6:8", "--method", "wanda", "--dtype", "fp8", "--seed", "4")
    record = read(file, with_calibration(folder, *arguments, "--json", str(file)))
    assert record.model == "model"
    assert record.evaluation.name == "text.txt"
    content = (folder / "text.txt").read_bytes()
    assert record.evaluation.sha256 == hashlib.sha256(content).hexdigest()
    assert record.evaluation.tokens == 195
    assert record.calibration is not None
    assert (record.calibration.name, record.calibration.tokens) == ("calibration.txt", 240)
    settings = record.settings
    assert (settings["precision"], settings["seed"], settings["device"]) == ("float32", 4, "cpu")
    assert (settings["sequences"], settings["length"], settings["windows"]) == (6, 40, 5)
    assert settings["keep"] == ["lm_head"]
    assert str(folder) not in file.read_text(), "no path of this machine"
    assert record.fingerprint == detect(CPU)
    assert record.commit
    assert record.created[:2] == "20"
    assert not record.interrupted


def test_the_same_seed_gives_the_same_figures(folder: Path, tmp_path: Path) -> None:
    arguments = ("--patterns", "6:8", "--methods", "sparsegpt", "--dtypes", "int8", "-q")
    found = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        file = tmp_path / name
        result = with_calibration(folder, *arguments, "--seed", seed, "--json", str(file))
        assert result.output.count("\n") == 0 or "Error" not in result.output
        found.append(read(file, result).rows[0].loss)
    assert found[0] == found[1] != found[2]


def test_magnitude_needs_no_calibration(folder: Path) -> None:
    result = run(folder, "--patterns", "6:8", "--methods", "magnitude", "--dtypes", "none")
    assert result.exit_code == 0, result.output
    assert "without calibration" in result.stdout


def test_a_recipe(folder: Path, tmp_path: Path) -> None:
    layers = {"model.layers.0.mlp.up_proj": P68}
    path, file = tmp_path / "recipe.json", tmp_path / "out.json"
    path.write_text(Recipe(DENSE, Method.MAGNITUDE, DType.INT8, layers=layers).to_json())
    result = run(folder, "--recipe", str(path), "--json", str(file))
    record = read(file, result)
    assert [row.recipe for row in record.rows] == [False, True]
    assert record.rows[1].dtype is DType.INT8
    assert 0 < record.rows[1].zeros < 0.25
    assert "recipe, dense" in result.stdout


def test_a_converted_checkpoint_is_evaluated_as_it_is(folder: Path, tmp_path: Path) -> None:
    """Here pruned only, so that nothing but its own block says that it was converted."""
    made = tmp_path / "made"
    shutil.copytree(folder / "model", made)
    config = json.loads((made / "config.json").read_text())
    block = {"version": "0", "pattern": "2:4", "layers": {}, "method": "wanda", "dtype": None}
    config["slidesparse"] = {**block, "keep": ["lm_head"]}
    (made / "config.json").write_text(json.dumps(config))
    tensors = load_file(made / "model.safetensors")
    for name, tensor in tensors.items():
        if "proj" in name:
            tensor[:, ::2] = 0
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})

    alone = CliRunner().invoke(
        cli, ["eval", str(made), "--device", "cpu", "--text", str(folder / "text.txt")]
    )
    assert_one_line(alone, 2, "is pruned or quantised already", "--reference")
    file = tmp_path / "out.json"
    arguments = ["--reference", str(folder / "model"), "--json", str(file), *SMALL]
    result = CliRunner().invoke(
        cli,
        ["eval", str(made), "--device", "cpu", "--text", str(folder / "text.txt"), *arguments],
    )
    (row,) = read(file, result).rows
    assert (str(row.pattern), row.method, row.dtype) == ("2:4", Method.WANDA, None)
    assert row.zeros == pytest.approx(0.5)
    assert row.kl > 0.1
    assert read_json(file).settings["reference"] == "model"


def test_token_ids_need_no_tokenizer(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text(str([4 + index % 90 for index in range(300)]))
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((folder / "model" / name).read_bytes())
    arguments = ["eval", str(bare), "--text", str(tmp_path / "ids.json"), "--device", "cpu"]
    result = CliRunner().invoke(cli, [*arguments, *SMALL, "--patterns", "dense"])
    assert result.exit_code == 0, result.output


def test_the_same_text_for_both_is_said(folder: Path) -> None:
    same = ("--calibration", str(folder / "text.txt"))
    choice = ("--patterns", "6:8", "--methods", "wanda", "--dtypes", "none")
    result = run(folder, *choice, *same)
    assert result.exit_code == 0
    assert "note: calibrated and evaluated on the same text" in result.stderr


def test_an_interrupted_run_keeps_what_it_has(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = accuracy.evaluate

    def interrupted(*arguments: Any, **named: Any) -> Any:
        for count, outcome in enumerate(real(*arguments, **named)):
            if count == 2:
                raise KeyboardInterrupt
            yield outcome

    monkeypatch.setattr(accuracy, "evaluate", interrupted)
    file = tmp_path / "out.json"
    result = run(folder, "--patterns", "dense", "--dtypes", "none,fp8,int8", "--json", str(file))
    assert result.exit_code == 130
    assert "interrupted; what was measured is above" in result.stderr
    record = read_json(file)
    assert record.interrupted
    assert len(record.rows) == 2


def test_an_error_on_the_way_keeps_what_was_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = accuracy.evaluate

    def failing(*arguments: Any, **named: Any) -> Any:
        yield next(real(*arguments, **named))
        raise CalibrationError("the second variant fails")

    monkeypatch.setattr(accuracy, "evaluate", failing)
    file = tmp_path / "out.json"
    result = run(folder, "--patterns", "dense", "--json", str(file))
    assert_one_line(result, 1, "the second variant fails")
    assert len(read_json(file).rows) == 1


def test_tasks_are_handed_over(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fake:
        def __init__(self, names: tuple[str, ...], tokenizer: Any) -> None:
            assert names == ("arc_easy", "hellaswag")
            assert tokenizer("w0")["input_ids"] == [4]

        def __call__(self, model: torch.nn.Module) -> dict[str, Any]:
            return {"arc_easy": {"alias": "arc_easy", "acc,none": 0.25}}

    monkeypatch.setattr(accuracy, "Tasks", Fake)
    file = tmp_path / "out.json"
    choice = ("--patterns", "dense", "--dtypes", "int8")
    result = run(folder, *choice, "--lm-eval", "arc_easy,hellaswag", "--json", str(file))
    assert read(file, result).rows[0].tasks["arc_easy"]["acc,none"] == 0.25
    assert "dense int8: arc_easy: acc,none 0.2500" in result.stdout


def test_without_the_harness(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = run(folder, "--patterns", "dense", "--lm-eval", "arc_easy")
    assert_one_line(result, 2, "pip install 'lm_eval[hf]'")


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["--patterns", "3:8"], 2, "pattern 3:8 is not of the (2N-2):2N family"),
        (["--methods", "wanda,obs"], 2, "unknown method 'obs'; use magnitude, wanda, sparsegpt"),
        (["--dtypes", "bf16"], 2, "unknown dtype 'bf16'; use fp8 or int8, or none"),
        (["--patterns", "6:8"], 2, "wanda looks at text to prune: give --calibration FILE"),
        (["--recipe", "missing.json"], 2, "cannot read missing.json"),
        (["--reference", "x", "--dtypes", "fp8"], 2, "as it is; leave out --dtypes"),
        (["--recipe", "x", "--methods", "wanda"], 2, "--recipe says what --methods would"),
        (["--stride", "41"], 2, "--stride 41 is more than --length 40"),
        (["--json", "missing/out.json"], 2, "cannot write missing/out.json: the folder"),
        (["--calibration", "missing.txt"], 1, "cannot read missing.txt: No such file"),
        (["--keep", "q_proj", "--patterns", "dense"], 1, "lm_head has to be kept"),
        (["--length", "100", "--patterns", "dense"], 1, "reads at most 64: lower --length"),
        (["--precision", "int8"], 2, "'int8' is not one of"),
        (["--device", "tpu"], 2, "unknown device 'tpu'"),
    ],
)
def test_bad_usage(folder: Path, arguments: list[str], code: int, problem: str) -> None:
    assert_one_line(run(folder, *arguments), code, problem)


def test_too_little_calibration_text(folder: Path) -> None:
    result = with_calibration(folder, "--sequences", "11", "--methods", "wanda")
    problem = "calibration needs 11 x 40 = 440 tokens; calibration.txt has 400: lower --sequences"
    assert_one_line(result, 1, problem)


def test_no_model(folder: Path) -> None:
    assert_one_line(run(folder, model="missing"), 2, "is no model")


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from slidesparse.cli.main import cli; "
        "result = CliRunner().invoke(cli, ['eval', '--help']); "
        "print(result.exit_code, *({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["0"]


def test_defaults_by_device() -> None:
    given = dict.fromkeys(["sequences", "length", "windows", "patterns", "dtypes"])
    gpu: Any = SimpleNamespace(is_gpu=True)
    small = _filled(given, CPU)
    assert (small["sequences"], small["length"], small["windows"]) == (4, 256, 4)
    assert [str(pattern) for pattern in small["patterns"]] == ["dense", "6:8"]
    assert small["dtypes"] == (None, DType.FP8)
    large = _filled(given, gpu)
    assert large["dtypes"] == (None, DType.FP8, DType.INT8)
    assert (large["sequences"], large["length"], large["windows"]) == (128, 2048, None)
    assert [str(p) for p in large["patterns"]] == ["dense", "2:4", "4:6", "6:8", "8:10"]
    assert _filled({"windows": 3}, gpu) == {"windows": 3}
