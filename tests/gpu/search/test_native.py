"""The native backend on the GPU: its candidates are right, searches find them, bad ones go."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import native_layers
import pytest
import torch

from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Failure, Measurement, ProblemResult, Provenance
from slidesparse.devices import Device, detect
from slidesparse.kernels.native import NativeConfig, pack
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.search.backend import Effort
from slidesparse.search.driver import Search, SearchOptions, specs_for
from slidesparse.search.native import NativeSparse
from slidesparse.search.operands import Operands, make_weight
from slidesparse.search.reference import Reference, limits_for, poison
from slidesparse.search.session import Session
from slidesparse.search.verify_cache import verify_entries

NATIVE = "native"
FP8, INT8 = DType.FP8, DType.INT8
TWO_FOUR = Pattern.parse("2:4")
FORMS = [
    (FP8, DType.BF16, Scales.ROWCOL),
    (FP8, DType.FP16, Scales.ROWCOL),
    (FP8, DType.BF16, Scales.TENSOR),
    (INT8, DType.BF16, Scales.ROWCOL),
    (INT8, DType.FP16, Scales.TENSOR),
    (INT8, DType.INT32, Scales.NONE),
]
SHAPES = [(1, 576, 576, "8:10"), (129, 3584, 3588, "6:8"), (1000, 1512, 576, "2:4")]
NOISE = 64
"""Small allocations that take the place of what was freed."""


@pytest.fixture(scope="module", autouse=True)
def _cache(gpu: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers inherit the place of the compiled code."""
    yield from native_layers.on_hopper(gpu, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def session(gpu: Device, request: pytest.FixtureRequest) -> Session:
    return Session(gpu, (NATIVE,), int(request.config.getoption("--seed")))


def rowcol(m: int = 512, n: int = 4608, k: int = 3584) -> GemmProblem:
    return GemmProblem(m, n, k, FP8, DType.BF16, Scales.ROWCOL, TWO_FOUR)


def raw(m: int = 512, n: int = 4608, k: int = 3584) -> GemmProblem:
    return GemmProblem(m, n, k, INT8, DType.INT32, Scales.NONE, TWO_FOUR)


def assert_all_right(session: Session, candidates: list[Candidate]) -> None:
    outcomes = [session.screen(candidate) for candidate in candidates]
    assert not [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    for outcome in outcomes:
        assert isinstance(outcome, Measurement)
        assert outcome.median_us > 0
        assert outcome.graph
        assert outcome.cold_l2
        assert outcome.candidate.sparse


@pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(map(str, f)))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s[:3])))
def test_candidates_are_right(session, form, shape):
    (m, n, k, pattern), (dtype, out, scales) = shape, form
    bias = scales is Scales.ROWCOL
    problem = GemmProblem(m, n, k, dtype, out, scales, Pattern.parse(pattern), bias)
    opening = session.open(problem, Effort.QUICK)
    assert opening.candidates, opening.left_out
    assert opening.defaults == (opening.candidates[0].key,)
    assert_all_right(session, list(opening.candidates))


@pytest.mark.parametrize("m", [16, 1000])
def test_neighbours_are_new_and_right(session, m):
    first, *rest = session.open(rowcol(m, 1512, 1024), Effort.NORMAL).candidates
    near = session.neighbours(first, Effort.NORMAL)
    assert near
    assert first.key not in {candidate.key for candidate in near}
    assert rest
    assert session.neighbours(first, Effort.QUICK) == []
    assert_all_right(session, near)


def test_more_effort_offers_more(session):
    problem = rowcol()
    offers = [
        [candidate.key for candidate in session.offer(problem, effort).candidates]
        for effort in (Effort.QUICK, Effort.NORMAL, Effort.FULL)
    ]
    quick, normal, full = offers
    assert len(quick) < len(normal) < len(full)
    assert normal[: len(quick)] == quick
    assert full[: len(normal)] == normal


def test_what_the_kernel_lacks_is_refused_with_the_values(session):
    fp32 = GemmProblem(64, 512, 512, FP8, DType.FP32, Scales.TENSOR, TWO_FOUR)
    narrow = rowcol(64, 516, 512)
    for problem, reason in (
        (fp32, "the native kernel gives bf16, fp16 from fp8_e4m3, not fp32"),
        (narrow, "N=516 is not a multiple of 8; pad it to 520"),
    ):
        opening = session.open(problem, Effort.QUICK)
        assert not opening.candidates
        assert reason in opening.left_out[NATIVE]
    assert session.open(raw(64, 515, 512), Effort.QUICK).candidates


GOOD = NativeConfig(slabs=1, tokens=64, box=32, boxes=2).params()
BROKEN = {
    "tokens=100 is no multiple of 8": {**GOOD, "tokens": 100},
    "stages=40 is not between 2 and 16": {**GOOD, "stages": 40},
    "bytes of shared memory are more than": {**GOOD, "stages": 16, "tokens": 128, "blocks": 8},
    "native tokens='64' is not of type int": {**GOOD, "tokens": "64"},
    "native along_x=0 is not of type bool": {**GOOD, "along_x": 0},
    "a native candidate has no colour": {**GOOD, "colour": 3},
    "a native candidate needs tokens": {k: v for k, v in GOOD.items() if k != "tokens"},
    "8 blocks of a cluster cannot share 8 stages": {**GOOD, "cluster_k": 8, "box": 8},
    "does not compile": {**GOOD, "tokens": 40, "box": 8},
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_broken_candidate_is_refused_and_costs_itself(session, reason):
    opening = session.open(raw(64, 512, 1024), Effort.QUICK)
    outcome = session.screen(Candidate(NATIVE, BROKEN[reason], sparse=True))
    assert isinstance(outcome, Failure)
    assert outcome.kind == "refused"
    assert reason in outcome.reason
    assert len(outcome.reason.splitlines()) == 1
    assert_all_right(session, [Candidate(NATIVE, GOOD, sparse=True), opening.candidates[0]])


def test_the_weight_is_packed_once_for_all_m(session, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "slidesparse.kernels.native.pack", lambda w: calls.append(w.shape) or pack(w)
    )
    for m in (16, 64, 256):
        opening = session.open(rowcol(m, 2048, 2048), Effort.QUICK)
        assert_all_right(session, list(opening.candidates[:3]))
    assert calls == [(2048, 2048)]


@pytest.mark.parametrize("scales", [Scales.TENSOR, Scales.ROWCOL], ids=str)
def test_a_prepared_candidate_keeps_its_scales(gpu, scales, seed):
    """One scale for everything becomes vectors: freed ones would be overwritten by what follows."""
    problem = GemmProblem(129, 512, 512, FP8, DType.BF16, scales, TWO_FOUR)
    device = torch.device(str(gpu))
    operands = Operands(problem, make_weight(problem, device, seed), device, seed + 1, 0)
    backend = NativeSparse()
    candidate = backend.candidates(problem, Effort.QUICK)[0]
    runner = backend.prepare(problem, candidate, operands)
    sizes = [size for size in (problem.m, problem.n) for _ in range(NOISE)]
    noise = [torch.full((size,), float("nan"), device=device) for size in sizes]
    poison(operands.out(0))
    runner.launch(0, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert Reference(operands).check(operands.out(0)).failure(problem) is None
    assert len(noise) == 2 * NOISE


def search(problem, gpu, root, backends, **options) -> tuple[ProblemResult, Provenance]:
    cache = TuningCache(root, detect(gpu), bundled=root)
    chosen = SearchOptions(effort=Effort.QUICK, backends=backends, seed=1, **options)
    outcome = Search([problem], [gpu], cache, chosen).run()
    assert problem not in outcome.skipped, outcome.skipped
    found = outcome.found[problem]
    return found.result, found.provenance


def native_of(result: ProblemResult) -> list[Measurement]:
    """What the last race measured of the native backend."""
    every = [*result.ranked, *result.defaults]
    return [m for m in every if m.candidate.backend == NATIVE]


def test_a_quick_search_finds_verified_native_candidates(gpu, tmp_path):
    wanted = rowcol()
    others = ("torch", "torchao") if find_spec("torchao") else ("torch",)
    result, provenance = search(wanted, gpu, tmp_path, (NATIVE, *others))
    assert provenance is Provenance.MEASURED
    assert NATIVE in result.backends
    assert NATIVE not in result.left_out
    assert not [f for f in result.failures if f.candidate.backend == NATIVE]
    limits = limits_for(wanted)
    assert native_of(result)
    for measurement in native_of(result):
        assert 0 < measurement.error <= limits.error
        assert 0 < measurement.worst <= limits.worst
    assert result.baseline is not None
    assert result.baseline.candidate.backend == "torch"
    again, provenance = search(wanted, gpu, tmp_path, (NATIVE, *others))
    assert provenance is Provenance.CACHED
    assert again.best == result.best


def test_a_quick_search_of_int8_to_int32(gpu, tmp_path):
    wanted = raw()
    result, _ = search(wanted, gpu, tmp_path, (NATIVE, "torch"))
    assert not result.failures
    assert native_of(result)
    assert all((m.error, m.worst) == (0, 0) for m in native_of(result))


def test_a_cached_native_winner_is_verified_by_another_process(gpu, tmp_path):
    wanted = rowcol(64, 2048, 2048)
    result, _ = search(wanted, gpu, tmp_path, (NATIVE,))
    assert result.best is not None
    assert result.best.candidate.backend == NATIVE
    (verified,) = verify_entries([result], gpu, 1, lambda _: None)
    assert verified.now_us is not None


def test_it_takes_part_unless_told_otherwise(gpu, tmp_path):
    assert NATIVE in specs_for(None, gpu)
    cache = TuningCache(tmp_path, detect(gpu), bundled=tmp_path)
    assert NATIVE in Search([rowcol()], [gpu], cache, SearchOptions()).backend_names
    assert NativeSparse().availability(gpu).ok
