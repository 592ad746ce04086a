"""The vllm backend on the CPU: when it takes part, what it refuses, and how it calls the op."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from vllm_product import VERSION, StrictProduct

from slidesparse import vllm_gemm
from slidesparse.candidate import Candidate
from slidesparse.devices import CPU, Device, Fingerprint
from slidesparse.errors import CandidateError
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.search import vllm_dense
from slidesparse.search.backend import Effort
from slidesparse.search.backends import default_backends, load_backend
from slidesparse.search.operands import Operands, make_weight
from slidesparse.search.reference import Reference, poison
from slidesparse.search.session import Session
from slidesparse.search.vllm_dense import VllmDense, bind

GPU = Device("cuda")
ROWCOL = GemmProblem(64, 256, 512, DType.FP8, DType.BF16, Scales.ROWCOL)
OTHERS = ("cublaslt", "cusparselt", "torch", "native", "torchao")


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch):
    """Pretend that this version of vLLM is installed, "none" for no vLLM."""

    def install(wanted: str) -> None:
        for module in (vllm_gemm, vllm_dense):
            monkeypatch.setattr(module, "package_version", lambda name: wanted)

    return install


def test_without_vllm_a_search_of_everything_passes_it_over(version):
    version("none")
    assert set(default_backends(GPU)) == set(OTHERS)
    assert VllmDense().identity == "vllm"
    version(VERSION)
    assert set(default_backends(GPU)) == {*OTHERS, "vllm"}
    assert VllmDense().identity == "vllm 0.25.1"
    assert default_backends(CPU) == ("cpu", "cpu-slid")


def test_availability_imports_vllm_only_where_it_can_run(version, monkeypatch):
    def imports() -> str:
        raise AssertionError("vLLM is imported")

    monkeypatch.setattr(vllm_gemm, "vllm_reason", imports)
    version(VERSION)
    on_cpu = VllmDense().availability(CPU)
    assert (on_cpu.ok, on_cpu.reason) == (False, "needs an NVIDIA GPU")
    version("none")
    absent = VllmDense().availability(GPU)
    assert (absent.ok, absent.reason) == (False, "optional, and vLLM is not installed")
    assert absent.remedy == "pip install 'slidesparse[vllm]'"


def test_availability_says_what_importing_showed(version, monkeypatch):
    version(VERSION)
    monkeypatch.setattr(vllm_gemm, "missing", lambda: "vLLM cannot be imported: no libcudart")
    broken = VllmDense().availability(GPU)
    assert (broken.ok, broken.reason) == (False, "vLLM cannot be imported: no libcudart")
    assert broken.remedy == "install the vLLM that goes with this torch"
    monkeypatch.setattr(vllm_gemm, "missing", lambda: "")
    works = VllmDense().availability(GPU)
    assert (works.ok, works.reason) == (True, "version 0.25.1")


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (ROWCOL, None),
        (replace(ROWCOL, out=DType.FP16, bias=True, m=1), None),
        (replace(ROWCOL, dtype=DType.INT8, m=7), None),
        (replace(ROWCOL, n=264), "N=264 is not a multiple of 16; pad it to 272"),
        (replace(ROWCOL, k=3588), "K=3588 is not a multiple of 16; pad it to 3600"),
        (replace(ROWCOL, out=DType.FP32), "vLLM's product gives bf16 or fp16, not fp32"),
        (
            replace(ROWCOL, scales=Scales.TENSOR),
            "vLLM's product is raced with row x column scales, not with tensor",
        ),
        (
            replace(ROWCOL, dtype=DType.INT8, out=DType.INT32, scales=Scales.NONE),
            "vLLM's product is raced with row x column scales, not with none",
        ),
    ],
)
def test_refusals_on_hopper_name_the_values(monkeypatch, problem, reason):
    card = Fingerprint("NVIDIA fake", 90, 132, 81920)
    monkeypatch.setattr(vllm_dense, "detect", lambda device: card)
    assert VllmDense().refusal(problem, GPU) == reason


def test_one_candidate_of_the_version_that_is_installed(version):
    version(VERSION)
    backend = load_backend("vllm")
    (found,) = backend.candidates(ROWCOL, Effort.FULL)
    assert found == vllm_gemm.candidate()
    assert not found.sparse
    assert backend.current(found)
    assert backend.neighbours(ROWCOL, found, Effort.FULL) == []
    version("0.26.0")
    assert not backend.current(found)
    version("none")
    assert not backend.current(found)


def test_a_session_notes_the_version(version):
    version(VERSION)
    session = Session(CPU, ("vllm", "torch"), seed=1)
    assert session.offer(ROWCOL, Effort.QUICK).backends == ("torch", "vllm 0.25.1")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"function": "x", "version": VERSION}, "vLLM has no candidate 'x'"),
        (
            {"function": "cutlass_scaled_mm", "version": "0.24.0"},
            "vLLM 0.24.0 was measured and 0.25.1 is installed; search again",
        ),
    ],
)
def test_what_is_not_its_own_is_not_prepared(version, params, message):
    version(VERSION)
    operands = Operands(ROWCOL, make_weight(ROWCOL, torch.device("cpu"), 1), "cpu", 1, 0)
    with pytest.raises(CandidateError) as raised:
        VllmDense().prepare(ROWCOL, Candidate("vllm", params), operands)
    assert str(raised.value) == message


@pytest.mark.parametrize("pattern", ["dense", "6:8"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("out", [DType.BF16, DType.FP16])
@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
@pytest.mark.parametrize("m", [1, 7, 129])
def test_the_op_gets_what_it_computes_the_problem_from(m, dtype, out, bias, pattern, seed):
    """Through the checks that the op makes, against the reference of every search."""
    kind = Pattern.parse(pattern)
    problem = GemmProblem(m, 144, 208, dtype, out, Scales.ROWCOL, kind, bias)
    cpu = torch.device("cpu")
    operands = Operands(problem, make_weight(problem, cpu, seed), cpu, seed + problem.m, 0)
    written = operands.out(0)
    poison(written)
    product = StrictProduct()
    bind(product, problem, operands).launch(0, 0)
    assert product.calls == 1
    check = Reference(operands).check(written)
    assert check.failure(problem) is None, check
    assert written[m:].isnan().all(), "rows past M belong to nobody"


def test_each_launch_takes_its_own_operands(seed, monkeypatch):
    """Cold operands: launch i reads and writes set i."""
    problem = replace(ROWCOL, m=16)
    cpu = torch.device("cpu")
    operands = Operands(problem, make_weight(problem, cpu, seed), cpu, seed + problem.m, 0)
    operands.sets = 3
    seen = []
    runner = bind(lambda *given: seen.append(given[:3]), problem, operands)
    for index in range(4):
        runner.launch(index, 0)
    addresses = [tuple(t.data_ptr() for t in given) for given in seen]
    assert len(set(addresses[:3])) == 3
    assert addresses[3] == addresses[0]
    assert all(len({a[i] for a in addresses}) == 3 for i in range(3))
