"""The benchmark of the kernels, with the kernels in Triton's interpreter: figures and reasons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from slidesparse.bench.alternatives import Alternative
from slidesparse.bench.ceilings import Copy
from slidesparse.bench.compiled import Compiled
from slidesparse.bench.fault import DeviceLost, guard
from slidesparse.bench.kernels import run as module
from slidesparse.bench.kernels.record import Ceilings, Row, Skipped
from slidesparse.bench.kernels.run import (
    KernelBench,
    bench_problems,
    problem_bytes,
)
from slidesparse.candidate import Measurement
from slidesparse.devices import CPU, Device
from slidesparse.kernel_problem import KernelProblem, KernelResult, Op
from slidesparse.kernels.case import Case
from slidesparse.kernels.config import Config, Table, default_config
from slidesparse.kernels.launch import INTERPRETED
from slidesparse.kernels.workload import row_order
from slidesparse.models import load_model
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType

TINY = Path(__file__).resolve().parents[2] / "data" / "tiny"
SIX = Pattern.parse("6:8")
CEILINGS = Ceilings(10.0, 2**26, 0.5)
QUANTIZE = KernelProblem(Op.QUANTIZE, 16, 64, DType.BF16, DType.FP8, SIX)
on_cpu = pytest.mark.skipif(not INTERPRETED, reason="the kernels run on a GPU here")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "ROUNDS", 2)
    monkeypatch.setattr(module, "FEWEST_ROUNDS", 2)
    with np.errstate(all="ignore"):
        yield


def kernel_row(problem: KernelProblem, seed: int, table: Table | None = None) -> Row:
    """What a GPU would give, from the interpreter."""
    bench = KernelBench(CPU, table or Table(), seed)
    return bench._kernel_row(Case(problem, torch.device("cpu"), seed, 0), CEILINGS)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile's function as it is: quick, and no compiler needed."""

    def make(problem: KernelProblem, device: torch.device) -> Compiled:
        return Compiled(problem, device, backend=None)

    monkeypatch.setattr(module, "Compiled", make)


def test_the_problems_are_of_the_patterns_and_counts_asked_for() -> None:
    spec = load_model(str(TINY))
    found = bench_problems(spec, 1, DType.INT8, (SIX,), (4, 3), tuple(Op))
    assert {p.m for p in found} == {3, 4}, "one M bucket, and yet both"
    assert {p.pattern for p in found if p.op.quantizes} == {SIX}
    assert {p.op for p in found} == set(Op)
    assert list(found) == sorted(found, key=row_order)
    only = bench_problems(spec, 1, DType.FP8, (DENSE, SIX), (4,), (Op.DEQUANTIZE,))
    assert [(p.op, p.k) for p in only] == [(Op.DEQUANTIZE, 64), (Op.DEQUANTIZE, 192)]


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
def test_bytes_are_known_before_there_are_operands(dtype: DType, seed: int) -> None:
    """All but the scales, one float32 per row."""
    spec = load_model(str(TINY))
    for problem in bench_problems(spec, 1, dtype, (DENSE, SIX), (5,), tuple(Op)):
        case = Case(problem, torch.device("cpu"), seed, 0)
        scales = 4 * problem.m if problem.op.quantizes else 0
        assert case.bytes == problem_bytes(problem) + scales, problem


def test_the_references_of_the_cpu_are_timed(seed: int) -> None:
    spec = load_model(str(TINY))
    problems = bench_problems(spec, 1, DType.FP8, (DENSE, SIX), (3,), tuple(Op))
    bench = KernelBench(CPU, Table(), seed)
    rows = list(bench.run(problems, CEILINGS))
    assert [row.problem for row in rows] == list(problems)
    for row in rows:
        assert isinstance(row, Row)
        assert row.median_us is not None
        assert row.median_us > 0
        assert (row.config, row.tuned, row.alternatives, row.error) == (None, False, (), None)


@on_cpu
def test_a_row_holds_ours_the_copy_the_wide_and_every_alternative(
    uncompiled: None, seed: int
) -> None:
    row = kernel_row(QUANTIZE, seed)
    assert row.error is None
    default = default_config(Op.QUANTIZE, 64, 16)
    assert row.config is not None
    assert Config(**row.config) == default
    assert row.tuned is False
    assert row.bytes == 16 * (64 * 2 + 96 + 4)
    assert row.median_us is not None
    assert row.gbs == pytest.approx(row.bytes / row.median_us / 1e3)
    assert row.percent_of_copy == pytest.approx(10 * row.gbs)
    assert row.percent_of_copy_same_size is not None
    assert row.floor_us == pytest.approx(0.5 + row.bytes / 10e3)
    assert row.wide_us is not None
    ran = [(a.name, a.how) for a in row.alternatives if a.median_us]
    assert ran == [
        ("torch.compile", "dynamic M"),
        ("two-step", "quantize, then index_select"),
        ("two-step", "quantize, then unfold"),
    ]
    (left,) = [a for a in row.alternatives if not a.median_us]
    assert left.name == "vllm"
    assert left.reason


@on_cpu
def test_a_tuned_configuration_is_taken_and_said(
    uncompiled: None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = Config(block=512, warps=2)
    timed = Measurement(tuned.candidate, 5.0, 0.1, 21, 64, 0.0, 0.0)
    table = Table([KernelResult(QUANTIZE, (timed,))])
    monkeypatch.setattr(module, "launch_config", lambda problem, index: table.find(problem))
    row = kernel_row(QUANTIZE, seed, table)
    assert row.tuned is True
    assert row.config is not None
    assert Config(**row.config) == tuned


@on_cpu
def test_a_wrong_kernel_is_reported_and_not_timed(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Case, "run", lambda self, config, index, wide=True: None)
    row = kernel_row(QUANTIZE, seed)
    assert row.median_us is None
    assert row.alternatives == ()
    assert "differ from the reference" in str(row.error)


@on_cpu
def test_a_kernel_that_does_not_compile_is_reported(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Case, config: Config, index: int, wide: bool = True) -> None:
        raise RuntimeError("out of registers\nand much more")

    monkeypatch.setattr(Case, "run", fails)
    assert kernel_row(QUANTIZE, seed).error == "RuntimeError: out of registers"


@on_cpu
def test_an_alternative_that_fails_or_is_wrong_costs_itself_only(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(problem: KernelProblem, device: torch.device) -> Compiled:
        raise RuntimeError("Inductor: 32-bit indices")

    monkeypatch.setattr(module, "Compiled", broken)
    row = kernel_row(QUANTIZE, seed)
    assert row.error is None
    reasons = {a.name: a.reason for a in row.alternatives if not a.median_us}
    assert reasons["torch.compile"] == "RuntimeError: Inductor: 32-bit indices"
    assert row.ratio("two-step") is not None

    class Wrong(Compiled):
        def __init__(self, problem: KernelProblem, device: torch.device) -> None:
            super().__init__(problem, device, backend=None)
            right = self._function
            self._function = lambda *args: tuple(2 * t.float() for t in right(*args))

    monkeypatch.setattr(module, "Compiled", Wrong)
    row = kernel_row(QUANTIZE, seed)
    reasons = {a.name: a.reason for a in row.alternatives if not a.median_us}
    assert "it gives torch.float32" in reasons["torch.compile"]


@on_cpu
def test_an_alternative_that_writes_nothing_is_caught(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our outputs are still in the memory that it claims to have written."""

    def lazy(self: KernelBench, case: Case) -> Iterator[Alternative]:
        yield Alternative("lazy", "", lambda index: case.sets[0].outputs)

    monkeypatch.setattr(KernelBench, "_alternatives", lazy)
    (found,) = kernel_row(QUANTIZE, seed).alternatives
    assert found.median_us is None
    assert "differ from ours" in found.reason


FAULT = "CUDA error: an illegal memory access was encountered"


def lose_device(*arguments: object, **options: object) -> None:
    raise RuntimeError(f"{FAULT}\nand much more")


@on_cpu
def test_our_kernel_that_loses_the_device_ends_the_run(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Case, "run", lose_device)
    with pytest.raises(DeviceLost) as caught:
        kernel_row(QUANTIZE, seed)
    assert caught.value.problem == QUANTIZE
    label = default_config(Op.QUANTIZE, 64, 16).candidate.label
    assert str(caught.value) == (
        f"the device is lost: {QUANTIZE}: our kernel [{label}] lost it: {FAULT}"
    )


@on_cpu
def test_an_alternative_that_loses_the_device_ends_the_run(
    uncompiled: None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Alternative("vllm", "fused", lose_device)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "vllm_alternatives", lambda case: [lost])
    with pytest.raises(DeviceLost, match=r"vllm \(fused\) lost it: CUDA error") as caught:
        kernel_row(QUANTIZE, seed)
    assert caught.value.problem == QUANTIZE
    monkeypatch.setattr(module, "vllm_alternatives", lose_device)
    with pytest.raises(DeviceLost, match="vllm lost it: CUDA error"):
        kernel_row(QUANTIZE, seed)


@on_cpu
def test_a_device_lost_in_the_race_names_all_that_ran(
    uncompiled: None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KernelBench, "_race", lose_device)
    with pytest.raises(DeviceLost) as caught:
        kernel_row(QUANTIZE, seed)
    for name in ("our kernel [", "a copy", "torch.compile (dynamic M)", "two-step (quantize, "):
        assert name in caught.value.reason
    with pytest.raises(DeviceLost, match="a large copy or an empty kernel lost it"):
        KernelBench(CPU, Table(), seed).ceilings()


def test_an_error_that_leaves_the_device_sound_is_no_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a launch or a capture is refused for has the same words; the device still answers."""
    gpu = Device("cuda", 1)
    text = "CUDA error: operation not permitted when stream is capturing"
    monkeypatch.setattr(torch.cuda, "synchronize", lambda index: None)
    with pytest.raises(RuntimeError, match="capturing"), guard(gpu, QUANTIZE, "vllm"):
        raise RuntimeError(text)
    monkeypatch.setattr(torch.cuda, "synchronize", lose_device)
    with pytest.raises(DeviceLost), guard(gpu, QUANTIZE, "vllm"):
        raise RuntimeError(text)


@on_cpu
def test_compile_can_be_left_out(seed: int) -> None:
    bench = KernelBench(CPU, Table(), seed, compiles=False)
    row = bench._kernel_row(Case(QUANTIZE, torch.device("cpu"), seed, 0), CEILINGS)
    reasons = {a.name: a.reason for a in row.alternatives if not a.median_us}
    assert reasons["torch.compile"] == "left out by --no-compile"


def test_what_does_not_fit_is_skipped(seed: int) -> None:
    huge = replace(QUANTIZE, m=2**31 - 1)
    (found,) = KernelBench(CPU, Table(), seed).run([huge], CEILINGS)
    assert isinstance(found, Skipped)
    assert "use a smaller --m" in found.reason


def test_the_largest_m_of_a_group_comes_first(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [replace(QUANTIZE, m=m, pattern=p) for p in (DENSE, SIX) for m in (1, 4, 2)]
    rows = KernelBench(CPU, Table(), seed).run(problems, CEILINGS)
    assert [(r.problem.pattern, r.problem.m) for r in rows] == [
        (pattern, m) for pattern in (DENSE, SIX) for m in (4, 2, 1)
    ]


def test_ceilings_of_the_cpu(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(module, "CPU_BYTES", 2**20)
    found = KernelBench(CPU, Table(), seed).ceilings()
    assert found.copy_gbs > 0
    assert (found.copy_bytes, found.empty_us) == (2**20, 0.0)


def test_a_copy_moves_the_bytes_asked_for() -> None:
    copy = Copy(10_000, CPU)
    assert (copy.half, copy.sets) == (5_000, 1)
    copy.runner().launch(0, 0)
    source, target = copy._pairs[0]
    assert torch.equal(source, target)
    assert source.numel() == 5_000
