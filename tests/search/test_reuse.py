"""Which cached results answer a search: of the same backends, versions included, and whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
from vllm_product import VERSION

from slidesparse import vllm_gemm
from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Failure, Measurement, ProblemResult
from slidesparse.devices import Device, Fingerprint
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.search import vllm_dense
from slidesparse.search.backend import Effort
from slidesparse.search.backends import all_backends, default_backends
from slidesparse.search.driver import Search, SearchOptions
from slidesparse.search.reuse import answers, current

GPU = Device("cuda")
DENSE = GemmProblem(64, 256, 512, DType.FP8, DType.BF16, Scales.ROWCOL)
SPARSE = replace(DENSE, pattern=Pattern.parse("6:8"))
CUBLASLT = Candidate("cublaslt", {"algo": "00ff"})
TORCH = Candidate("torch", {"function": "scaled_mm_rowwise", "fast_accum": True})
NATIVE = Candidate("native", {"tokens": 64}, sparse=True)
VLLM = Candidate("vllm", {"function": "cutlass_scaled_mm", "version": VERSION})


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch):
    """Pretend that this version of vLLM is installed, "none" for no vLLM."""

    def install(wanted: str) -> None:
        for module in (vllm_gemm, vllm_dense):
            monkeypatch.setattr(module, "package_version", lambda name: wanted)

    return install


def measured(candidate: Candidate, us: float) -> Measurement:
    return Measurement(candidate, us, 0.1, 15, 10, 1e-3, 1e-2)


def result_of(problem: GemmProblem, times: dict[Candidate, float], **values) -> ProblemResult:
    ranked = tuple(measured(c, us) for c, us in sorted(times.items(), key=lambda item: item[1]))
    dense = next((m for m in ranked if not m.candidate.sparse), None)
    names = ("cublaslt", "torch", "vllm 0.25.1")
    if not problem.pattern.dense:
        names = ("cusparselt", "native", "torchao")
    values = {"backends": names, "defaults": ranked[1:], "baseline": dense, **values}
    return ProblemResult(problem, ranked, **values)


RACED = result_of(DENSE, {VLLM: 8.0, CUBLASLT: 9.0, TORCH: 10.0}, tie=True)
SPARSE_RACED = result_of(SPARSE, {NATIVE: 7.0, VLLM: 8.0, CUBLASLT: 9.0}, tie=True)


def seen(result: ProblemResult) -> ProblemResult:
    return current(result, {backend.name: backend for backend in all_backends()})


def taken(result: ProblemResult, rivals: tuple[Candidate, ...] = (), effort=Effort.NORMAL) -> bool:
    """Whether a search of everything on a GPU takes the result as it is seen here."""
    backends = all_backends(default_backends(GPU))
    return answers(seen(result), result.problem, effort, backends, rivals)


def test_the_same_vllm_takes_results_as_they_are(version):
    version(VERSION)
    assert seen(RACED) is RACED
    assert taken(RACED)
    assert taken(SPARSE_RACED, (VLLM, CUBLASLT))


def test_without_vllm_its_times_are_left_out_and_the_others_stand(version):
    version("none")
    left = seen(RACED)
    assert [m.candidate for m in left.ranked] == [CUBLASLT, TORCH]
    assert left.baseline == RACED.ranked[1]
    assert [m.candidate for m in left.defaults] == [CUBLASLT, TORCH]
    assert left.backends == ("cublaslt", "torch")
    assert not left.tie, "the two that are first now were not told apart by the race"
    assert taken(RACED)
    sparse = seen(SPARSE_RACED)
    assert [m.candidate for m in sparse.ranked] == [NATIVE, CUBLASLT]
    assert sparse.baseline.candidate == CUBLASLT
    assert taken(SPARSE_RACED, (CUBLASLT, TORCH))


def test_another_vllm_is_raced_anew(version):
    version("0.26.0")
    assert [m.candidate for m in seen(RACED).ranked] == [CUBLASLT, TORCH]
    assert not taken(RACED)
    newer = replace(VLLM, params={**VLLM.params, "version": "0.26.0"})
    assert not taken(SPARSE_RACED, (newer, CUBLASLT)), "it is one of the best dense ways"
    assert taken(SPARSE_RACED, (CUBLASLT, TORCH)), "it is not, and the old one is left out"


def test_a_vllm_that_was_not_there_is_raced(version):
    before = result_of(DENSE, {CUBLASLT: 9.0, TORCH: 10.0}, backends=("cublaslt", "torch"))
    sparse = result_of(SPARSE, {NATIVE: 7.0, CUBLASLT: 9.0})
    version("none")
    assert seen(before) is before
    assert taken(before)
    version(VERSION)
    assert seen(before) is before
    assert not taken(before)
    assert not taken(sparse, (VLLM, CUBLASLT))
    assert taken(replace(sparse, failures=(Failure(VLLM, "wrong", ""),)), (VLLM, CUBLASLT))


def test_a_tie_of_the_first_two_stays_one(version):
    version("none")
    last = result_of(DENSE, {CUBLASLT: 8.0, TORCH: 9.0, VLLM: 10.0}, tie=True)
    assert seen(last).tie
    assert seen(result_of(SPARSE, {NATIVE: 7.0, VLLM: 8.0, CUBLASLT: 9.0}, tie=True)).tie


@pytest.mark.parametrize(
    ("change", "effort"),
    [
        ({"complete": False}, Effort.NORMAL),
        ({"effort": "quick"}, Effort.NORMAL),
        ({"effort": "normal"}, Effort.FULL),
        ({"backends": ("cublaslt", "vllm 0.25.1")}, Effort.NORMAL),
        ({"problem": replace(DENSE, m=63)}, Effort.NORMAL),
        ({"ranked": ()}, Effort.NORMAL),
    ],
)
def test_less_than_was_asked_for_is_no_answer(version, change, effort):
    version(VERSION)
    backends = all_backends(default_backends(GPU))
    assert answers(RACED, DENSE, Effort.NORMAL, backends, ())
    assert not answers(replace(RACED, **change), DENSE, effort, backends, ())


def test_a_search_without_vllm_takes_bundled_results_with_it(version, tmp_path):
    """Nothing is measured for what a machine with vLLM left, and vLLM does not show."""
    card = Fingerprint("NVIDIA fake", 90, 132, 81920)
    cache = TuningCache(tmp_path, card)
    cache.put_many([RACED, SPARSE_RACED])
    version("none")
    search = Search([SPARSE], [GPU], cache, SearchOptions(seed=1))
    assert search.backend_names == ("cublaslt", "cusparselt", "torch", "native", "torchao")
    found = search._reusable(DENSE)
    assert [m.candidate.backend for m in found.result.ranked] == ["cublaslt", "torch"]
    assert search._reusable(SPARSE).result.baseline.candidate == CUBLASLT
    version("0.26.0")
    assert Search([SPARSE], [GPU], cache, SearchOptions(seed=1))._reusable(DENSE) is None


def test_what_a_search_without_vllm_finds_is_kept(version, tmp_path):
    """vLLM is not missing from it; a search of fewer backends than are here replaces nothing."""
    cache = TuningCache(tmp_path, Fingerprint("NVIDIA fake", 90, 132, 81920))
    cache.put(RACED)
    longer = {"effort": "full", "backends": ("cublaslt", "torch")}
    without = result_of(DENSE, {CUBLASLT: 8.5, TORCH: 10.0}, **longer)
    version(VERSION)
    Search([DENSE], [GPU], cache, SearchOptions(seed=1))._file(without)
    assert cache.get(DENSE).result == RACED
    version("none")
    Search([DENSE], [GPU], cache, SearchOptions(seed=1))._file(without)
    assert cache.get(DENSE).result == without
