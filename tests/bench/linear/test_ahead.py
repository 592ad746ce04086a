"""Compiled ahead is what linears launch: quantisations, and the native GEMMs of their plans."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slidesparse.bench.linear import ahead as module
from slidesparse.bench.linear.ahead import compile_ahead, quantise_problems
from slidesparse.cache import Hit, TuningCache
from slidesparse.candidate import ProblemResult, Provenance
from slidesparse.devices import Device, Fingerprint
from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.kernels.native.program import SM
from slidesparse.models import LinearLayer
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, GemmProblem, Scales

SIX = Pattern.parse("6:8")
LAYERS = (LinearLayer("qkv", 4608, 3584, 28), LinearLayer("down", 3584, 18944, 28))
H200 = Fingerprint("NVIDIA H200", SM, 132, 143156, "580", "13.1.0", "0.8.1")


def test_quantisations_are_dense_and_lifted_and_once_each() -> None:
    twice = (*LAYERS, replace(LAYERS[0], name="o", n=3584))
    found = quantise_problems(twice, (DType.FP8, DType.INT8), (SIX,), (1, 64))
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2
    assert KernelProblem(Op.QUANTIZE, 64, 18944, DType.BF16, DType.INT8, SIX) in found
    assert KernelProblem(Op.QUANTIZE, 1, 3584, DType.BF16, DType.FP8, DENSE) in found


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """What would be compiled, and nothing is."""
    found: dict[str, list] = {"jobs": [], "results": []}

    def parallel(jobs, device):
        found["jobs"] += jobs
        return ["one is broken"]

    def variants(results):
        found["results"] += results
        return found["results"]

    monkeypatch.setattr(module, "load", lambda index, table: None)
    monkeypatch.setattr(module, "compile_parallel", parallel)
    monkeypatch.setattr(module, "native_variants", variants)
    monkeypatch.setattr("slidesparse.kernels.native.program.compile_variants", lambda every: [])
    monkeypatch.setattr("slidesparse.kernels.native.program.missing", lambda: "")
    return found


def test_native_gemms_of_these_shapes_only(tmp_path, compiled, monkeypatch) -> None:
    base = GemmProblem(64, 4608, 3584, DType.FP8, DType.BF16, Scales.ROWCOL, SIX)
    problems = [
        base,
        replace(base, n=37888),
        replace(base, dtype=DType.INT8),
        replace(base, pattern=Pattern.parse("2:4")),
        replace(base, scales=Scales.TENSOR),
    ]
    hits = {p.key: Hit(ProblemResult(p, ()), Provenance.MEASURED) for p in problems}
    cache = TuningCache(tmp_path, H200)
    monkeypatch.setattr(cache, "entries", lambda: hits)
    failed = compile_ahead(Device("cuda"), LAYERS, (DType.FP8,), (DENSE, SIX), (1, 64), cache)
    assert failed == ["one is broken"]
    assert [result.problem for result in compiled["results"]] == [base]
    assert {job.problem.op for job in compiled["jobs"]} == {Op.QUANTIZE}


def test_another_gpu_compiles_no_native_gemm(tmp_path, compiled, monkeypatch) -> None:
    cache = TuningCache(tmp_path, replace(H200, name="NVIDIA A100", sm=80))
    monkeypatch.setattr(cache, "entries", lambda: pytest.fail("not needed"))
    compile_ahead(Device("cuda"), LAYERS, (DType.INT8,), (SIX,), (16,), cache)
    assert compiled["jobs"]
    assert not compiled["results"]
