"""`slidesparse bench attention` on the CPU, and bounds of GPUs that are not here."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from attention_records import CAUSAL, make_record
from cli_runs import assert_each_file_is_written_alone, assert_one_line, run_without_torch
from click.testing import CliRunner, Result
from rich.console import Console

from slidesparse.bench.attention.check import Checker
from slidesparse.bench.attention.record import AttentionRecord, read_json
from slidesparse.bench.attention.run import AttentionBench
from slidesparse.bench.fault import DeviceLost
from slidesparse.cli.attention_table import left_out, print_attention, verdicts
from slidesparse.cli.main import cli
from slidesparse.devices import CPU, detect

TINY = ("--heads", "2", "--seq", "33", "--head-dim", "16")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROUNDS", "FEWEST_ROUNDS"):
        monkeypatch.setattr(f"slidesparse.bench.attention.run.{name}", 2)


def bench(*arguments: str) -> Result:
    rest = [] if {"--device", "--gpu"} & set(arguments) else ["--device", "cpu"]
    return CliRunner().invoke(cli, ["bench", "attention", *arguments, *rest], env={"COLUMNS": None})


def cells(result: Result) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()]


def test_from_command_line_to_files(tmp_path: Path) -> None:
    file, table = tmp_path / "out.json", tmp_path / "out.csv"
    files = ("--json", str(file), "--csv", str(table))
    result = bench(*TINY, "--kv-heads", "1", "--seed", "5", "--targets", "3.82", *files)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "No GPU in use: timing attention, B=1 H=2 S=33 D=16 bf16, on the CPU "
        f"({detect(CPU).name}) with small defaults. These figures say nothing about a GPU; --gpu "
        "NAME computes the bounds of one."
    )
    record = read_json(file)
    assert record.fingerprint == detect(CPU)
    assert record.rates is None
    assert record.settings["seed"] == 5
    assert record.settings["masks"] == ["full", "causal"]
    assert [(row.problem.mask, row.backend) for row in record.rows] == [
        (mask, name) for mask in ("full", "causal") for name in ("flash", "math")
    ]
    shown = [line for line in cells(result) if line[0] in ("flash", "math")]
    assert len(shown) == len(record.rows)
    for line, row in zip(shown, record.rows, strict=True):
        assert line[1] == f"{row.median_us / 1e3:,.3f}"
        assert line[3] == f"{row.median_us / 2:,.2f}"
        assert line[4] == f"{row.median_us / 2:,.3f}"
    assert "No bound: the rates of this device are not known" in result.stdout
    assert "flash: grouped queries as they are" in result.stdout
    assert re.search(r"^cudnn refused: No (viable|available)", result.stdout, re.M)
    assert "fa3 refused: flash_attn_interface cannot be imported" in result.stdout
    assert next(it for it in cells(result) if it[0] == "full")[:3] == ["full", "3.82", "0.00764"]
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert len(rows) == len(record.rows) + len(record.left_out)


def test_document_c_in_one_command_without_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "bound.json"
    options = ("--targets", "3.82,3.0,2.0,223.57", "--no-causal", "--json", str(file))
    result = bench("--gpu", "H100-SXM", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Bounds of H100 SXM 80 GB; nothing runs.\n")
    by_target = {line[1]: line for line in cells(result) if line[0] == "full"}
    assert by_target["3.82"] == ["full", "3.82", "0.3667", "35,979", "128.4", "NO", "33.61"]
    assert by_target["3"][3:] == ["45,813", "128.4", "NO", "42.79"]
    assert by_target["2"][3:] == ["68,719", "128.4", "NO", "64.19"]
    assert by_target["223.57"] == ["full", "223.57", "21.46", "615", "128.4", "yes", "0.57"]
    assert (
        "OUT OF REACH, full: 3.82, 3, 2 us per head (total / H) would need 36.0 PFLOP/s, 45.8 "
        "PFLOP/s, 68.7 PFLOP/s; the bound is 128.4 us at 1,071 TFLOP/s, 33.6, 42.8, 64.2 times "
        "the target"
    ) in result.stdout
    record = read_json(file)
    assert (record.fingerprint, record.rows, record.settings["gpu"]) == (None, (), "h100-sxm")


def test_the_unit_of_a_target_is_said_and_counts() -> None:
    result = bench("--gpu", "h100-sxm", "--targets", "8.1", "--target-unit", "batch-head")
    assert "Targets, us per batch-head (total / (B H))" in result.stdout
    assert [line[5] for line in cells(result) if line[0] in ("full", "causal")] == ["yes", "yes"]
    assert "OUT OF REACH" not in result.stdout


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    options = ("-q", *TINY, "--causal", "--dtype", "fp16", "--backends", "math,flash")
    result = bench(*options, "--json", str(file))
    assert (result.exit_code, result.output) == (0, "")
    record = read_json(file)
    assert [(row.backend, str(row.problem.dtype)) for row in record.rows] == [
        ("flash", "fp16"),
        ("math", "fp16"),
    ]
    assert record.left_out == ()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--heads", "0"), "--heads"),
        (("--seq", "-4"), "--seq"),
        (("--heads", "96", "--kv-heads", "7"), "96 heads cannot share 7 K/V heads evenly"),
        (("--dtype", "fp8"), "fp8"),
        (("--backends", "flsh"), "unknown backend 'flsh', did you mean 'flash'? known: all, flash"),
        (("--targets", "3.82,soon"), "target 'soon' is not a number of microseconds"),
        (("--targets", "0"), "target 0 is not between 1e-06 and 1e+12 microseconds"),
        (("--targets", "nan"), "target nan is not between"),
        (("--target-unit", "token"), "token"),
        (("--gpu", "h300"), "unknown GPU 'h300'; nearest: h200"),
        (("--gpu", "v100"), "no rate of V100 SXM2 32 GB is known for bf16 tensor cores; use"),
        (("--gpu", "h200", "--backends", "flash"), "runs nothing; leave out --backends"),
        (("--gpu", "h200", "--device", "cpu"), "runs nothing; leave out --device"),
        (("--device", "tpu"), "tpu"),
        (("--json", "/no/such/folder/x.json"), "the folder /no/such/folder does not exist"),
        (("--json", "same", "--csv", "same"), "--json and --csv both name same"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options(options: tuple[str, ...], text: str) -> None:
    result = bench(*options)
    assert result.stdout == ""
    assert_one_line(result, 2, text)


def test_help_says_the_defaults() -> None:
    result = CliRunner().invoke(cli, ["bench", "attention", "--help"])
    assert result.exit_code == 0
    packed = "".join(result.stdout.split())
    assert "default:4096;ontheCPU256" in packed
    assert "flash,cudnn,efficient,math,fa3" in packed
    assert "attention" in CliRunner().invoke(cli, ["bench", "--help"]).stdout


def test_a_wrong_backend_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Checker.check
    monkeypatch.setattr(Checker, "check", lambda self, out: right(self, 1.5 * out))
    result = bench(*TINY, "--causal", "--backends", "flash")
    assert_one_line(result, 1, "flash, B=1 H=2 S=33 D=16 bf16 causal: wrong result: a row is off")
    assert "flash WRONG: wrong result" in result.stdout


def test_nothing_that_runs_fails_with_an_example() -> None:
    result = bench(*TINY, "--backends", "efficient")
    assert_one_line(result, 1, "nothing was measured; efficient, B=1 H=2 S=33", "refused: No ")
    assert_one_line(bench("--batch", str(2**31 - 1)), 1, "nothing was measured", "GiB")


@pytest.mark.parametrize("lost", [True, False])
def test_what_was_measured_before_the_end_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    right = AttentionBench._draw

    def draw(self: AttentionBench, problem):
        if problem.causal:
            raise DeviceLost(None, f"{problem}: flash lost it") if lost else KeyboardInterrupt
        return right(self, problem)

    monkeypatch.setattr(AttentionBench, "_draw", draw)
    file = tmp_path / "out.json"
    result = bench(*TINY, "--backends", "flash", "--json", str(file))
    if lost:
        assert_one_line(result, 1, "the device is lost: B=1 H=2", "is kept")
    else:
        assert result.exit_code == 130
        assert "interrupted; what was measured is above" in result.stderr
    record = read_json(file)
    assert record.interrupted
    assert [row.problem.mask for row in record.rows] == ["full"]


@pytest.mark.parametrize("arguments", [("--gpu", "h200"), (*TINY, "--backends", "flash")])
@pytest.mark.parametrize("broken", ["json", "csv"])
def test_a_file_that_cannot_be_written_costs_neither_the_table_nor_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, arguments: tuple[str, ...]
) -> None:
    command = partial(bench, *arguments)
    place = {"json": "record", "csv": "csv"}[broken]
    writer = f"slidesparse.bench.attention.{place}.write_{broken}"
    assert_each_file_is_written_alone(command, tmp_path, broken, writer, monkeypatch, "us/head")


@pytest.mark.parametrize(
    "arguments", [("--targets", "0"), ("--kv-heads", "7"), ("--gpu", "h300"), ("--gpu", "h200")]
)
def test_neither_usage_errors_nor_bounds_wait_for_torch(arguments: tuple[str, ...]) -> None:
    done = run_without_torch("bench", "attention", *arguments)
    assert done.returncode == (0 if arguments[1] == "h200" else 2), done.stderr


def printed(record: AttentionRecord) -> str:
    text = io.StringIO()
    print_attention(record, Console(file=text, width=120, highlight=False))
    return text.getvalue()


def test_the_tables_of_a_gpu() -> None:
    text = printed(make_record())
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    assert [
        *("flash", "21.463", "0.5 %", "223.57", "13.973", "615", "300"),
        *("57", "21.892", "61", "8", "1755", "690", "1.2e-02"),
    ] in rows
    # The bound has no samples and no counters.
    assert ["bound", "12.325", "-", "128.38", "8.024", "1,071"] in [row[:6] for row in rows]
    assert ["full", "3.82", "0.3667", "35,979", "128.4", "NO", "33.61", "187.5", "49.08"] in rows
    packed = " ".join(text.split())
    for line in (
        "cold L2, CUDA graphs",
        "on 8 of 1536 heads",
        "fa3-vllm: vllm.vllm_flash_attn",
        "math memory: it needs at least 192.0 GiB",
        "efficient (causal) WRONG: wrong result",
        "H200 SXM 141 GB: tensor cores 132 SMs x 1980 MHz x 4096 FLOP = 1,071 TFLOP/s (bf16)",
        "Clock: boost clock, GPU table",
        "Floors, full: tensor cores 12.325 ms, exponentials 6.162 ms, memory 1.342 ms; tensor",
        "3 times in 42.1 s, seed 7",
    ):
        assert line in packed, line
    assert "\u2026" not in text, "a column was cut"


def test_a_gpu_without_counters_says_why() -> None:
    record = make_record()
    row = record.rows[0]
    assert row.sustained is not None
    bare = replace(row.sustained, counters={}, no_counters="cuda:0 has no GPM counters")
    found = printed(replace(record, rows=(replace(row, sustained=bare),)))
    assert "no tensor % and DRAM %: cuda:0 has no GPM counters" in found
    assert not re.search(r"tensor % +DRAM %", found)


def test_the_same_reason_is_said_once() -> None:
    record = make_record()
    assert left_out(record) == [
        "math memory: it needs at least 192.0 GiB",
        "efficient (causal) WRONG: wrong result: a row is off by 1.0e+00",
    ]
    assert left_out(replace(record, left_out=())) == []


def test_only_what_is_out_of_reach_is_said() -> None:
    found = verdicts(make_record())
    assert [line.partition(":")[0] for line in found] == [
        "OUT OF REACH, full",
        "OUT OF REACH, causal",
    ]
    assert "200" not in found[0].partition("would need")[0]
    assert verdicts(make_record(targets=(200.0,))) == []
    assert CAUSAL.mask in found[1]
