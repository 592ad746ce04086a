"""`slidesparse bench linear` on the CPU: what it prints and writes agree; errors in one line."""

from __future__ import annotations

import csv
import io
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from cli_runs import (
    assert_each_file_is_written_alone,
    assert_one_line,
    assert_usage_error_without_torch,
)
from click.testing import CliRunner, Result
from linear_records import TUNED, make_record
from rich.console import Console

from slidesparse.bench.fault import DeviceLost
from slidesparse.bench.linear.record import LinearRecord, read_json
from slidesparse.bench.linear.run import LinearBench
from slidesparse.cli.linear_table import plans, print_linears, reasons, verdict
from slidesparse.cli.main import cli
from slidesparse.devices import CPU, Device, detect
from slidesparse.layers import SparseLinear

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROUNDS", "FEWEST_ROUNDS"):
        monkeypatch.setattr(f"slidesparse.bench.linear.run.{name}", 2)


def bench(*arguments: str) -> Result:
    rest = [] if "--device" in arguments else ["--device", "cpu"]
    rest += [] if "--model" in arguments else ["--model", str(TINY)]
    rest += [] if "--m" in arguments else ["--m", "2"]
    return CliRunner().invoke(cli, ["bench", "linear", *arguments, *rest], env={"COLUMNS": None})


def test_from_command_line_to_files(tmp_path: Path) -> None:
    file, table = tmp_path / "out.json", tmp_path / "out.csv"
    files = ("--json", str(file), "--csv", str(table), "--cache-dir", str(tmp_path / "cache"))
    result = bench("--seed", "5", "--m", "1,3", "--layers", "down,o", *files)
    assert result.exit_code == 0, result.output
    record = read_json(file)
    lines = result.stdout.splitlines()
    assert lines[0] == (
        f"No GPU in use: timing {record.model} on the CPU ({detect(CPU).name}) with small "
        "defaults: reference implementations and eager torch. These figures say nothing about a "
        "GPU."
    )
    assert record.settings["seed"] == 5
    assert record.settings["m"] == [1, 3]
    assert record.settings["layers"] == ["down", "o"]
    assert record.settings["dtypes"] == ["fp8_e4m3", "int8"]
    assert record.settings["patterns"] == ["dense", "6:8"]
    assert record.settings["compile"] is False
    assert "per-token quantisation" in record.settings["timed"]
    assert record.fingerprint == detect(CPU)
    assert len(record.rows) == 2 * 2 * 2 * 2
    printed = [re.split(r"\s+", line.strip()) for line in lines if re.match(r" ?(o|down) ", line)]
    assert len(printed) == len(record.rows) // 2
    for cells, dense, six in zip(printed, record.rows[::2], record.rows[1::2], strict=True):
        assert cells[:4] == [
            *(dense.layer.name, str(dense.problem.n), str(dense.problem.k), str(dense.tokens)),
        ]
        assert dense.torch is not None
        assert cells[4] == f"{dense.torch.median_us:,.{0 if dense.torch.median_us >= 1000 else 1}f}"
        assert cells[6].rstrip("=") == f"{dense.ratio:.2f}"
        assert cells[8].rstrip("=") == f"{six.ratio:.2f}"
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert len(rows) == 2 * len(record.rows)
    assert "16 linears in " in lines[-1]


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    options = ("-q", "--layers", "o", "--dtype", "int8", "--patterns", "2:4", "--json", str(file))
    result = bench(*options)
    assert (result.exit_code, result.output) == (0, "")
    (row,) = read_json(file).rows
    assert (str(row.problem.pattern), str(row.problem.dtype)) == ("2:4", "int8")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--dtype", "fp8,int4"), "int4"),
        (("--patterns", "5:8"), "5:8"),
        (("--m", "0"), "M=0 is not a positive number of tokens"),
        (("--layers", "o,head"), "has no linear 'head'; it has qkv, o, gate_up, down"),
        (("--model", "nope"), "nope"),
        (("--tp", "0"), "--tp"),
        (("--device", "tpu"), "tpu"),
        (("--json", "/no/such/folder/x.json"), "the folder /no/such/folder does not exist"),
        (("--json", "same", "--csv", "same"), "--json and --csv both name same"),
        (("--autotune", "64", "--no-compile"), "--autotune excludes --no-autotune"),
        (("--autotune", "none"), "M='none' is not an integer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options(options: tuple[str, ...], text: str) -> None:
    result = bench(*options)
    assert result.stdout == ""
    assert_one_line(result, 2, text)


def test_help_says_what_is_compared_and_the_defaults() -> None:
    result = CliRunner().invoke(cli, ["bench", "linear", "--help"])
    assert result.exit_code == 0
    packed = "".join(result.stdout.split())
    assert "1,16,64,256,1024,4096,16384,65536" in packed
    assert "dense,2:4,4:6,6:8,8:10" in packed
    assert "againsttorch'sonthesameweights" in packed
    assert "linear" in CliRunner().invoke(cli, ["bench", "--help"]).stdout


def test_fp8_is_refused_at_once_where_the_gpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    old = replace(detect(CPU), name="NVIDIA A100", sm=80)
    monkeypatch.setattr("slidesparse.devices.select_device", lambda text: Device("cuda"))
    monkeypatch.setattr("slidesparse.devices.detect", lambda device: old)
    assert_one_line(bench("--dtype", "int8,fp8"), 2, "cannot run these linears", "FP8 needs SM 8.9")


def test_without_triton_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert_one_line(bench(), 1, "triton cannot be imported", "pip install triton")


def test_nothing_that_fits_fails_with_an_example() -> None:
    result = bench("--layers", "o", "--m", str(2**31 - 1))
    assert_one_line(result, 1, f"nothing was measured; o M={2**31 - 1} N=64 K=64 ", "GiB")
    assert "skipped o fp8_e4m3 M=" in result.stdout


def test_a_wrong_linear_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = SparseLinear.forward
    monkeypatch.setattr(
        SparseLinear,
        "forward",
        lambda self, x: right(self, x) if self.pattern.dense else 2 * right(self, x),
    )
    file = tmp_path / "out.json"
    result = bench("--layers", "o", "--json", str(file))
    assert_one_line(result, 1, "2 of 4 linears failed, first o M=2 N=64 K=64 ", "wrong result")
    assert "FAILED o fp8_e4m3 M=2 6:8: wrong result" in result.stdout
    assert [row.error is None for row in read_json(file).rows] == [True, False, True, False]


@pytest.mark.parametrize("lost", [True, False])
def test_what_was_measured_before_the_end_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    right = LinearBench._measure

    def measure(self: LinearBench, layer, dtype, *rest):
        if layer.name == "down":
            raise DeviceLost(None, "fp8 down M=2: ours lost it") if lost else KeyboardInterrupt
        return right(self, layer, dtype, *rest)

    monkeypatch.setattr(LinearBench, "_measure", measure)
    file = tmp_path / "out.json"
    result = bench("--layers", "o,down", "--patterns", "6:8", "--json", str(file))
    if lost:
        assert_one_line(result, 1, "the device is lost: fp8 down M=2", "is kept")
    else:
        assert result.exit_code == 130
        assert "interrupted; what was measured is above" in result.stderr
    record = read_json(file)
    assert record.interrupted
    assert [row.layer.name for row in record.rows] == ["o"]


@pytest.mark.parametrize("broken", ["json", "csv"])
def test_a_file_that_cannot_be_written_costs_neither_the_table_nor_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    command = partial(bench, "--layers", "o", "--dtype", "int8")
    writer = f"slidesparse.bench.linear.record.write_{broken}"
    assert_each_file_is_written_alone(command, tmp_path, broken, writer, monkeypatch, "linears in ")


@pytest.mark.parametrize("arguments", [("--layers", "nope"), ("--m", "0"), ("--model", "nope")])
def test_usage_errors_do_not_wait_for_torch(arguments: tuple[str, ...]) -> None:
    assert_usage_error_without_torch("bench", "linear", *arguments)


def printed(record: LinearRecord) -> str:
    text = io.StringIO()
    print_linears(record, Console(file=text, width=120, highlight=False))
    return text.getvalue()


def test_the_tables_of_a_gpu() -> None:
    text = printed(make_record())
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    assert ["o", "64", "64", "16", "50.5", "50.0 1.01=", "40.0 1.20"] in rows
    assert ["o", "64", "64", "64", "100.0", "100.0 1.00=", "90.0"] in rows
    assert ["down", "64", "96", "16", "80.0", "80.0 1.00=", "100.0 0.75"] in rows
    assert ["o", "64", "64", "16", "-", "-", "failed"] in rows
    # 2 x 50.5 + 3 x 80 us of torch's; 6:8: 321 over 380.
    assert ["M = 16", "0.34", "1.00", "0.84"] in rows
    assert ["M = 64", "-", "-", "-"] in rows
    for line in (
        "cold L2, CUDA graphs: all of it",
        "6:8: sparse in 3 of 4 cases (native 3, cublaslt 1)",
        f"torch without {TUNED} in 2 of 2 cases: RuntimeError: no valid triton configs",
        "torch's fastest way: torch.compile 6",
        "FAILED o int8 M=16 6:8: wrong result: relative error 1.0e+00",
        "skipped down fp8_e4m3 M=64: it needs about 900 GiB",
        "7 linears in 123.4 s, 45.6 s of them in torch.compile, seed 7",
    ):
        assert line in " ".join(text.split()), line


def test_the_verdict_counts_what_is_clear_and_names_the_worst() -> None:
    record = make_record()
    assert verdict(record) == (
        "ours is more than 5 % faster than torch in 1 of 5 cases and more than 5 % slower in 1; "
        "the worst: down fp8_e4m3 M=16 6:8, torch takes 0.75 of our time"
    )
    assert verdict(replace(record, rows=record.rows[:2])).endswith("slower in 0")


def test_each_reason_and_each_plan_is_one_line() -> None:
    record = make_record()
    assert len(reasons(record)) == 2
    assert plans(record)[0] == "dense: sparse in 0 of 3 cases (cublaslt 3)"
