"""Tuning on the GPU: the winner is right, filed, found again, and what a launch then takes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Provenance
from slidesparse.devices import Device, detect
from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.kernels import config as config_module
from slidesparse.kernels import (
    dequant_rmsnorm_quantize,
    dequant_silu_mul_quantize,
    dequantize,
    quantize,
    reference,
    rmsnorm_quantize,
    silu_mul_quantize,
)
from slidesparse.kernels.case import Case, compare
from slidesparse.kernels.config import Config, Table, candidates, chosen, default_config, load
from slidesparse.kernels.tune import TuneListener, TuneOptions, Tuner
from slidesparse.kernels.tune_session import KernelSession
from slidesparse.kernels.warm import warm
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.tensors import TORCH_DTYPES

SIX_EIGHT = Pattern.parse("6:8")
EPS = 1e-6


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No configurations in memory, before and after."""
    config_module.forget()
    yield
    config_module.forget()


def problem(pattern: Pattern, op: Op = Op.QUANTIZE, m: int = 16, k: int = 576) -> KernelProblem:
    """FP8, behind BF16 or INT32, with a residual where one goes."""
    source = DType.INT32 if op.dequantizes else DType.BF16
    out = DType.FP8 if op.quantizes else DType.BF16
    return KernelProblem(op, m, k, source, out, pattern, residual="rmsnorm" in op.value)


@pytest.mark.usefixtures("tables")
def test_two_problems_from_nothing_to_a_launch(gpu: Device, tmp_path: Path, seed: int) -> None:
    problems = [problem(DENSE), problem(SIX_EIGHT)]
    cache = TuningCache(tmp_path, detect(gpu), bundled=tmp_path)
    told: list[int] = []

    class Counts(TuneListener):
        def compiling(self, done: int, total: int) -> None:
            told.append(done)

    start = time.monotonic()
    outcome = Tuner(problems, gpu, cache, TuneOptions(seed=seed)).run(Counts())
    assert time.monotonic() - start < 20
    assert (outcome.skipped, outcome.interrupted) == ({}, False)
    assert list(outcome.found) == problems
    assert told == list(range(1, len(told) + 1))
    for wanted, tuned in outcome.found.items():
        result = tuned.result
        assert tuned.provenance is Provenance.MEASURED
        assert result.failures == ()
        assert result.tried >= len(candidates(wanted))
        assert result.best is not None
        assert result.default is not None
        assert result.default.candidate == default_config(wanted.op, wanted.k, 16).candidate
        assert 0.5 < result.best.median_us < 50
        assert result.best.cold_l2
        case = Case(wanted, torch.device(str(gpu)), seed + 1, 0)
        assert case.wrong(Config.of(result.best.candidate)) is None

    again = Tuner(problems, gpu, TuningCache(tmp_path, detect(gpu)), TuneOptions(seed=seed))
    start = time.monotonic()
    cached = again.run()
    assert time.monotonic() - start < 1
    assert [t.provenance for t in cached.found.values()] == [Provenance.CACHED] * 2
    assert [t.result for t in cached.found.values()] == [t.result for t in outcome.found.values()]

    load(gpu.index, Table(hit.result for hit in cache.kernel_entries().values()))
    for wanted, tuned in outcome.found.items():
        assert tuned.result.best is not None
        taken = chosen(
            *(gpu.index, wanted.op, 16, 576, wanted.source, wanted.out, wanted.pattern, False)
        )
        assert taken == Config.of(tuned.result.best.candidate)
    x = torch.randn(9, 576, device=str(gpu), dtype=torch.bfloat16)
    q, scale = quantize(x, torch.float8_e4m3fn, SIX_EIGHT)
    want = reference.quantize(x, torch.float8_e4m3fn, SIX_EIGHT)
    assert compare((q, scale), want, exact=True) is None


def test_a_configuration_that_cannot_be_launched_costs_itself(
    gpu: Device, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton refuses a block that is no power of two; the worker lives on."""
    good, bad = Config(512, 4), Config(513, 4)
    # Reading it back is what refuses it first; the launch has to do so too.
    monkeypatch.setattr(Config, "of", classmethod(_unchecked))
    session = KernelSession(gpu, seed)
    failure = session.screen(problem(DENSE), bad.candidate)
    assert failure.kind == "refused"  # type: ignore[union-attr]
    measured = session.race(problem(DENSE), (good.candidate, bad.candidate), 3)
    assert [m.candidate for m in measured] == [good.candidate]


def _unchecked(cls: type[Config], candidate: Candidate) -> Config:
    return cls(**dict(candidate.params))  # type: ignore[arg-type]


def test_warm_and_tune_from_the_command_line(tmp_path: Path) -> None:
    """`--warm` compiles the defaults of an empty cache, and files nothing."""

    def run(*more: str) -> str:
        done = subprocess.run(
            [
                *("slidesparse", "tune", "--model", "llama3.2-1b", "--ops", "silu_mul_quantize"),
                *("--m", "16", "--patterns", "6:8", "--cache-dir", str(tmp_path), *more),
            ],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "2 kernels of llama3.2-1b are compiled for " in run("--warm")
    assert not list(tmp_path.rglob("kernels.json"))
    assert "2 of 2 problems in " in run("--seed", "5")
    assert list(tmp_path.rglob("kernels.json"))
    assert "* from the cache" in run()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that Triton compiles or loads from its cache on disk."""
    from triton.runtime.jit import JITFunction

    names: list[str] = []
    usual = JITFunction._do_compile

    def do_compile(kernel: Any, *arguments: Any, **options: Any) -> Any:
        names.append(kernel.fn.__name__)
        return usual(kernel, *arguments, **options)

    monkeypatch.setattr(JITFunction, "_do_compile", do_compile)
    return names


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("m", [1, 16])
def test_after_warming_all_operations_are_captured_without_compiling(
    m: int, gpu: Device, seed: int, compiled: list[str]
) -> None:
    # A width of its own for each M, so that no other test compiled it in this process.
    k = 1160 + 8 * m
    load(gpu.index, Table())
    problems = [problem(SIX_EIGHT if op.quantizes else DENSE, op, m, k) for op in Op]
    biased = sum(op.dequantizes for op in Op)
    # The norm without a residual, too, which is what the first layer launches.
    assert warm(problems, gpu) == len(Op) + biased + 1
    assert len(compiled) == len(Op) + biased + 1
    compiled.clear()

    cases = [Case(wanted, torch.device(str(gpu)), seed, 0) for wanted in problems]
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        outputs = [launch(case)() for case in cases]
    assert compiled == []

    # Other inputs in the same memory: a replay has to see them.
    for case in cases:
        it = case.sets[0]
        it.x.copy_(Case(case.problem, torch.device(str(gpu)), seed + 1, 0).sets[0].x)
    for tensor in (tensor for output in outputs for tensor in output):
        tensor.view(torch.uint8).fill_(0xA5)
    graph.replay()
    torch.cuda.synchronize()
    for case, output in zip(cases, outputs, strict=True):
        want = case.reference_outputs(torch.arange(m, device=str(gpu)))
        assert compare(output, want, case._exact) is None, case.problem


@pytest.mark.usefixtures("tables")
def test_after_warming_with_static_scales_none_is_compiled_for(
    gpu: Device, seed: int, compiled: list[str]
) -> None:
    """Wherever it lies: a scale may be one of a tensor, at no multiple of 16 bytes."""
    load(gpu.index, Table())
    ops = (Op.QUANTIZE, Op.RMSNORM_QUANTIZE, Op.SILU_MUL_QUANTIZE)
    problems = [problem(SIX_EIGHT, op, 16, 1400) for op in ops]
    assert warm(problems, gpu, static=True) == len(ops) + 1
    assert len(compiled) == len(ops) + 1
    compiled.clear()
    cases = [Case(wanted, torch.device(str(gpu)), seed, 0) for wanted in problems]
    scales = torch.tensor([0.1, 0.02, 0.3], device=str(gpu))
    for scale in (scales[0], scales[1:2]):
        for case in cases:
            made = launch(case, scale)()[1]
            assert torch.equal(made, scale.expand(16))
    assert compiled == []


def launch(
    case: Case, static_scale: torch.Tensor | None = None
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """The public operation on the operands of a case; those that scale back take no scale."""
    it, out, pattern = case.sets[0], TORCH_DTYPES[case.problem.out], case.problem.pattern
    row, column = case.scaled.row, case.scaled.column
    match case.problem.op:
        case Op.QUANTIZE:
            return lambda: quantize(it.x, out, pattern, static_scale=static_scale)
        case Op.RMSNORM_QUANTIZE:
            return lambda: rmsnorm_quantize(
                it.x,
                case.weight,
                EPS,
                out,
                pattern,
                residual=it.residual,
                static_scale=static_scale,
            )
        case Op.SILU_MUL_QUANTIZE:
            return lambda: silu_mul_quantize(it.x, out, pattern, static_scale=static_scale)
        case Op.DEQUANTIZE:
            return lambda: (dequantize(it.x, row, column, out),)
        case Op.DEQUANT_RMSNORM_QUANTIZE:
            return lambda: dequant_rmsnorm_quantize(
                it.x, row, column, case.weight, EPS, out, pattern, residual=it.residual
            )
        case Op.DEQUANT_SILU_MUL_QUANTIZE:
            return lambda: dequant_silu_mul_quantize(it.x, row, column, out, pattern)
