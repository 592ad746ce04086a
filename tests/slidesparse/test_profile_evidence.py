"""What tuning caches know about sparse GEMMs of a model: all of its layers, or nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Measurement, ProblemResult, Provenance
from slidesparse.devices import Fingerprint
from slidesparse.gpus import find_gpu
from slidesparse.models import ModelSpec, load_model
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.profile_evidence import DECODE, PREFILL, pattern_gains

SIX = Pattern.parse("6:8")
H100 = Fingerprint("NVIDIA H100 PCIe", 90, 114, 81079, "580", "13.1.0", "0.8.1", "2.11.0", "3.6")


@pytest.fixture
def model() -> ModelSpec:
    return load_model("qwen2.5-7b")


def measured(us: float, sparse: bool) -> Measurement:
    backend = "cusparselt" if sparse else "cublaslt"
    return Measurement(Candidate(backend, {}, sparse), us, 0.1, 30, 10, 1e-3, 2e-2)


def result(layer_n: int, layer_k: int, m: int, sparse_us: float) -> ProblemResult:
    """A race in which dense took 100 us."""
    problem = GemmProblem(m, layer_n, layer_k, DType.FP8, DType.BF16, Scales.ROWCOL, SIX)
    sparse, dense = measured(sparse_us, True), measured(100.0, False)
    ranked = tuple(sorted((sparse, dense), key=lambda it: it.median_us))
    return ProblemResult(problem, ranked, baseline=dense)


def fill(root: Path, results: list[ProblemResult]) -> None:
    TuningCache(root, H100).put_many(results)


def test_gains_are_sums_over_the_layers(tmp_path: Path, model: ModelSpec) -> None:
    layers = model.linears()
    fill(
        tmp_path, [result(it.n, it.k, PREFILL, 80.0 if i else 120.0) for i, it in enumerate(layers)]
    )
    (gain,) = pattern_gains(find_gpu("h100-pcie"), model, DType.FP8, [SIX], tmp_path)
    counts = [layer.count for layer in layers]
    sparse = sum(counts[1:])
    assert (gain.pattern, gain.m, gain.provenance) == (SIX, PREFILL, Provenance.CACHED)
    assert (gain.sparse, gain.layers) == (sparse, sum(counts))
    assert gain.planned == pytest.approx(100 * sum(counts) / (100 * counts[0] + 80 * sparse))


def test_a_model_of_which_a_layer_lacks_is_not_known(tmp_path: Path, model: ModelSpec) -> None:
    fill(tmp_path, [result(it.n, it.k, DECODE, 80.0) for it in model.linears()[1:]])
    assert pattern_gains(find_gpu("h100-pcie"), model, DType.FP8, [SIX], tmp_path) == ()


def test_another_gpu_knows_nothing_of_it(tmp_path: Path, model: ModelSpec) -> None:
    fill(tmp_path, [result(it.n, it.k, PREFILL, 80.0) for it in model.linears()])
    assert pattern_gains(find_gpu("h100-sxm"), model, DType.FP8, [SIX], tmp_path) == ()
    assert pattern_gains(find_gpu("h100-pcie"), model, DType.INT8, [SIX], tmp_path) == ()


def test_results_of_older_libraries_count_as_evidence(tmp_path: Path, model: ModelSpec) -> None:
    older = replace(H100, cublaslt="12.9.0")
    results = [result(it.n, it.k, PREFILL, 50.0) for it in model.linears()]
    TuningCache(tmp_path, older).put_many(results)
    (gain,) = pattern_gains(find_gpu("h100-pcie"), model, DType.FP8, [SIX], tmp_path)
    assert gain.planned == pytest.approx(2.0)
