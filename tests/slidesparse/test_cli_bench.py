"""`slidesparse bench kernels` on the CPU: what it prints and writes agree; errors in one line."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from bench_records import make_record
from cli_runs import (
    assert_each_file_is_written_alone,
    assert_one_line,
    assert_usage_error_without_torch,
)
from click.testing import CliRunner, Result
from rich.console import Console

from slidesparse.bench.fault import DeviceLost
from slidesparse.bench.kernels.record import KernelRecord, Row, read_json
from slidesparse.bench.kernels.run import KernelBench
from slidesparse.cli.bench_table import print_kernels, reasons, verdict
from slidesparse.cli.main import cli
from slidesparse.devices import CPU, Device, detect
from slidesparse.kernel_problem import Op

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"


def bench(*arguments: str) -> Result:
    rest = [] if "--device" in arguments else ["--device", "cpu"]
    rest += [] if "--model" in arguments else ["--model", str(TINY)]
    return CliRunner().invoke(cli, ["bench", "kernels", *arguments, *rest], env={"COLUMNS": None})


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_from_command_line_to_files(tmp_path: Path, dtype: str) -> None:
    file, table = tmp_path / "out.json", tmp_path / "out.csv"
    cache = tmp_path / "cache"
    files = ("--json", str(file), "--csv", str(table), "--cache-dir", str(cache))
    result = bench("--dtype", dtype, "--seed", "5", "--m", "3,16", *files)
    assert result.exit_code == 0, result.output
    record = read_json(file)
    lines = result.stdout.splitlines()
    assert lines[0] == (
        f"No GPU in use: timing {record.model} on the CPU ({detect(CPU).name}) with small "
        "defaults: reference implementations on the CPU, not kernels. These figures say nothing "
        "about a GPU."
    )
    assert record.settings["seed"] == 5
    assert record.settings["m"] == [3, 16]
    assert record.settings["compile"] is True
    assert record.fingerprint == detect(CPU)
    assert {row.problem.op for row in record.rows} == set(Op)
    assert {str(row.problem.pattern) for row in record.rows} == {"dense", "6:8"}
    stripped = [line.strip() for line in lines]
    printed = [re.split(r"\s{2,}", line) for line in stripped if re.match(r"[a-z_]+ .*\d$", line)]
    assert len(printed) == len(record.rows)
    for cells, row in zip(printed, record.rows, strict=True):
        it, us = row.problem, row.median_us
        assert us is not None
        pattern = str(it.pattern) if it.op.quantizes else "-"
        time = f"{us:,.0f}" if us >= 1000 else f"{us:.1f}"
        assert cells[:5] == [str(it.op), str(it.k), pattern, str(it.m), time]
        assert cells[-1] == f"{us / row.floor_us:.2f}"
    assert lines[-1].startswith(f"{len(record.rows)} kernels in ")
    assert lines[-1].endswith("0 of them tuned, seed 5")
    with table.open(newline="") as opened:
        assert len(list(csv.reader(opened))) == 1 + len(record.rows)
    assert not cache.exists()


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    result = bench("--quiet", "--ops", "dequantize", "--m", "4", "--json", str(file))
    assert (result.exit_code, result.output) == (0, "")
    record = read_json(file)
    assert {row.problem.op for row in record.rows} == {Op.DEQUANTIZE}
    assert 0 <= record.settings["seed"] < 2**31


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--ops", "quantise"), "unknown op 'quantise', did you mean 'quantize'? known: quantize,"),
        (("--ops", "quantize,gemm"), "unknown op 'gemm'; known: quantize, rmsnorm_quantize,"),
        (("--ops", ""), "unknown op ''; known:"),
        (("--m", "0"), "M=0 is not a positive number of tokens"),
        (("--m", "many"), "M='many' is not an integer"),
        (("--patterns", "3:8"), "pattern 3:8 is not of the (2N-2):2N family"),
        (("--dtype", "fp4"), "unknown dtype 'fp4'; use fp8 or int8"),
        (("--tp", "3"), "tp=3 does not divide num_attention_heads=4 of tiny"),
        (("--seed", "-1"), "-1 is not in the range 0<=x<=2147483647"),
        (("--model", "qwen2.5-7"), "qwen2.5-7b"),
        (("--device", "tpu"), "unknown device 'tpu'; use auto, cpu, cuda or cuda:INDEX"),
        (("--json", "/no/such/folder/x.json"), "the folder /no/such/folder does not exist"),
        (("--csv", "/"), "cannot write /: it is a folder; name a file"),
        (("--json", "x", "--csv", "x"), "--json and --csv both name x; name two files"),
        (("--json", "x", "--csv", "./a/../x"), "both name x (a/../x); name two files"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options(options: tuple[str, ...], text: str) -> None:
    result = bench(*options)
    assert result.stdout == ""
    assert_one_line(result, 2, text)


def test_an_unknown_benchmark() -> None:
    result = CliRunner().invoke(cli, ["bench", "gemms"])
    assert_one_line(result, 2, "No such command 'gemms'")


def test_help_names_what_it_compares_with() -> None:
    result = CliRunner().invoke(cli, ["bench", "kernels", "--help"])
    assert result.exit_code == 0
    assert "torch.compile" in result.stdout
    assert "1,16,64,256,1024,4096,16384,65536" in "".join(result.stdout.split())


def test_fp8_is_refused_at_once_where_the_gpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    old = replace(detect(CPU), name="NVIDIA A100", sm=80)
    monkeypatch.setattr("slidesparse.devices.select_device", lambda text: Device("cuda"))
    monkeypatch.setattr("slidesparse.devices.detect", lambda device: old)
    assert_one_line(bench(), 2, "FP8 needs SM 8.9 or newer and this is SM 8.0; use --dtype int8")


def test_without_triton_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert_one_line(bench(), 1, "triton cannot be imported", "pip install triton")


def test_nothing_that_fits_fails_with_an_example() -> None:
    result = bench("--ops", "quantize", "--m", str(2**31 - 1))
    assert_one_line(result, 1, f"nothing was measured; quantize M={2**31 - 1} K=64 ", "GiB")
    assert "skipped quantize M=" in result.stdout


def test_a_wrong_kernel_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = KernelBench._measure

    def measure(self: KernelBench, problem, ceilings):
        row = right(self, problem, ceilings)
        assert isinstance(row, Row)
        return replace(row, median_us=None, gbs=None, error="wrong") if problem.m == 4 else row

    monkeypatch.setattr(KernelBench, "_measure", measure)
    file = tmp_path / "out.json"
    result = bench("--ops", "quantize", "--patterns", "dense", "--json", str(file))
    assert_one_line(result, 1, "2 of 4 kernels failed, first quantize M=4 K=64 ", ": wrong")
    assert "FAILED quantize M=4" in result.stdout
    assert [row.error for row in read_json(file).rows] == ["wrong", None, "wrong", None]


def test_a_lost_device_ends_the_run_and_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = KernelBench._measure
    tried = []

    def measure(self: KernelBench, problem, ceilings):
        tried.append(problem)
        if problem.op is Op.DEQUANTIZE:
            raise DeviceLost(problem, "vllm (fused) lost it: CUDA error: an illegal memory access")
        return right(self, problem, ceilings)

    monkeypatch.setattr(KernelBench, "_measure", measure)
    file, table = tmp_path / "out.json", tmp_path / "out.csv"
    result = bench("--m", "4", "--json", str(file), "--csv", str(table))
    assert_one_line(
        result, 1, "the device is lost: dequantize M=4 K=", "vllm (fused) lost it: CUDA error"
    )
    record = read_json(file)
    assert record.interrupted
    assert len(record.rows) == len(tried) - 1 > 0, "nothing ran after it"
    (lost,) = record.skipped
    assert lost.problem == tried[-1]
    assert "vllm (fused) lost it" in lost.reason
    assert f"skipped {lost.problem}: vllm (fused) lost it" in result.stdout
    assert len(table.read_text().splitlines()) == 1 + len(record.rows)


@pytest.mark.parametrize("broken", ["json", "csv"])
def test_a_file_that_cannot_be_written_costs_neither_the_table_nor_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    command = partial(bench, "--ops", "quantize", "--m", "4")
    writer = f"slidesparse.bench.kernels.record.write_{broken}"
    assert_each_file_is_written_alone(command, tmp_path, broken, writer, monkeypatch, "kernels in ")


def test_missing_permission_is_found_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pretended, since nothing is forbidden to root."""
    file, denied = tmp_path / "out.json", [tmp_path]
    monkeypatch.setattr(
        "os.access", lambda path, mode: not (mode & os.W_OK and Path(path) in denied)
    )
    result = bench("--json", str(file))
    assert_one_line(result, 2, f"cannot write {file}: no permission to write in the folder")
    file.write_text("")
    denied[:] = [file]
    assert_one_line(bench("--json", str(file)), 2, f"cannot write {file}: permission denied")
    assert file.read_text() == ""


def test_what_was_measured_before_an_interrupt_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = KernelBench._measure

    def measure(self: KernelBench, problem, ceilings):
        if problem.op is Op.DEQUANTIZE:
            raise KeyboardInterrupt
        return right(self, problem, ceilings)

    monkeypatch.setattr(KernelBench, "_measure", measure)
    file = tmp_path / "out.json"
    result = bench("--m", "4", "--json", str(file))
    assert result.exit_code == 130
    record = read_json(file)
    assert record.interrupted
    assert [row.problem.op for row in record.rows][-1] is Op.SILU_MUL_QUANTIZE


@pytest.mark.parametrize("arguments", [("--ops", "nope"), ("--m", "0"), ("--model", "nope")])
def test_usage_errors_do_not_wait_for_torch(arguments: tuple[str, ...]) -> None:
    assert_usage_error_without_torch("bench", "kernels", *arguments)


def printed(record: KernelRecord) -> str:
    text = io.StringIO()
    print_kernels(record, Console(file=text, width=120, highlight=False))
    return text.getvalue()


def test_the_table_of_a_gpu() -> None:
    text = printed(make_record())
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    # 640 kB at 4000 GB/s take 0.16 us, after 1.5 us for an empty kernel.
    assert ["quantize", "3584", "6:8", "16", "4.0", "160", "4.0", "2.41", "0.75", "1.50"] in rows
    large = ["quantize", "3584", "6:8", "4096", "50.0", "3,277", "81.9", "1.18", "-", "1.20"]
    assert large in rows
    assert ["dequantize", "3584", "-", "16", "failed", "-", "-", "-", "-", "-"] in rows
    for line in (
        "without vllm in 1 of 3 kernels: vLLM is not installed",
        "FAILED dequantize M=16 K=3584 bf16->bf16 dense: 3.00% of the values differ",
        "skipped dequantize M=65536 K=3584 bf16->bf16 dense: no memory",
        "with 64-bit row offsets, where 32 bits suffice: 1.010 of the time on average",
        "A copy of 512 MiB runs at 4,000 GB/s, an empty kernel takes 1.50 us",
    ):
        assert line in " ".join(text.split()), line


def test_the_verdict_names_the_worst_cell() -> None:
    record = make_record()
    assert verdict(record) == (
        "ours is more than 5 % slower than an alternative in 1 of 3 cells; the worst: quantize "
        "M=16 K=3584 bf16->fp8_e4m3 6:8, vllm takes 0.75 of our time"
    )
    better = replace(record, rows=record.rows[1:])
    assert verdict(better).endswith("in 0 of 1 cells")


def test_each_reason_is_listed_once() -> None:
    record = make_record()
    twice = replace(record, rows=(record.rows[1], record.rows[1]))
    assert reasons(twice) == ["without vllm in 2 of 2 kernels: vLLM is not installed"]


def test_the_file_is_json(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    assert bench("-q", "--ops", "quantize", "--json", str(file)).exit_code == 0
    data = json.loads(file.read_text())
    assert data["kind"] == "slidesparse-kernels-bench"
    assert data["ceilings"]["copy_bytes"] == 2**26
