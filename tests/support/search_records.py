"""A result file of `slidesparse search` that nobody measured."""

from __future__ import annotations

from dataclasses import replace

from slidesparse.bench.search.record import SearchRecord
from slidesparse.bench.workload import LayerProblem
from slidesparse.candidate import Candidate, Failure, Measurement, ProblemResult, Provenance
from slidesparse.devices import Fingerprint
from slidesparse.models import LinearLayer
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem

SIX = Pattern.parse("6:8")


def measured(backend: str, us: float, sparse: bool = False) -> Measurement:
    candidate = Candidate(backend, {"algo": "0a", "fast": True}, sparse, {"tile": "128x64"})
    return Measurement(candidate, us, 0.5, 45, 8, 1.25e-3, 2e-2, True, True, 0, 1980, 512.5)


def make_record() -> SearchRecord:
    layer = LinearLayer("expert_down", 64, 96, 28, kind="expert", experts=8, active=2)
    dense = GemmProblem(16, 64, 96, DType.FP8, DType.BF16)
    sparse = replace(dense, pattern=SIX)
    skipped = replace(dense, m=64)
    failure = Failure(Candidate("cusparselt", {"algorithm": 3}, True), "crash", "killed by SIGSEGV")
    results = {
        dense: ProblemResult(dense, (measured("cublaslt", 10.0), measured("torch", 12.5))),
        sparse: ProblemResult(
            sparse,
            (measured("cusparselt", 8.0, True), measured("cublaslt", 10.0)),
            baseline=measured("cublaslt", 10.0),
            failures=(failure,),
            left_out={"torchao": "not installed; pip install torchao"},
        ),
    }
    return SearchRecord(
        model="tiny",
        tp=2,
        fingerprint=Fingerprint("NVIDIA H200", 90, 132, 143156, "580.1", "13.1.0", "0.8.1"),
        settings={"effort": "normal", "budget_s": None, "backends": ["cublaslt"]},
        seconds=12.5,
        interrupted=True,
        layers=tuple(LayerProblem(layer, 64, p) for p in (dense, sparse, skipped)),
        results={
            dense: (results[dense], Provenance.BUNDLED),
            sparse: (results[sparse], Provenance.MEASURED),
        },
        skipped={skipped: "interrupted"},
        commit="0123456789abcdef",
        created="2026-03-03T10:00:00+00:00",
    )
