"""`slidesparse bench prefill` and `decode`: prints and files agree, resume, Ctrl-C, bad options."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_runs import assert_one_line, assert_usage_error_without_torch, ended, wait_for
from click.testing import CliRunner, Result
from sweep_engines import LOG, SCRIPT, calls, pids

from slidesparse.bench.sweep.record import SweepRecord, read_json
from slidesparse.bench.sweep.runner import ENGINES, Kind
from slidesparse.cli.bench_sweep import Chosen, choose_engine, first_line
from slidesparse.cli.main import cli
from slidesparse.devices import CPU, Device, detect

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"
SMALL = ("--model", str(TINY), "--dtype", "fp8", "--patterns", "6:8", "--seed", "5")
SUPPORT = Path(__file__).resolve().parents[1] / "support"

Sweep = Callable[..., Result]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log"
    monkeypatch.setenv(LOG, str(path))
    return path


@pytest.fixture
def sweep(log: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Run the command with the scripted engine."""
    scripted = replace(ENGINES["linear"], factory="sweep_engines:Scripted")
    monkeypatch.setitem(ENGINES, "linear", scripted)

    def run(*arguments: str, script: dict[str, str] | None = None, stage: str = "decode") -> Result:
        monkeypatch.setenv(SCRIPT, json.dumps(script or {}))
        rest = [] if "--m" in arguments else ["--m", "2,4"]
        return invoke(stage, *SMALL, *rest, *arguments)

    return run


def invoke(*arguments: str) -> Result:
    rest = [] if "--device" in arguments else ["--device", "cpu"]
    return CliRunner().invoke(cli, ["bench", *arguments, *rest], env={"COLUMNS": None})


def labels(record: SweepRecord) -> list[str]:
    return [f"{cell.key.label} {cell.m}" for cell in record.cells]


def test_the_engine_linear_from_command_line_to_files(tmp_path: Path) -> None:
    """Real linears of a tiny model on the CPU, without a script."""
    file, table = tmp_path / "out.json", tmp_path / "out.csv"
    files = ("--json", str(file), "--csv", str(table), "--cache-dir", str(tmp_path / "cache"))
    small = ("--model", str(TINY), "--seed", "5", "--m", "3,1", "--repeats", "2")
    result = invoke("prefill", *small, "--dtype", "int8", "--same-weights", *files)
    assert result.exit_code == 0, result.output
    record = read_json(file)
    name = detect(CPU).name
    assert result.stdout.splitlines()[0] == (
        f"No GPU in use: sweeping prefill of {TINY} on the CPU ({name}) with small defaults, "
        f"--engine linear ({choose_engine(None, CPU).why}): reference implementations and eager "
        "torch. These figures say nothing about a GPU."
    )
    expected = ["stock", "ours dense", "stock 6:8", "ours 6:8", "stock again"]
    assert labels(record) == [f"{label} {m}" for label in expected for m in (1, 3)]
    assert record.failed == ()
    assert not record.interrupted
    assert record.fingerprint == detect(CPU)
    assert record.settings["modes"] == ["eager"]
    assert (record.settings["prompt"], record.settings["repeats"]) == (1024, 2)
    assert all(len(cell.figures.step_us) == 2 for cell in record.cells if cell.figures)
    assert {ran["qkv"].split(",")[0] for ran in record.ran} == {"eager", "reference"}
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert len(rows) == len(record.cells)
    assert "10 of 10 cells in " in result.stdout.splitlines()[-1]


def test_the_tables_follow_from_the_record(sweep: Sweep, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    result = sweep("--json", str(file), "--same-weights", script={"* M=4": "wide"})
    assert result.exit_code == 0, result.output
    lines = [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()]
    cells = [line for line in lines if line[0] in {"stock", "ours 6:8", "stock 6:8", "stock again"}]
    assert ["ours 6:8", "2", "0.160", "1.0 %", "12,500", "1980", "650", "10", "75", "25"] in cells
    assert ["stock again", "4*", "0.400", "1.0 %", "10,000", "1980", "650", "10", "75", "25"] in (
        cells
    )
    assert len(cells) == 8
    # 100 over 80, and the harder 95 over 80.
    assert ["M = 2", "10,000", "+0.0 %", "1.25 / 1.19"] in lines
    assert ["M = 4*", "10,000", "+0.0 %", "1.25 / 1.19"] in lines
    text = " ".join(result.stdout.split())
    assert "Stock: torch: per-token quantisation" in text
    assert "M*: a tensor of the step has more than 2^31 - 1 elements." in text
    assert "ours is faster than stock in 2 of 2 cells, slower in 0, no different in 0" in text
    assert "8 of 8 cells in " in text
    assert [cell.wide for cell in read_json(file).cells] == [False, True] * 4


def test_a_failure_is_marked_and_told_and_the_rest_is_measured(
    sweep: Sweep, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    result = sweep("--json", str(file), script={"ours 6:8 M=2": "exit"})
    assert_one_line(result, 1, "1 of 6 cells failed, first", "ours 6:8 M=2: exit code 3")
    record = read_json(file)
    assert [cell.failure for cell in record.cells] == [None, None, Kind.CRASH, None, None, None]
    assert f"FAILED {TINY} fp8_e4m3 eager ours 6:8 M=2: crash: exit code 3" in result.stdout
    printed = [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()]
    assert ["ours 6:8", "2", "crash", "-", "-", "-", "-", "-", "-", "-"] in printed
    assert ["M = 2", "10,000", "+0.0 %", "crash"] in printed


def test_the_same_command_measures_what_is_missing_or_failed(
    sweep: Sweep, log: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    assert sweep("--json", str(file), script={"ours 6:8 M=4": "refuse"}).exit_code == 1
    before = read_json(file)
    log.unlink()
    result = sweep("--json", str(file))
    assert result.exit_code == 0, result.output
    # What is measured later has stock measured after it.
    assert calls(log) == ["ours 6:8 build 4", "ours 6:8 M=4", "stock build 4", "stock M=4"]
    record = read_json(file)
    assert [cell.session for cell in record.cells] == [0, 0, 0, 1, 0, 1]
    assert record.cells[:3] == before.cells[:3]
    assert record.failed == ()
    log.unlink()
    again = sweep("--resume", str(file))
    assert again.exit_code == 0
    assert f"every cell is in {file}; --fresh measures anew" in again.stderr
    assert not log.exists()
    assert len(read_json(file).cells) == 6


def test_a_seed_that_was_drawn_is_taken_up_again(sweep: Sweep, log: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    plain = ("--model", str(TINY), "--dtype", "int8", "--patterns", "6:8", "--m", "2")
    assert invoke("decode", *plain, "--json", str(file), "--budget", "1e-9").exit_code == 0
    seed = read_json(file).settings["seed"]
    result = invoke("decode", *plain, "--resume", str(file), "--budget", "1e-9")
    assert result.exit_code == 0, result.output
    assert read_json(file).settings["seed"] == seed
    assert "3 cells are left: the budget of 1e-09 s was used up" in result.stderr
    assert not log.exists()


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (("--repeats", "7"), "repeats 7 here, 3 there"),
        (("--seed", "6"), "seed 6 here, 5 there"),
    ],
)
def test_a_file_of_other_settings_is_refused(
    changed: tuple[str, ...], text: str, sweep: Sweep, log: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    assert sweep("--json", str(file), "--budget", "1e-9").exit_code == 0
    content = file.read_bytes()
    assert_one_line(sweep("--json", str(file), *changed), 2, str(file), text, "--fresh")
    assert_one_line(sweep("--resume", str(file), *changed), 2, text)
    assert file.read_bytes() == content
    assert not log.exists()
    assert sweep("--json", str(file), "--fresh", "--budget", "1e-9", *changed).exit_code == 0
    assert len(read_json(file).sessions) == 1


def test_a_file_of_the_other_stage_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    options = ("--json", str(file), "--budget", "1e-9", "--prompt", "64")
    assert sweep(*options).exit_code == 0
    assert_one_line(sweep(*options, stage="prefill"), 2, "stage prefill here, decode there")


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Pretend to run on the GPU of this UUID."""

    def choose(uuid: str) -> None:
        monkeypatch.setattr("slidesparse.cli.bench_sweep.cards", lambda device, count: (uuid,))

    return choose


def test_another_gpu_does_not_go_on_with_half_a_comparison(
    sweep: Sweep, tmp_path: Path, board: Callable[[str], None]
) -> None:
    file = tmp_path / "out.json"
    board("a")
    assert sweep("--json", str(file), script={"ours 6:8 M=4": "exit"}).exit_code == 1
    assert len(read_json(file).measured) == 5
    board("b")
    before = file.read_bytes()
    listed = sweep("--json", str(file), "--dry-run")
    assert "because boards of a kind differ: 5" in listed.stderr
    assert listed.stdout.splitlines()[2] == "3 processes, 6 cells:"
    assert file.read_bytes() == before
    assert sweep("--json", str(file)).exit_code == 0
    record = read_json(file)
    assert len(record.measured) == 6
    assert {record.sessions[cell.session].cards for cell in record.cells} == {("b",)}


def test_what_another_gpu_has_measured_stays_until_something_takes_its_place(
    sweep: Sweep, tmp_path: Path, board: Callable[[str], None]
) -> None:
    file = tmp_path / "out.json"
    board("a")
    assert sweep("--json", str(file), script={"ours 6:8 M=4": "exit"}).exit_code == 1
    board("b")
    assert sweep("--json", str(file), "--budget", "1e-9").exit_code == 0
    assert len(read_json(file).measured) == 5
    assert sweep("--json", str(file), script={"* build": "raise"}).exit_code == 1
    assert sweep("--json", str(file)).exit_code == 0
    board("c")
    whole = file.read_bytes()
    again = sweep("--json", str(file))
    assert f"every cell is in {file}" in again.stderr
    for wider in (("--m", "8"), ("--m", "2,4", "--patterns", "8:10")):
        refused = sweep("--json", str(file), *wider)
        assert_one_line(refused, 2, "cells of another GPU", "Ask for them too", "--fresh")
    assert len(read_json(file).measured) == 6
    assert [cell["figures"] for cell in json.loads(file.read_text())["cells"]] == [
        cell["figures"] for cell in json.loads(whole)["cells"]
    ]


@pytest.mark.parametrize("content", ['{"kind": "slidesparse-sw', '{"kind": "other"}', ""])
def test_a_damaged_file_is_neither_read_nor_overwritten(
    content: str, sweep: Sweep, log: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    file.write_text(content)
    assert_one_line(sweep("--json", str(file)), 2, str(file), "--fresh")
    assert file.read_text() == content
    assert not log.exists()


def test_dry_run_lists_processes_and_cells_and_runs_none(
    sweep: Sweep, log: Path, tmp_path: Path
) -> None:
    result = sweep("--dry-run", "--same-weights", "--json", str(tmp_path / "out.json"))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[2:] == [
        "4 processes, 8 cells:",
        *(
            f"  {TINY} fp8_e4m3 eager {label}: M=2,4"
            for label in ("stock", "stock 6:8", "ours 6:8", "stock again")
        ),
    ]
    assert not log.exists()
    assert not (tmp_path / "out.json").exists()
    wide = invoke(
        *("prefill", "--dry-run", "--model", "qwen2.5-7b,llama3.2-1b", "--patterns", "dense"),
        *("--dtype", "int8", "--m", "65536,4096", "--modes", "eager,graphs"),
    )
    lines = wide.stdout.splitlines()
    assert lines[2] == "12 processes, 24 cells:"
    assert lines[3] == "  qwen2.5-7b int8 eager stock: M=4096,65536 (wide)"
    assert lines[-1] == "  llama3.2-1b int8 graphs stock again: M=4096,65536"


def test_quiet_prints_nothing_and_files_hold_all(sweep: Sweep, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure, table = tmp_path / "out.png", tmp_path / "out.csv"
    result = sweep("-q", "--m", "2", "--figure", str(figure), "--csv", str(table))
    assert (result.exit_code, result.output) == (0, "")
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert len(table.read_text().splitlines()) == 1 + 3


def test_without_matplotlib_the_extra_is_named_before_anything_runs(
    sweep: Sweep, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("slidesparse.cli.bench_sweep.find_spec", lambda name: None)
    result = sweep("--figure", str(tmp_path / "out.png"))
    assert_one_line(result, 2, "--figure needs matplotlib; pip install 'slidesparse[report]'")
    assert not log.exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--dtype", "fp8,int4"), "int4"),
        (("--patterns", "5:8"), "5:8"),
        (("--m", "0"), "M=0 is not a positive number of tokens"),
        (("--modes", "lazy"), "unknown mode 'lazy'; use eager, graphs or both"),
        (("--engine", "tgi"), "tgi"),
        (("--model", "nope"), "nope"),
        (("--model", "qwen2.5-7b", "--tp", "3"), "tp=3 does not divide"),
        (("--device", "tpu"), "tpu"),
        (("--json", "/no/such/folder/x.json"), "the folder /no/such/folder does not exist"),
        (("--json", "same", "--csv", "same"), "--json and --csv both name same"),
        (("--csv", "same.png", "--figure", "same.png"), "--csv and --figure both name"),
        (("--figure", "x.doc"), "end its name in .png, .svg or .pdf"),
        (("--resume", "gone.json"), "there is no such file; begin with --json"),
        (("--resume", str(TINY / "config.json"), "--fresh"), "exclude each other"),
        (("--resume", str(TINY / "config.json"), "--json", "x.json"), "leave out --json"),
        (("--budget", "0"), "not a positive number of seconds"),
        (("--repeats", "0"), "--repeats"),
        (("--engine", "vllm"), "use --engine linear"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options(options: tuple[str, ...], text: str) -> None:
    if ".png" in text or options[0] == "--figure":
        pytest.importorskip("matplotlib")
    result = invoke("prefill", *options)
    assert result.stdout == ""
    assert_one_line(result, 2, text)


def test_vllm_is_the_default_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Device("cuda")
    monkeypatch.setattr("slidesparse.cli.bench_sweep.find_spec", lambda name: object())
    assert choose_engine(None, gpu) == ("vllm", "")
    assert choose_engine("linear", gpu) == ("linear", "")
    assert choose_engine(None, CPU) == ("linear", "vLLM needs a GPU")
    monkeypatch.setattr("slidesparse.cli.bench_sweep.find_spec", lambda name: None)
    assert choose_engine(None, gpu) == ("linear", "vLLM is not installed")


def test_vllm_needs_a_gpu_for_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slidesparse.cli.bench_sweep.choose_engine", lambda *_: Chosen("vllm"))
    result = invoke("prefill", "--tp", "2", "--model", "qwen2.5-7b")
    assert_one_line(result, 2, "--tp 2 needs as many GPUs, and torch sees 0")


def test_the_first_line_names_engine_version_and_reason() -> None:
    from sweep_records import make_heading

    gpu = Device("cuda")
    assert first_line(make_heading(), choose_engine("linear", gpu), gpu) == (
        "Sweeping prefill of qwen2.5-7b on NVIDIA H200, --engine linear 0.25.1"
    )


def test_help_says_the_defaults() -> None:
    for stage, ms in (("prefill", "512,1024,2048,4096,8192"), ("decode", "1,16,64,128,256,512")):
        result = CliRunner().invoke(cli, ["bench", stage, "--help"])
        assert result.exit_code == 0
        packed = "".join(result.stdout.split())
        for text in (ms, "dense,2:4,4:6,6:8,8:10", "stock,oursdense,oursbypattern,stockagain"):
            assert text in packed, text
        assert stage in CliRunner().invoke(cli, ["bench", "--help"]).stdout


@pytest.mark.parametrize("arguments", [("--m", "0"), ("--model", "nope"), ("--resume", "gone")])
def test_usage_errors_do_not_wait_for_torch(arguments: tuple[str, ...]) -> None:
    assert_usage_error_without_torch("bench", "decode", *arguments)


MAIN = """
import sys
from dataclasses import replace
from slidesparse.bench.sweep.runner import ENGINES
from slidesparse.cli.main import main

ENGINES["linear"] = replace(ENGINES["linear"], factory="sweep_engines:Scripted")
if __name__ == "__main__":
    main()
"""


def start(tmp_path: Path, log: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command as a process and a group of its own, hanging in the second cell of ours."""
    main = tmp_path / "main.py"
    main.write_text(MAIN)
    path = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")]))
    script = {"ours 6:8 M=4": "hang"}
    return subprocess.Popen(
        [sys.executable, str(main), "bench", "decode", *SMALL, *arguments],
        env={**os.environ, "PYTHONPATH": path, SCRIPT: json.dumps(script), LOG: str(log)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_keeps_what_was_measured_and_a_second_one_too(
    presses: int, tmp_path: Path, log: Path, sweep: Sweep
) -> None:
    file = tmp_path / "out.json"
    rest = ("--m", "2,4", "--device", "cpu", "--json", str(file))
    process = start(tmp_path, log, *rest)
    wait_for(log, "ours 6:8 M=4")
    for _ in range(presses):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted; what was measured is above" in errors
    assert f"{file} holds what was measured; the same command goes on" in errors
    assert "Traceback" not in errors
    assert "3 of 3 cells in " in output
    record = read_json(file)
    assert record.interrupted
    assert labels(record) == ["stock 2", "stock 4", "ours 6:8 2"]
    assert all(ended(pid) for pid in pids(log))
    if presses == 1:
        return
    log.unlink()
    result = sweep("--json", str(file))
    assert result.exit_code == 0, result.output
    assert calls(log)[:2] == ["ours 6:8 build 4", "ours 6:8 M=4"]
    whole = read_json(file)
    assert len(whole.cells) == 6
    assert not whole.interrupted


def test_a_sweep_that_is_killed_is_resumed(tmp_path: Path, log: Path, sweep: Sweep) -> None:
    file = tmp_path / "out.json"
    process = start(tmp_path, log, "--m", "2,4", "--device", "cpu", "--json", str(file))
    wait_for(log, "ours 6:8 M=4")
    process.kill()
    process.communicate(timeout=60)
    assert labels(read_json(file)) == ["stock 2", "stock 4", "ours 6:8 2"]
    log.unlink()
    assert sweep("--resume", str(file)).exit_code == 0
    assert calls(log)[0] == "ours 6:8 build 4"
    assert len(read_json(file).cells) == 6
