"""Searches on the GPU in which candidates fault for real."""

from __future__ import annotations

from slidesparse.cache import TuningCache
from slidesparse.candidate import Provenance
from slidesparse.devices import detect
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem
from slidesparse.search.backend import Effort
from slidesparse.search.driver import Search, SearchOptions
from slidesparse.search.verify_cache import verify_entries


def problem(m=64, pattern="dense", n=4608, k=3584):
    return GemmProblem(m, n, k, DType.FP8, DType.BF16, pattern=Pattern.parse(pattern))


def search(problems, gpu, root, backends=None, effort=Effort.QUICK, **options):
    cache = TuningCache(root, detect(gpu))
    chosen = SearchOptions(effort=effort, backends=backends, seed=1, **options)
    return Search(problems, [gpu], cache, chosen).run()


def test_an_illegal_access_costs_one_candidate(gpu, faulty_backends, tmp_path):
    wanted = problem()
    outcome = search([wanted], gpu, tmp_path, ("faulty_backends:Faulty",))
    result = outcome.found[wanted].result
    failed = {f.candidate.params["bad"]: f for f in result.failures}
    assert failed["illegal"].kind == "crash"
    assert "illegal memory access" in failed["illegal"].reason
    assert failed["memory"].kind == "memory"
    assert failed["garbage"].kind in {"refused", "crash"}
    assert len(failed) == 3
    assert "algo" in result.best.candidate.params


def test_a_problem_that_does_not_fit_is_skipped_and_the_rest_goes_on(gpu, tmp_path):
    fits, huge = problem(), problem(m=40_000_000)
    outcome = search([huge, fits], gpu, tmp_path, ("cublaslt",))
    assert "do not fit the memory" in outcome.skipped[huge]
    assert outcome.found[fits].result.best is not None


def test_sparse_and_dense_race_on_the_pruned_weight(gpu, tmp_path):
    wanted = problem(m=4096, pattern="2:4", n=37888)
    outcome = search([wanted], gpu, tmp_path, effort=Effort.NORMAL, fresh=True)
    result = outcome.found[wanted].result
    assert outcome.found[wanted.on_dense()].result.baseline == (
        outcome.found[wanted.on_dense()].result.best
    )
    assert not result.baseline.candidate.sparse
    assert result.best.candidate.sparse, "2:4 at M=4096 is faster than dense on every GPU it is on"
    defaults = {m.candidate.backend for m in result.defaults}
    assert "cusparselt" in defaults
    again = search([wanted], gpu, tmp_path, effort=Effort.NORMAL)
    assert again.found[wanted].provenance is Provenance.CACHED
    assert again.seconds < 2
    cache = TuningCache(tmp_path, detect(gpu))
    verified = verify_entries([h.result for h in cache.entries().values()], gpu, 2, lambda _: None)
    assert len(verified) == 2
    assert all(entry.now_us is not None for entry in verified), verified
