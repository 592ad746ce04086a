"""`slidesparse tune`: what it lists, refuses, prints and how it ends."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Failure, Measurement, Provenance
from slidesparse.cli import tune_table
from slidesparse.cli.main import cli
from slidesparse.cli.tune_progress import TuneProgress
from slidesparse.devices import CPU, Device, Fingerprint, detect
from slidesparse.kernel_problem import KernelProblem, KernelResult, Op
from slidesparse.kernels.config import Config
from slidesparse.kernels.tune import Tuned, TuneOutcome
from slidesparse.pattern import Pattern
from slidesparse.problem import DType

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"
MACHINE = Fingerprint("NVIDIA Test", 89, 108, 40960)


def tune(*arguments: str) -> Result:
    rest = [] if "--model" in arguments else ["--model", str(TINY)]
    return CliRunner().invoke(cli, ["tune", *arguments, *rest], env={"COLUMNS": None})


def assert_one_line(result: Result, code: int, *texts: str) -> None:
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: "), result.stderr
    assert "Traceback" not in result.stderr
    for text in texts:
        assert text in line, line


def test_help_names_every_option() -> None:
    result = tune("--help")
    assert result.exit_code == 0
    for option in (
        *("--model", "--dtype", "--ops", "--m", "--patterns", "--tp", "--device", "--cache-dir"),
        *("--effort", "--budget", "--resume", "--seed", "--warm", "--dry-run", "--quiet"),
    ):
        assert option in result.stdout


class TestDryRun:
    def test_it_lists_problems_and_counts_configurations(self, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        result = tune(
            *("--dry-run", "--dtype", "int8", "--m", "16,64", "--patterns", "6:8"),
            *("--ops", "silu_mul_quantize,dequantize", "--cache-dir", str(cache)),
        )
        assert result.exit_code == 0, result.output
        *lines, last = result.stdout.splitlines()
        assert [line.split(":")[0] for line in lines if " 6:8" not in line] == [
            *(f"silu_mul_quantize M={m} K=96 bf16->int8 dense" for m in (16, 64)),
            *(f"dequantize M={m} K={n} int32->bf16 dense" for n in (64, 192) for m in (16, 64)),
        ]
        counts = [int(line.split(": ")[1].removesuffix(" configurations")) for line in lines]
        assert len(lines) == 8
        assert last == f"8 problems, {sum(counts)} configurations; nothing was run"
        assert not cache.exists()

    def test_full_effort_lists_more(self) -> None:
        def total(effort: str) -> int:
            result = tune("--dry-run", "--effort", effort, "--m", "4096")
            return int(re.findall(r", (\d+) configurations", result.stdout)[0])

        assert total("full") > 2 * total("normal")

    def test_the_presets_need_no_gpu(self) -> None:
        result = tune("--dry-run", "--model", "qwen2.5-7b", "--device", "cpu")
        # 6 widths that are quantised, for 5 patterns, and 3 that are not; 6 M. At M = 65536 two of
        # them read 37888 columns for 5 patterns, and dequantize writes as many.
        count = 6 * (6 * 5 + 3) + 2 * 5 + 1
        assert result.stdout.splitlines()[-1].startswith(f"{count} problems, ")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            ("--ops", "quantise"),
            "unknown op 'quantise', did you mean 'quantize'? known: quantize, ",
        ),
        (("--ops", "fly"), "unknown op 'fly'; known: quantize, rmsnorm_quantize, "),
        (("--ops", ""), "unknown op ''; known: "),
        (("--model", "qwen2.5-7"), "qwen2.5-7b"),
        (("--dtype", "fp4"), "unknown dtype 'fp4'; use fp8 or int8"),
        (("--patterns", "3:8"), "pattern 3:8 is not of the (2N-2):2N family"),
        (("--m", "0"), "M=0 is not a positive number of tokens"),
        (("--tp", "3"), "tp=3 does not divide num_attention_heads=4 of tiny"),
        (("--budget", "soon"), "'soon' is not a number of seconds"),
        (("--effort", "quick"), "'quick' is not one of 'normal', 'full'"),
        (("--seed", "-1"), "-1 is not in the range 0<=x<=2147483647"),
        (("--device", "tpu"), "unknown device 'tpu'; use auto, cpu, cuda or cuda:INDEX"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options(options: tuple[str, ...], text: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert_one_line(tune("--cache-dir", str(cache), *options), 2, text)
    assert not cache.exists()


@pytest.mark.parametrize("more", [(), ("--warm",)])
def test_a_cpu_has_nothing_to_tune(more: tuple[str, ...], tmp_path: Path) -> None:
    result = tune("--device", "cpu", "--cache-dir", str(tmp_path / "cache"), *more)
    assert_one_line(result, 2, "kernels are tuned on a GPU", "--dry-run lists what would be")
    assert not (tmp_path / "cache").exists()


def test_a_gpu_that_is_not_there() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert_one_line(tune("--device", "cuda"), 1, "cuda:0 asked for, but torch")


@pytest.mark.parametrize("more", [(), ("--warm",)])
def test_fp8_is_refused_at_once_where_the_gpu_has_none(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = replace(detect(CPU), name="NVIDIA A100", sm=80)
    monkeypatch.setattr("slidesparse.devices.select_device", lambda text: Device("cuda"))
    monkeypatch.setattr("slidesparse.devices.detect", lambda device: old)
    result = tune("--dtype", "fp8", "--cache-dir", str(tmp_path / "cache"), *more)
    text = "FP8 needs SM 8.9 or newer and this is SM 8.0; use --dtype int8"
    assert_one_line(result, 2, f"cuda:0 cannot run these kernels: {text}")
    assert not (tmp_path / "cache").exists()


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
from slidesparse.cli.main import cli
cli(["tune", *sys.argv[1:]])
"""


@pytest.mark.parametrize("more", [(), ("--warm",), ("--dry-run",)])
def test_without_triton_the_remedy_is_named(more: tuple[str, ...]) -> None:
    """In a process of its own: in this one the kernels are imported already."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON, "--model", str(TINY), "--device", "cpu", *more],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: triton cannot be imported"), line
    assert line.endswith("pip install triton")


def test_operations_that_a_model_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are known have some; a model without an MLP would not."""
    monkeypatch.setattr("slidesparse.kernels.workload.model_problems", lambda *a, **o: ())
    assert_one_line(
        tune("--ops", "silu_mul_quantize"), 2, "tiny has no silu_mul_quantize; leave out --ops"
    )


IMPORTS = """
import sys
from slidesparse.cli.main import cli
try:
    cli(["tune", *sys.argv[2:]])
except SystemExit as end:
    assert end.code == int(sys.argv[1]), end.code
heavy = {"torch", "triton", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("code", "arguments"),
    [("0", ("--help",)), ("2", ("--ops", "fly")), ("2", ("--model", "nope")), ("2", ("--m", "0"))],
)
def test_help_and_usage_errors_do_not_wait_for_torch(code: str, arguments: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr


class Pretended:
    """A worker in which every configuration is right and larger blocks are faster."""

    interrupt_at = 0
    refuses = False

    def __init__(self, *arguments: Any) -> None:
        self._left = self.interrupt_at

    def call(self, method: str, problem: Any, argument: Any, *rest: Any, timeout: float) -> Any:
        if method == "race":
            return tuple(self._measured(candidate) for candidate in argument)
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
        if self.refuses:
            return Failure(argument, "wrong", "all of it [differs]")
        return self._measured(argument)

    def _measured(self, candidate: Candidate) -> Measurement:
        config = Config.of(candidate)
        us = 1000 / config.block + config.warps / 100
        return Measurement(candidate, us, 0.01, 9, 8, 0.0, 0.0)

    def cancel(self) -> None:
        pass

    def stop(self) -> None:
        pass


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[Pretended]:
    """A machine that seems to have a GPU."""
    fingerprint = replace(detect(CPU), name=MACHINE.name, sm=MACHINE.sm)
    monkeypatch.setattr("slidesparse.devices.select_device", lambda text: Device("cuda", 5))
    monkeypatch.setattr("slidesparse.devices.detect", lambda device: fingerprint)
    monkeypatch.setattr("slidesparse.kernels.tune.Worker", Pretended)
    monkeypatch.setattr("slidesparse.kernels.tune.compile_parallel", lambda *arguments: [])
    for name, value in (("interrupt_at", 0), ("refuses", False)):
        monkeypatch.setattr(Pretended, name, value)
    return Pretended


SMALL = ("--ops", "silu_mul_quantize", "--m", "16,64", "--patterns", "6:8", "--seed", "7")


@pytest.mark.usefixtures("gpu")
def test_from_command_line_to_cache(tmp_path: Path) -> None:
    cache = ("--cache-dir", str(tmp_path))
    result = tune(*SMALL, *cache)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "Tuning 4 kernel problems of tiny on NVIDIA Test"
    assert re.fullmatch(
        rf"4 of 4 problems in \d+\.\d s \(\d+\.\d s of it compiling\), seed 7; cache: {tmp_path}.*",
        lines[-1],
    )
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines if line.startswith("silu_mul")]
    assert [row[:4] for row in rows] == [
        ["silu_mul_quantize", "96", pattern, m]
        for pattern in ("dense", "6:8")
        for m in ("16", "64")
    ]
    assert result.stderr == ""

    again = tune(*SMALL, *cache)
    rows = [line.split() for line in again.stdout.splitlines() if line.startswith("silu_mul")]
    assert len(rows) == 4
    assert all(row[4].endswith("*") for row in rows)
    assert "* from the cache" in again.stdout
    fresh = tune(*SMALL, *cache, "--fresh")
    assert "* from the cache" not in fresh.stdout
    quiet = tune(*SMALL, *cache, "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_ctrl_c_ends_with_130_and_the_way_to_go_on(gpu: type[Pretended], tmp_path: Path) -> None:
    cache = ("--cache-dir", str(tmp_path))
    count = len(tune("--dry-run", *SMALL).stdout.splitlines())
    assert count == 5
    gpu.interrupt_at = 8
    result = tune(*SMALL, *cache)
    assert result.exit_code == 130, result.output
    assert result.stderr == "interrupted; finished work is kept, the same command resumes\n"
    found = re.findall(r"^(\d) of 4 problems", result.stdout, re.MULTILINE)
    gpu.interrupt_at = 0
    after = tune(*SMALL, *cache)
    assert after.exit_code == 0
    assert [str(after.stdout.count("*") - 1)] == found, "the legend has one of the stars"


def test_nothing_tuned_is_a_failed_run(gpu: type[Pretended], tmp_path: Path) -> None:
    gpu.refuses = True
    result = tune(*SMALL, "--cache-dir", str(tmp_path), "--quiet")
    assert_one_line(
        result,
        1,
        "nothing was tuned; for example silu_mul_quantize M=16 K=96 bf16->fp8_e4m3 dense: "
        "no configuration works: all of it [differs]",
    )


@pytest.mark.usefixtures("gpu")
def test_a_cache_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = tune(*SMALL, "--cache-dir", str(tmp_path / "file"))
    assert_one_line(result, 1, "cannot write the tuning cache", "--cache-dir")


class TestWarm:
    @pytest.fixture
    def jobs(self, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """What is compiled; kernels of 64 columns are not."""
        jobs: list[Any] = []

        def compile_parallel(wanted: Any, device: Device) -> list[str]:
            jobs.extend(wanted)
            return [f"K={job[0].k} [fails]" for job in wanted if job[0].k == 64]

        monkeypatch.setattr("slidesparse.kernels.warm.compile_parallel", compile_parallel)
        monkeypatch.setattr("slidesparse.kernels.config._tables", {})
        return jobs

    def test_what_was_tuned_is_compiled(self, jobs: list[Any], tmp_path: Path) -> None:
        cache = ("--cache-dir", str(tmp_path))
        assert tune(*SMALL, *cache).exit_code == 0
        before = sorted(tmp_path.rglob("*"))
        result = tune(*SMALL, *cache, "--warm")
        assert result.exit_code == 0, result.output
        assert re.fullmatch(
            r"2 kernels of tiny are compiled for NVIDIA Test by Triton and 0 native GEMM kernels "
            r"by NVRTC in \d+\.\d s; their caches on disk have them for every process\n",
            result.stdout,
        )
        filed = next(iter(TuningCache(tmp_path, _detected()).user_kernels().values()))
        assert filed.best is not None
        assert {job[1] for job in jobs} == {Config.of(filed.best.candidate)}
        assert sorted(tmp_path.rglob("*")) == before
        assert tune(*SMALL, *cache, "--warm", "--quiet").output == ""

    @pytest.mark.usefixtures("jobs")
    def test_what_does_not_compile_is_a_failed_run(self, tmp_path: Path) -> None:
        options = ("--ops", "quantize", "--m", "16", "--patterns", "dense")
        result = tune(*options, "--cache-dir", str(tmp_path), "--warm")
        assert_one_line(result, 1, "1 of 2 kernels do not compile; for example K=64 [fails]")


def _detected() -> Fingerprint:
    from slidesparse import devices

    return devices.detect(Device("cuda", 5))


PROBLEM = KernelProblem(Op.QUANTIZE, 4096, 3584, DType.BF16, DType.FP8, Pattern.parse("6:8"))


def measured(config: Config, us: float) -> Measurement:
    return Measurement(config.candidate, us, 0.05, 9, 8, 0.0, 0.0)


def result_of(us: float, usual: float | None, problem: KernelProblem = PROBLEM) -> KernelResult:
    default = None if usual is None else measured(Config(512, 4), usual)
    winner = measured(Config(1024, 8, rows=2, per_sm=4, stages=2, overlap=True), us)
    failure = Failure(Config(2048, 8).candidate, "wrong", "2 of [M, K] differ")
    return KernelResult(problem, (winner,), default, (failure,), tried=3)


def printed(outcome: TuneOutcome) -> list[str]:
    stream = io.StringIO()
    tune_table.print_outcome(outcome, Console(file=stream, width=160, highlight=False))
    return [line.strip() for line in stream.getvalue().splitlines()]


class TestTable:
    def test_a_row_per_problem_and_what_is_to_be_said(self) -> None:
        small, skipped = replace(PROBLEM, m=16), replace(PROBLEM, k=64)
        outcome = TuneOutcome(
            found={
                small: Tuned(result_of(2.0, 2.0, small), Provenance.CACHED),
                PROBLEM: Tuned(result_of(1234.5, 2469.0), Provenance.MEASURED),
            },
            skipped={skipped: "out of [memory]"},
        )
        lines = printed(outcome)
        rows = [re.split(r"\s{2,}", line) for line in lines[:3]]
        words = "block 1024, 8 warps, 2 rows, 4 programs per SM, 2 stages, overlapped"
        assert rows == [
            ["operation", "K", "pattern", "M", "us", "spread", "over default", "configuration"],
            ["quantize", "3584", "6:8", "16", "2.00*", "0.05", "1.00", words],
            ["quantize", "3584", "6:8", "4096", "1,234.50", "0.05", "2.00", words],
        ]
        label = Config(2048, 8).candidate.label
        assert lines[3:] == [
            "* from the cache",
            f"without {skipped}: out of [memory]",
            f"2 configurations are out; for example {label}: wrong, 2 of [M, K] differ",
            "default over tuned time: 1.41 (geometric mean), at most 2.00",
        ]

    def test_bundled_results_are_marked_too(self) -> None:
        bundled = Tuned(result_of(3.0, None), Provenance.BUNDLED)
        lines = printed(TuneOutcome(found={PROBLEM: bundled}))
        assert "3.00+" in lines[1].split()
        assert lines[1].split()[6] == "-"
        assert lines[2] == "+ from the bundled cache"
        assert lines[-1] == "no default was timed beside a winner"

    def test_what_is_usual_is_left_out_of_a_configuration(self) -> None:
        assert tune_table.describe(Config(512, 4)) == "block 512, 4 warps"


def test_progress_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slidesparse.cli.progress.LINE_EVERY_S", 0.0)
    stream = io.StringIO()
    with TuneProgress(2, Console(file=stream, width=60, highlight=False)) as progress:
        progress.compiling(3, 40)
        progress.started(PROBLEM, 12)
        progress.finished(PROBLEM, Tuned(result_of(1.0, 1.0), Provenance.MEASURED), "")
        progress.finished(PROBLEM, None, "no [memory]")
        progress.compiling(40, 40)
    assert stream.getvalue().splitlines() == [
        "0/2 compiling 3/40",
        f"0/2 {PROBLEM}: 12 configurations",
        f"skipped {PROBLEM}: no [memory]",
        "2/2 compiling 40/40, about 0 s left",
    ]
