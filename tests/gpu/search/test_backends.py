"""Every backend on the GPU: each candidate that it offers is right, or says why it cannot run."""

from __future__ import annotations

import pytest

from slidesparse.candidate import Failure, Measurement
from slidesparse.devices import Device, detect
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.search.backend import Effort
from slidesparse.search.session import Session

BACKENDS = ("cublaslt", "cusparselt", "torch")
FP8, INT8 = DType.FP8, DType.INT8
FORMS = [
    (FP8, DType.BF16, Scales.TENSOR),
    (FP8, DType.FP16, Scales.TENSOR),
    (FP8, DType.FP32, Scales.TENSOR),
    (FP8, DType.BF16, Scales.ROWCOL),
    (INT8, DType.INT32, Scales.NONE),
    (INT8, DType.INT8, Scales.TENSOR),
    (INT8, DType.BF16, Scales.TENSOR),
    (INT8, DType.FP16, Scales.TENSOR),
    (INT8, DType.BF16, Scales.ROWCOL),
    (INT8, DType.FP32, Scales.ROWCOL),
]
SHAPES = [(1, 576, 576), (7, 4608, 3584), (129, 3584, 18944), (16, 272, 3584), (1000, 1536, 576)]
PATTERNS = ["dense", "2:4", "4:6", "6:8", "8:10", "14:16"]


@pytest.fixture(scope="module")
def session(gpu: Device, request: pytest.FixtureRequest) -> Session:
    return Session(gpu, BACKENDS, int(request.config.getoption("--seed")))


def offered(problem: GemmProblem) -> bool:
    """Whether some library has this form at all: what it must then also run."""
    dense = problem.pattern.dense
    if dense and problem.scales is Scales.ROWCOL:
        return problem.dtype is INT8 or problem.out is DType.BF16
    if dense:
        return problem.dtype is FP8 or problem.out in {DType.INT32, DType.INT8}
    return problem.n % 32 == 0


@pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(map(str, f)))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_candidates_are_right(session, form, shape, pattern):
    (m, n, k), (dtype, out, scales) = shape, form
    problem = GemmProblem(m, n, k, dtype, out, scales, Pattern.parse(pattern))
    opening = session.open(problem, Effort.NORMAL)
    outcomes = [session.screen(candidate) for candidate in opening.candidates]
    wrong = [o for o in outcomes if isinstance(o, Failure) and o.kind != "refused"]
    assert not wrong
    right = [o for o in outcomes if isinstance(o, Measurement)]
    assert bool(right) == offered(problem), (opening.left_out, outcomes[:2])
    for reason in opening.left_out.values():
        assert reason
    for measurement in right:
        assert measurement.median_us > 0
        assert measurement.graph
        assert measurement.cold_l2


@pytest.mark.parametrize("pattern", ["2:4", "6:8"])
def test_torchao_is_right_where_it_is_installed(gpu, pattern, seed):
    pytest.importorskip("torchao", reason="torchao is not installed")
    session = Session(gpu, ("torchao",), seed)
    for scales in (Scales.TENSOR, Scales.ROWCOL):
        problem = GemmProblem(129, 3584, 3584, FP8, DType.BF16, scales, Pattern.parse(pattern))
        opening = session.open(problem, Effort.NORMAL)
        assert opening.candidates, opening.left_out
        outcome = session.screen(opening.candidates[0])
        assert isinstance(outcome, Measurement), outcome


def test_the_weight_is_compressed_once_for_all_m(session, monkeypatch):
    from slidesparse.kernels.blas.cusparselt import Plan

    calls = []
    compress = Plan.compress
    monkeypatch.setattr(Plan, "compress", lambda *a: calls.append(1) or compress(*a))
    for m in (16, 64, 256):
        problem = GemmProblem(m, 2048, 2048, FP8, DType.BF16, pattern=Pattern.parse("6:8"))
        for candidate in session.open(problem, Effort.QUICK).candidates[:4]:
            assert isinstance(session.screen(candidate), Measurement)
    assert len(calls) == 1


def test_full_effort_enumerates_the_space_and_neighbours_are_new(session):
    problem = GemmProblem(1024, 4608, 3584, FP8, DType.BF16)
    normal = session.offer(problem, Effort.NORMAL).candidates
    full = session.offer(problem, Effort.FULL).candidates
    keys = {c.key for c in full}
    assert {c.key for c in normal} <= keys
    assert len(keys) == len(full)
    assert len(full) > 10 * len(normal)
    session.open(problem, Effort.NORMAL)
    near = session.neighbours(normal[0], Effort.NORMAL)
    assert near
    assert normal[0].key not in {c.key for c in near}
    changed = {name for c in near for name in c.fields if c.fields != normal[0].fields}
    assert {"cluster", "custom"} <= changed


def test_the_same_candidate_twice_takes_the_same_time(session):
    """The spread of one candidate bounds what any comparison can claim."""
    problem = GemmProblem(4096, 4608, 3584, FP8, DType.BF16)
    best = session.open(problem, Effort.QUICK).candidates[0]
    session.screen(best)
    race = session.race([best], 60)
    first, second = (sorted(race.samples[0][parity::2])[15] for parity in (0, 1))
    assert abs(first / second - 1) < 0.02, race
    assert race.clock_mhz is None or 200 < race.clock_mhz < 3000
    assert race.power_w is None or 50 < race.power_w < 1500


def test_a_cold_cache_is_slower_than_a_warm_one(gpu, seed, monkeypatch):
    """Decode streams the weight: were it found in the L2, the time would be a fraction."""
    problem = GemmProblem(16, 4608, 3584, FP8, DType.BF16)
    cold = Session(gpu, ("cublaslt",), seed)
    candidate = cold.open(problem, Effort.QUICK).candidates[0]
    cold_us = cold.screen(candidate).median_us
    monkeypatch.setattr("slidesparse.search.session.l2_bytes", lambda device: 0)
    warm = Session(gpu, ("cublaslt",), seed)
    warm.open(problem, Effort.QUICK)
    measurement = warm.screen(candidate)
    assert not measurement.cold_l2
    assert cold_us > 1.1 * measurement.median_us


@pytest.mark.parametrize("pattern", ["dense", "2:4", "8:10"])
def test_m_65536_of_qwen_gate_up_is_right_to_the_last_row(session, gpu, pattern):
    """65536 x 37888 elements pass 2^31: 32-bit offsets crash or write elsewhere."""
    if detect(gpu).memory_mib < 60_000:
        pytest.skip("needs 60 GB of GPU memory")
    problem = GemmProblem(65536, 37888, 3584, FP8, DType.BF16, pattern=Pattern.parse(pattern))
    assert problem.passes_int32
    opening = session.open(problem, Effort.QUICK)
    outcomes = [session.screen(candidate) for candidate in opening.candidates[:8]]
    assert [o for o in outcomes if isinstance(o, Measurement)], outcomes
    session.close()
