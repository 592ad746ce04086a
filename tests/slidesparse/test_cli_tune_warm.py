"""`slidesparse tune --warm`: the native GEMM kernels that searches filed are compiled too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from slidesparse import devices
from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Measurement, ProblemResult
from slidesparse.cli.main import cli
from slidesparse.devices import CPU, Device, detect
from slidesparse.errors import CandidateError
from slidesparse.kernels.native import NativeConfig
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem, Scales

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"
"""N, K = 192, 64 (qkv, gate_up); 64, 64 (o); 64, 96 (down)."""

WARM = ("--model", str(TINY), "--ops", "silu_mul_quantize", "--m", "16", "--patterns", "dense,6:8")
PROGRAM = "slidesparse.kernels.native.program"
HOPPER, ADA = 90, 89


def warm(folder: Path, *results: ProblemResult, quiet: bool = False) -> Result:
    """Run the command on a cache with these results."""
    TuningCache(folder, devices.detect(Device("cuda", 5))).put_many(results)
    options = ["tune", "--warm", *WARM, "--cache-dir", str(folder), *(["--quiet"] * quiet)]
    return CliRunner().invoke(cli, options, env={"COLUMNS": None})


def gemm(m: int, n: int, k: int, pattern: str = "6:8", dtype: DType = DType.FP8) -> ProblemResult:
    """A search's result with a native winner whose tile says which M and N it was found for."""
    problem = GemmProblem(m, n, k, dtype, DType.BF16, Scales.ROWCOL, Pattern.parse(pattern))
    config = NativeConfig(slabs=1, tokens=m, stages=2 + n // 64, box=8, boxes=2)
    native = Measurement(Candidate("native", config.params(), True), 1.0, 0.1, 9, 8, 0.0, 0.0)
    return ProblemResult(problem, (native,))


def pretend(monkeypatch: pytest.MonkeyPatch, sm: int) -> None:
    """A machine that seems to have a GPU."""
    fingerprint = replace(detect(CPU), name="NVIDIA Test", sm=sm)
    monkeypatch.setattr("slidesparse.devices.select_device", lambda text: Device("cuda", 5))
    monkeypatch.setattr("slidesparse.devices.detect", lambda device: fingerprint)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is compiled of the native GEMM on a machine that seems to be a Hopper."""
    compiled: list[Any] = []
    pretend(monkeypatch, HOPPER)
    monkeypatch.setattr("slidesparse.kernels.warm.compile_parallel", lambda jobs, device: [])
    monkeypatch.setattr("slidesparse.kernels.config._tables", {})
    monkeypatch.setattr(f"{PROGRAM}.missing", lambda: "")
    monkeypatch.setattr(f"{PROGRAM}.compile_variant", compiled.append)
    return compiled


def said(native: int) -> str:
    return f"2 kernels of tiny are compiled for NVIDIA Test by Triton and {native} native GEMM "


def test_what_the_cache_names_for_the_model_is_compiled(
    compiled: list[Any], tmp_path: Path
) -> None:
    result = warm(
        tmp_path,
        *(gemm(m, n, k) for m in (16, 64) for n, k in ((192, 64), (64, 96))),
        gemm(32, 128, 64),  # No layer of the model.
        gemm(32, 64, 64, "2:4"),  # Not asked for.
        gemm(32, 64, 64, dtype=DType.INT8),
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(said(4))
    assert result.stderr == ""
    found = [(variant.config.tokens, variant.config.stages) for variant in compiled]
    assert sorted(found) == [(16, 3), (16, 5), (64, 3), (64, 5)]
    assert {(variant.dtype, variant.out) for variant in compiled} == {(DType.FP8, DType.BF16)}


def test_a_variant_that_does_not_compile_is_a_failed_run(
    compiled: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(variant: Any) -> None:
        raise CandidateError(f"{variant.config.label} does not compile: [no]")

    monkeypatch.setattr(f"{PROGRAM}.compile_variant", refuse)
    result = warm(tmp_path, gemm(16, 64, 96))
    assert (result.exit_code, result.stdout) == (1, "")
    label = NativeConfig(slabs=1, tokens=16, stages=3, box=8, boxes=2, group=1).label
    assert result.stderr == (
        f"Error: 1 of 3 kernels do not compile; for example {label} does not compile: [no]\n"
    )


def test_without_a_compiler_a_note_says_why(
    compiled: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{PROGRAM}.missing", lambda: "NVRTC does not load (why)")
    result = warm(tmp_path, gemm(16, 64, 96))
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(said(0))
    assert result.stderr == (
        "note: native GEMM kernels are not compiled: NVRTC does not load (why)\n"
    )
    quiet = warm(tmp_path, quiet=True)
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert not compiled


def test_nothing_is_said_where_the_kernel_does_not_run(
    compiled: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No result names it, or the GPU is another one: the compiler is not even asked for."""
    monkeypatch.setattr(f"{PROGRAM}.missing", None)
    first = warm(tmp_path)
    pretend(monkeypatch, ADA)
    second = warm(tmp_path, gemm(16, 64, 96))
    for result in (first, second):
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        assert result.stdout.startswith(said(0))
    assert not compiled
