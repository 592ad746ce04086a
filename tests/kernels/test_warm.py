"""Compiling ahead: what, in how many processes, and what one that fails costs the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from slidesparse.candidate import Candidate, Measurement, ProblemResult
from slidesparse.devices import CPU, Device
from slidesparse.errors import SearchError
from slidesparse.kernel_problem import KernelProblem, KernelResult, Op
from slidesparse.kernels import config as config_module
from slidesparse.kernels import warm as module
from slidesparse.kernels.config import Config, Table, default_config, load
from slidesparse.kernels.native import NativeConfig
from slidesparse.kernels.native.program import compile_variants
from slidesparse.kernels.native.source import Variant
from slidesparse.kernels.warm import (
    Compiler,
    Job,
    compile_parallel,
    distinct_jobs,
    launch_config,
    native_variants,
    warm,
)
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, GemmProblem, Scales

GPU = Device("cuda", 5)
"""Nothing here touches it."""

SIX_EIGHT = Pattern.parse("6:8")
CONFIG = Config(512, 4)
BROKEN = Config(513, 4)
"""No power of two: Triton refuses it."""


def problem(m: int = 16, k: int = 64, op: Op = Op.QUANTIZE) -> KernelProblem:
    source = DType.BF16 if not op.dequantizes else DType.INT32
    out, pattern = (DType.INT8, SIX_EIGHT) if op.quantizes else (DType.BF16, DENSE)
    return KernelProblem(op, m, k, source, out, pattern, residual="rmsnorm" in op.value)


def test_what_differs_in_m_only_is_one_job() -> None:
    launches = [(problem(m), CONFIG) for m in (1, 16, 4096)]
    other = replace(CONFIG, warps=8)
    jobs = distinct_jobs([*launches, (problem(16), other), (problem(k=96), CONFIG)])
    assert jobs == [
        Job(problem(2), CONFIG, False),
        Job(problem(2), other, False),
        Job(problem(2, k=96), CONFIG, False),
    ]
    assert distinct_jobs([]) == []


def test_long_offsets_are_a_job_of_their_own() -> None:
    launches = [(problem(m, 37888), CONFIG) for m in (1, 1024, 65536)]
    assert distinct_jobs(launches) == [
        Job(problem(2, 37888), CONFIG, False),
        Job(problem(2, 37888), CONFIG, True),
    ]


def test_a_bias_is_a_job_of_its_own_where_something_is_scaled_back() -> None:
    both = [(problem(2, op=op), CONFIG) for op in (Op.QUANTIZE, Op.DEQUANTIZE)]
    jobs = distinct_jobs(both, biased=True)
    assert [(job.problem.op, job.bias) for job in jobs] == [
        (Op.QUANTIZE, False),
        (Op.DEQUANTIZE, False),
        (Op.DEQUANTIZE, True),
    ]


def test_a_static_scale_is_other_code_where_the_kernel_takes_one() -> None:
    every = [(problem(2, op=op), CONFIG) for op in Op]
    jobs = distinct_jobs(every, static=True)
    assert {job.problem.op for job in jobs if job.static} == {
        Op.QUANTIZE,
        Op.RMSNORM_QUANTIZE,
        Op.SILU_MUL_QUANTIZE,
    }
    assert len(jobs) == len(Op)
    assert not any(job.static for job in distinct_jobs(every))


@pytest.mark.parametrize(
    ("op", "width"),
    [
        # The widest row: lifted, with gate and up, or as it is.
        (Op.QUANTIZE, 96),
        (Op.RMSNORM_QUANTIZE, 96),
        (Op.SILU_MUL_QUANTIZE, 128),
        (Op.DEQUANTIZE, 64),
        (Op.DEQUANT_SILU_MUL_QUANTIZE, 128),
    ],
    ids=str,
)
def test_offsets_are_long_where_a_row_starts_beyond_32_bits(op: Op, width: int) -> None:
    most = (2**31 - 1) // width
    assert problem(k=64, op=op).pattern.expanded_k(64) in (64, 96)
    assert not problem(most, 64, op).passes_int32
    assert problem(most + 1, 64, op).passes_int32


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No configurations in memory, before and after."""
    config_module.forget()
    yield
    config_module.forget()


@pytest.mark.usefixtures("tables")
def test_the_configuration_is_what_a_launch_takes() -> None:
    measured = Measurement(CONFIG.candidate, 1.0, 0.1, 9, 8, 0.0, 0.0)
    load(GPU.index, Table([KernelResult(problem(64), (measured,))]))
    assert launch_config(problem(64), GPU) == CONFIG
    assert launch_config(problem(16), GPU) == CONFIG, "the next bucket above"
    for unknown in (problem(64, 128), problem(64, op=Op.SILU_MUL_QUANTIZE)):
        usual = default_config(unknown.op, unknown.k, 64)
        assert launch_config(unknown, GPU) == usual
    assert launch_config(problem(64), CPU) == default_config(Op.QUANTIZE, 64, 64)


def test_warm_runs_every_kernel_once_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    usual = module._compile

    def compile_one(job: Any, device: Device) -> None:
        usual(job, device)
        ran.append(job)

    monkeypatch.setattr(module, "_compile", compile_one)
    problems = [problem(m, op=op) for op in Op for m in (2, 3)]
    plain = [(op, False) for op in Op]
    biased = [(op, True) for op in Op if op.dequantizes]
    # The first layer's norm has no residual to add.
    first = [(Op.RMSNORM_QUANTIZE, False)]
    assert warm(problems, CPU) == len(plain) + len(biased) + len(first)
    assert sorted((job.problem.op, job.bias) for job in ran) == sorted(plain + biased + first)
    norms = [job.problem for job in ran if job.problem.op is Op.RMSNORM_QUANTIZE]
    assert {norm.residual for norm in norms} == {True, False}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilers that misbehave by the width of the problem, two at a time."""
    monkeypatch.setattr(module, "COMPILER", "fake_kernel_sessions:Compiler")
    monkeypatch.setattr(module, "_processes", lambda jobs, device: 2)


@pytest.mark.usefixtures("fakes")
def test_what_dies_hangs_or_fails_costs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 2.0)
    jobs = distinct_jobs((problem(k=k), CONFIG) for k in (64, 65, 66, 67, 68, *range(71, 91)))
    counts: list[int] = []
    failed = compile_parallel(jobs, GPU, counts.append)
    assert counts == list(range(1, len(jobs) + 1))
    reasons = {65: "exit code 3", 66: "no answer within 2 s", 67: "host memory: no 96 GiB"}
    label = CONFIG.candidate.label
    assert sorted(failed) == [
        "K=68 does not compile",
        *(f"{problem(2, k)} {label}: {reason}" for k, reason in reasons.items()),
    ]


@pytest.mark.usefixtures("fakes")
def test_ctrl_c_ends_the_processes_at_once() -> None:
    jobs = distinct_jobs((problem(k=k), CONFIG) for k in (64, 66, *range(71, 91)))

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        compile_parallel(jobs, GPU, interrupt)
    assert time.monotonic() - start < 20, "K=66 hangs for an hour"


@pytest.mark.usefixtures("fakes")
def test_a_deadline_ends_them_with_what_is_compiled_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """K=68 fails and K=66 hangs."""
    monkeypatch.setattr(module, "_processes", lambda jobs, device: 1)
    jobs = distinct_jobs((problem(k=k), CONFIG) for k in (64, 68, 66, *range(71, 91)))
    counts: list[int] = []
    start = time.monotonic()
    # Starting a process takes some seconds, with torch.
    failed = compile_parallel(jobs, GPU, counts.append, start + 15)
    assert counts == [1, 2]
    assert failed == ["K=68 does not compile"]
    assert time.monotonic() - start < 20


def test_a_deadline_that_is_past_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Worker", None)
    jobs = distinct_jobs([(problem(), CONFIG)])
    assert compile_parallel(jobs, GPU, deadline=time.monotonic()) == []


def test_processes_that_do_not_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPILER", "no_such_module:Compiler")
    monkeypatch.setattr(module, "_processes", lambda jobs, device: 1)
    with pytest.raises(SearchError, match="did not start: ModuleNotFoundError"):
        compile_parallel(distinct_jobs([(problem(), CONFIG)]), GPU)


def test_nothing_to_compile_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Worker", None)
    assert compile_parallel([], GPU) == []


def test_real_kernels_in_a_real_process() -> None:
    """In the interpreter: one that runs and one that Triton refuses."""
    failed = compile_parallel(distinct_jobs([(problem(), CONFIG), (problem(), BROKEN)]), CPU)
    (reason,) = failed
    assert reason.startswith(f"{problem(2)} {BROKEN.candidate.label}: ")
    assert "power of 2" in reason or "power of two" in reason


def test_a_lost_device_and_missing_memory_are_not_the_kernels_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
    ]
    for error in errors:

        def fail(job: Any, device: Device, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(module, "_compile", fail)
        with pytest.raises(type(error)):
            Compiler(GPU).compile(Job(problem(), CONFIG, False))


@pytest.mark.parametrize(
    ("jobs", "cores", "free_gib", "expected"),
    [
        (1000, 64, 139, 16),
        (1000, 8, 139, 7),
        (12, 64, 139, 3),
        (3, 64, 139, 1),
        (1000, 64, 5, 2),
        (1000, 1, 0.5, 1),
    ],
)
def test_as_many_processes_as_pay_and_fit(
    jobs: int, cores: int, free_gib: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = (int(free_gib * 2**30), 141 * 2**30)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(cores))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: memory)
    assert module._processes(jobs, GPU) == expected


SMALL = NativeConfig(slabs=1, tokens=16, blocks=2, stages=2, box=8, boxes=2, group=1)
GEMM = GemmProblem(16, 64, 512, DType.FP8, DType.BF16, Scales.ROWCOL, Pattern.parse("2:4"))


def found(problem: GemmProblem, *candidates: Candidate) -> ProblemResult:
    """A search's result, the first candidate the fastest."""
    ranked = (Measurement(each, 1.0 + i, 0.1, 9, 8, 0.0, 0.0) for i, each in enumerate(candidates))
    return ProblemResult(problem, tuple(ranked))


def native(config: NativeConfig) -> Candidate:
    return Candidate("native", config.params(), True)


class TestNative:
    def test_the_fastest_native_candidate_of_each_result_counts(self) -> None:
        other = Candidate("torchao", {"function": "rowwise"}, True)
        faster, slower = replace(SMALL, stages=3), replace(SMALL, stages=4)
        results = [
            found(GEMM, other, native(faster), native(slower)),
            found(replace(GEMM, m=64), other),
            found(replace(GEMM, m=1024)),
        ]
        assert native_variants(results) == [Variant(faster, DType.FP8, DType.BF16, False)]
        assert native_variants([]) == []

    def test_what_makes_other_code_is_a_variant_of_its_own(self) -> None:
        raster = replace(SMALL, group=8, along_x=True)
        odd = replace(GEMM, k=384)  # Three stages of 128.
        int8 = replace(GEMM, dtype=DType.INT8, out=DType.INT32, scales=Scales.NONE)
        results = [
            *(found(problem, native(SMALL)) for problem in (GEMM, replace(GEMM, n=128), odd, int8)),
            found(replace(GEMM, m=64), native(raster)),
        ]
        assert native_variants(results) == [
            Variant(SMALL, DType.FP8, DType.BF16, False),
            Variant(SMALL, DType.FP8, DType.BF16, True),
            Variant(SMALL, DType.INT8, DType.INT32, False),
        ]

    def test_a_pattern_runs_its_expanded_columns(self) -> None:
        """6:8 makes 384 columns of 256."""
        six_eight = replace(GEMM, k=256, pattern=SIX_EIGHT)
        (variant,) = native_variants([found(six_eight, native(SMALL))])
        assert variant.odd

    def test_a_candidate_that_cannot_run_is_left_out(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        broken = Candidate("native", {**SMALL.params(), "tokens": 12}, True)
        with caplog.at_level(logging.WARNING):
            variants = native_variants([found(GEMM, broken), found(GEMM, native(SMALL))])
        assert variants == [Variant(SMALL, DType.FP8, DType.BF16, False)]
        (record,) = caplog.records
        assert record.getMessage().startswith(f"the native GEMM of {GEMM.key} is not compiled: ")

    def test_compiled_code_lies_on_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """NVRTC compiles for a GPU that is not there."""
        pytest.importorskip("cuda.core", reason="it compiles the CUDA sources")
        monkeypatch.setenv("SLIDESPARSE_CACHE_DIR", str(tmp_path))
        variants = native_variants(
            found(replace(GEMM, k=k), native(SMALL)) for k in (384, 512, 640, 768)
        )
        assert [variant.odd for variant in variants] == [True, False]
        assert compile_variants(variants) == []

        def files() -> dict[Path, bytes]:
            paths = (tmp_path / "native" / "entries").rglob("*")
            return {path: path.read_bytes() for path in paths if path.is_file()}

        before = files()
        assert len(before) == 2
        assert all(b"sparse_gemm" in code for code in before.values())
        assert compile_variants(variants) == []
        assert files() == before

    def test_one_that_does_not_compile_costs_itself(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("cuda.core", reason="it compiles the CUDA sources")
        monkeypatch.setenv("SLIDESPARSE_CACHE_DIR", str(tmp_path))
        good = Variant(SMALL, DType.FP8, DType.BF16, False)
        bad = replace(good, config=replace(SMALL, cluster_k=2), odd=True)
        (reason,) = compile_variants([bad, good])
        assert reason.startswith(f"{bad.config.label} does not compile: ")
        assert len(list((tmp_path / "native" / "entries").glob("*/*"))) == 1

    def test_nothing_to_compile_asks_for_no_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("slidesparse.kernels.native.program.compile_variant", None)
        assert compile_variants([]) == []
