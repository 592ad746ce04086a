"""The vllm backend on the GPU: its product is right, is raced, and refuses what CUTLASS does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from slidesparse import vllm_gemm
from slidesparse.cache import TuningCache
from slidesparse.candidate import Measurement, Provenance
from slidesparse.devices import Device, detect
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.search.backend import Effort
from slidesparse.search.backends import load_backend
from slidesparse.search.driver import Search, SearchOptions, specs_for
from slidesparse.search.operands import Operands, make_weight
from slidesparse.search.reference import Reference, poison
from slidesparse.search.session import Session

FP8, INT8 = DType.FP8, DType.INT8
BF16, FP16 = DType.BF16, DType.FP16
SHAPES = [(1, 576, 576), (7, 4608, 3584), (16, 272, 3584), (129, 3584, 18944), (1000, 1536, 576)]
"""Odd M among them: below 16, 64 and 128 vLLM runs other tiles, in FP8 with sides exchanged."""

LARGE_MIB = 60_000


@pytest.fixture(scope="module", autouse=True)
def _vllm(gpu: Device) -> None:
    reason = vllm_gemm.missing()
    if reason:
        pytest.skip(f"vLLM's GEMM is not tested: {reason}")


@pytest.fixture(scope="module")
def session(gpu: Device, request: pytest.FixtureRequest) -> Session:
    return Session(gpu, ("vllm",), int(request.config.getoption("--seed")))


@pytest.fixture(params=[FP8, INT8], ids=str)
def dtype(request: pytest.FixtureRequest, gpu: Device) -> DType:
    """The dtypes that this GPU has."""
    reason = vllm_gemm.refusal(request.param, BF16, detect(gpu).sm)
    if reason:
        pytest.skip(reason)
    return request.param


def screened(session: Session, problem: GemmProblem) -> Measurement:
    """The one candidate, verified whole and timed."""
    opening = session.open(problem, Effort.NORMAL)
    assert [c.key for c in opening.candidates] == [vllm_gemm.candidate().key], opening.left_out
    outcome = session.screen(opening.candidates[0])
    assert isinstance(outcome, Measurement), outcome
    return outcome


def test_it_is_available_and_says_its_version(gpu):
    state = load_backend("vllm").availability(gpu)
    assert state.ok, state
    assert state.reason == f"version {vllm_gemm.candidate().params['version']}"
    assert "vllm" in specs_for(None, gpu)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("out", [BF16, FP16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_it_is_right_to_the_limits_of_every_search(session, shape, dtype, out, bias):
    m, n, k = shape
    problem = GemmProblem(m, n, k, dtype, out, Scales.ROWCOL, bias=bias)
    measurement = screened(session, problem)
    assert measurement.graph
    assert measurement.cold_l2
    assert measurement.median_us > 0


@pytest.mark.parametrize("m", [1, 17, 65, 129])
def test_rows_past_m_are_not_written(gpu, m, dtype, seed):
    """Searches allocate whole groups of rows; the op gets the first M of them."""
    problem = GemmProblem(m, 1536, 1024, dtype, BF16, Scales.ROWCOL)
    device = torch.device(str(gpu))
    operands = Operands(problem, make_weight(problem, device, seed), device, seed + m, 0)
    out = operands.out(0)
    poison(out)
    runner = load_backend("vllm").prepare(problem, vllm_gemm.candidate(), operands)
    runner.launch(0, 0)
    check = Reference(operands).check(out)
    assert check.failure(problem) is None, check
    assert out[m:].isnan().all()


@pytest.mark.parametrize(("name", "size"), [("n", 1544), ("k", 1032)])
def test_what_is_refused_the_op_would_not_take(gpu, name, size, dtype, seed):
    """The refusal is not stricter than vLLM: the op itself raises at 8 more than a multiple."""
    problem = replace(GemmProblem(64, 1536, 1024, dtype, BF16, Scales.ROWCOL), **{name: size})
    backend = load_backend("vllm")
    up = -(-size // 16) * 16
    wanted = f"{name.upper()}={size} is not a multiple of 16; pad it to {up}"
    assert backend.refusal(problem, gpu) == wanted
    device = torch.device(str(gpu))
    operands = Operands(problem, make_weight(problem, device, seed), device, seed + 64, 0)
    runner = backend.prepare(problem, vllm_gemm.candidate(), operands)
    with pytest.raises(RuntimeError):
        runner.launch(0, 0)


def test_it_races_sparse_ways_and_is_found_again(gpu, tmp_path, dtype):
    """A dense baseline like any other: of the pruned weight, in the same race, then cached."""
    cache = TuningCache(tmp_path, detect(gpu))
    problem = GemmProblem(256, 4608, 3584, dtype, BF16, Scales.ROWCOL, Pattern.parse("2:4"))
    options = SearchOptions(Effort.QUICK, backends=("torch", "vllm", "cusparselt"), seed=1)
    outcome = Search([problem], [gpu], cache, options).run()
    dense = outcome.found[problem.on_dense()].result
    assert dense.backends == ("torch", load_backend("vllm").identity)
    assert vllm_gemm.candidate() in {m.candidate for m in dense.ranked}, dense.failures
    sparse = outcome.found[problem].result
    raced = {m.candidate for m in sparse.ranked}
    assert {m.candidate for m in dense.ranked[:2]} <= raced, sparse.failures
    assert "cusparselt" in {candidate.backend for candidate in raced}, sparse.failures
    again = Search([problem], [gpu], cache, options).run()
    assert {found.provenance for found in again.found.values()} == {Provenance.CACHED}


@pytest.mark.parametrize("out", [BF16, FP16], ids=str)
def test_m_65536_of_qwen_gate_up_is_right_to_the_last_row(session, gpu, dtype, out):
    """65536 x 37888 elements pass 2^31."""
    if detect(gpu).memory_mib < LARGE_MIB:
        pytest.skip("needs 60 GB of GPU memory")
    problem = GemmProblem(65536, 37888, 3584, dtype, out, Scales.ROWCOL)
    assert problem.passes_int32
    screened(session, problem)
    session.close()
