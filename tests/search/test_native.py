"""The native backend without its GPU: what it refuses, offers, remembers and prepares."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Measurement, ProblemResult
from slidesparse.devices import CPU, Device, Fingerprint
from slidesparse.errors import CandidateError, KernelError
from slidesparse.kernels import native as kernels
from slidesparse.kernels.native import program, space
from slidesparse.kernels.native.config import NativeConfig
from slidesparse.kernels.native.gemm import stages_of, variant_of
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.search import native
from slidesparse.search.backend import Effort
from slidesparse.search.backends import load_backend
from slidesparse.search.native import COUNTS, NativeSparse
from slidesparse.search.operands import Operands, make_weight
from slidesparse.search.session import Session
from slidesparse.serialize import from_plain, to_plain

GPU = Device("cuda")
SIX = Pattern.parse("6:8")
FP8 = GemmProblem(64, 256, 512, DType.FP8, DType.BF16, Scales.ROWCOL, SIX)
INT8 = GemmProblem(64, 256, 512, DType.INT8, DType.INT32, Scales.NONE, SIX)
TINY = replace(FP8, m=7, n=8, k=64)
LARGE = replace(FP8, m=16384, n=37888, k=3584)
FORMS = [
    FP8,
    replace(FP8, scales=Scales.TENSOR),
    replace(FP8, out=DType.FP16, bias=True),
    INT8,
    replace(INT8, out=DType.BF16, scales=Scales.ROWCOL, bias=True),
    replace(INT8, out=DType.FP16, scales=Scales.TENSOR),
]
SMALL = NativeConfig(slabs=1, tokens=64, stages=4, box=64, boxes=2, group=1)
EFFORTS = list(Effort)


@pytest.fixture
def backend(monkeypatch):
    """On a GPU that is not there: sizes of an H200, and a compiler that only listens."""
    made = NativeSparse()
    made.compiled = []
    monkeypatch.setattr(made, "_sms", lambda: 132)
    monkeypatch.setattr(program, "compile_variant", made.compiled.append)
    return made


@pytest.fixture
def card(monkeypatch):
    """Make the GPU one of some compute capability."""

    def choose(sm):
        monkeypatch.setattr(native, "detect", lambda device: Fingerprint("fake", sm, 132, 81920))

    choose(90)
    return choose


def candidate_of(config=SMALL, **changes):
    return Candidate("native", {**config.params(), **changes}, True)


class TestAvailability:
    def test_the_cpu_is_not_enough(self):
        found = NativeSparse().availability(CPU)
        assert (found.ok, found.reason) == (False, "needs an NVIDIA GPU")
        assert found.remedy == "run on a machine with one"

    def test_the_cpu_is_asked_nothing_of_the_compiler(self, monkeypatch):
        monkeypatch.setattr(program, "missing", None)
        assert not NativeSparse().availability(CPU).ok

    def test_with_a_compiler(self, monkeypatch):
        monkeypatch.setattr(program, "missing", lambda: "")
        found = NativeSparse().availability(GPU)
        assert (found.ok, found.reason) == (True, "compiled when needed")

    def test_without_one_the_command_that_mends_it_is_named(self, monkeypatch):
        monkeypatch.setattr(program, "missing", lambda: "cuda.core does not import (why)")
        found = NativeSparse().availability(GPU)
        assert (found.ok, found.reason) == (False, "cuda.core does not import (why)")
        assert "pip install 'slidesparse[cuda13]'" in found.remedy

    def test_a_session_on_the_cpu_leaves_it_out(self, seed):
        opening = Session(CPU, ("native",), seed).offer(FP8, Effort.QUICK)
        assert opening.candidates == ()
        assert opening.left_out == {"native": "needs an NVIDIA GPU; run on a machine with one"}

    def test_it_is_a_sparse_backend_of_gpus(self):
        made = load_backend("native")
        assert isinstance(made, NativeSparse)
        assert (made.name, made.sparse, made.on_gpu) == ("native", True, True)


class TestRefusal:
    @pytest.mark.parametrize(
        ("sm", "spelled"),
        [(70, "SM 7.0"), (80, "SM 8.0"), (89, "SM 8.9"), (100, "SM 10.0"), (120, "SM 12.0")],
    )
    def test_other_gpus(self, card, sm, spelled):
        card(sm)
        wanted = f"the native kernel is for SM 9.0 (Hopper) and this is {spelled}"
        for problem in FORMS:
            assert NativeSparse().refusal(problem, GPU) == wanted

    @pytest.mark.parametrize("problem", FORMS, ids=str)
    @pytest.mark.parametrize("m", [1, 7, 129, 16384])
    def test_what_hopper_can(self, card, problem, m):
        assert NativeSparse().refusal(replace(problem, m=m), GPU) is None

    @pytest.mark.parametrize(
        ("problem", "reason"),
        [
            (
                replace(FP8, out=DType.FP32),
                "the native kernel gives bf16, fp16 from fp8_e4m3, not fp32",
            ),
            (
                replace(INT8, out=DType.FP32, scales=Scales.ROWCOL),
                "the native kernel gives bf16, fp16, int32 from int8, not fp32",
            ),
            (
                replace(INT8, out=DType.INT8, scales=Scales.TENSOR),
                "the native kernel gives bf16, fp16, int32 from int8, not int8",
            ),
            (replace(FP8, n=252), "N=252 is not a multiple of 8; pad it to 256"),
            (replace(FP8, n=1), "N=1 is not a multiple of 8; pad it to 8"),
            (replace(INT8, n=251), None),  # Raw sums are stored one by one.
            (replace(FP8, k=3588), None),  # K' is padded, so any K will do.
            (
                replace(FP8, k=3588, pattern=DENSE),
                "K'=3588 is not a multiple of 32; pad it to 3616",
            ),
        ],
    )
    def test_outputs_and_alignments(self, card, problem, reason):
        assert NativeSparse().refusal(problem, GPU) == reason

    def test_raw_sums_take_no_bias(self, card):
        """Refused at once: otherwise every candidate is compiled, only to be refused by itself."""
        assert "bias" in (NativeSparse().refusal(replace(INT8, bias=True), GPU) or "no reason")


class TestCandidates:
    @pytest.mark.parametrize("effort", EFFORTS, ids=str)
    @pytest.mark.parametrize("problem", [*FORMS, LARGE], ids=str)
    def test_they_are_what_the_model_ranks(self, backend, problem, effort):
        found = backend.candidates(problem, effort)
        sizes = problem.m, problem.n, problem.k_run
        wanted = space.candidates(*sizes, problem.dtype, COUNTS[effort], 132)
        assert [NativeConfig.from_params(candidate.params) for candidate in found] == wanted
        assert {(candidate.backend, candidate.sparse) for candidate in found} == {("native", True)}
        assert len({candidate.key for candidate in found}) == len(found)
        labels = [candidate.label for candidate in found]
        assert labels == [f"native config={config.label}" for config in wanted]

    def test_more_effort_tries_more(self, backend):
        assert list(COUNTS) == EFFORTS
        assert sorted(COUNTS.values()) == list(COUNTS.values())
        counts = [len(backend.candidates(LARGE, effort)) for effort in EFFORTS]
        assert counts[:2] == list(COUNTS.values())[:2]
        assert counts[1] < counts[2] <= COUNTS[Effort.FULL]

    def test_every_code_is_compiled_once_before_the_search(self, backend):
        found = backend.candidates(replace(FP8, k=3584), Effort.NORMAL)
        configs = [NativeConfig.from_params(candidate.params) for candidate in found]
        k = FP8.pattern.expanded_k(3584)
        wanted = {variant_of(config, k, DType.FP8, DType.BF16) for config in configs}
        assert len(backend.compiled) == len(wanted)
        assert set(backend.compiled) == wanted
        assert {variant.odd for variant in wanted} == {stages_of(c, k)[1] for c in configs}

    def test_what_does_not_compile_is_offered_all_the_same(self, backend, monkeypatch):
        """`prepare` meets it again and files it."""

        def refuse(variant):
            raise CandidateError("does not compile")

        monkeypatch.setattr(program, "compile_variant", refuse)
        assert len(backend.candidates(LARGE, Effort.QUICK)) == COUNTS[Effort.QUICK]

    def test_nothing_that_fits_is_a_reason(self, backend, monkeypatch):
        monkeypatch.setattr(space, "candidates", lambda *arguments: [])
        with pytest.raises(CandidateError) as raised:
            backend.candidates(FP8, Effort.QUICK)
        assert str(raised.value) == f"no configuration fits {FP8}"


class TestNeighbours:
    def test_a_quick_search_has_none(self, backend):
        assert backend.neighbours(LARGE, candidate_of(), Effort.QUICK) == []
        assert not backend.compiled

    @pytest.mark.parametrize("effort", [Effort.NORMAL, Effort.FULL], ids=str)
    def test_they_are_those_of_the_space(self, backend, effort):
        found = backend.neighbours(LARGE, candidate_of(), effort)
        wanted = space.neighbours(SMALL, LARGE.m, LARGE.n, LARGE.k_run)
        assert found == [candidate_of(config) for config in wanted]
        assert candidate_of() not in found
        assert set(backend.compiled) == {
            variant_of(config, LARGE.k_run, DType.FP8, DType.BF16) for config in wanted
        }

    def test_none_is_no_error(self, backend):
        two = replace(SMALL, stages=2)
        problem = replace(FP8, m=64, n=64)
        assert backend.neighbours(problem, candidate_of(two), Effort.FULL) == []

    def test_of_no_configuration_there_are_none(self, backend):
        with pytest.raises(CandidateError, match="slabs=9 is not between 1 and 4"):
            backend.neighbours(LARGE, candidate_of(slabs=9), Effort.NORMAL)


class TestMemory:
    """A candidate comes back from files as it went in."""

    CONFIG = NativeConfig(
        **{"slabs": 1, "tokens": 64, "blocks": 4, "stages": 3, "cluster_k": 2, "resident": 1},
        **{"box": 32, "boxes": 2, "group": 4, "along_x": True},
    )

    def test_through_json(self):
        candidate = NativeSparse()._candidate(self.CONFIG)
        again = from_plain(Candidate, json.loads(json.dumps(to_plain(candidate))))
        assert again == candidate
        assert again.key == candidate.key
        assert NativeConfig.from_params(again.params) == self.CONFIG

    def test_through_the_tuning_cache(self, tmp_path):
        candidate = NativeSparse()._candidate(self.CONFIG)
        measured = Measurement(candidate, 8.0, 0.25, 30, 10, 1e-3, 2e-2)
        machine = Fingerprint("NVIDIA fake", 90, 132, 81920)
        places = {"root": tmp_path / "cache", "fingerprint": machine, "bundled": tmp_path}
        TuningCache(**places).put(ProblemResult(FP8, (measured,), backends=("native",)))
        hit = TuningCache(**places).get(FP8)
        assert hit is not None
        assert hit.result.best == measured
        assert NativeConfig.from_params(hit.result.best.candidate.params) == self.CONFIG
        assert NativeSparse()._config(hit.result.best.candidate) == self.CONFIG


@pytest.fixture
def operands(seed):
    """Make the operands of a small problem on the CPU."""

    def make(problem):
        device = torch.device("cpu")
        return Operands(problem, make_weight(problem, device, seed), device, seed, 0)

    return make


@pytest.fixture
def bound(monkeypatch):
    """What is bound and launched, in place of the kernel."""
    log = SimpleNamespace(made=[], bound=[], launched=[])

    class Gemm:
        def __init__(self, weight, config, out):
            log.made.append((weight, config, out))

        def bind(self, *tensors):
            number = len(log.bound)
            log.bound.append(tensors)
            return lambda stream: log.launched.append((number, stream))

    monkeypatch.setattr(kernels, "NativeGemm", Gemm)
    return log


class TestPrepare:
    @pytest.mark.parametrize("problem", FORMS, ids=str)
    @pytest.mark.parametrize("m", [1, 7, 129])
    def test_operands_are_bound(self, operands, bound, problem, m):
        problem = replace(problem, m=m, n=24)
        given = operands(problem)
        runner = NativeSparse().prepare(problem, candidate_of(), given)
        ((weight, config, out),) = bound.made
        assert (weight.n, weight.k) == (24, problem.k_run)
        assert torch.equal(
            kernels.unpack(weight).view(torch.uint8), given.weight.slid.view(torch.uint8)
        )
        assert config == SMALL
        ((x, made, w_scale, x_scale, bias),) = bound.bound
        assert (x.shape, made.shape) == ((m, problem.k_run), (m, 24))
        assert x.data_ptr() == given.x_lifted(0).data_ptr()
        assert made.data_ptr() == given.out(0).data_ptr()
        assert made.dtype is out
        assert bias is given.bias
        if problem.out is DType.INT32:
            assert w_scale is None
            assert x_scale is None
        else:
            assert torch.equal(w_scale, given.w_scale.expand(24))
            assert torch.equal(x_scale, given.x_scale.expand(m))
            assert w_scale.is_contiguous()
            assert x_scale.is_contiguous()
        runner.launch(5, 77)
        assert bound.launched == [(0, 77)]

    def test_a_weight_is_packed_once(self, operands, bound, monkeypatch):
        calls = []
        pack = kernels.pack
        monkeypatch.setattr(kernels, "pack", lambda w: calls.append(1) or pack(w))
        given = operands(TINY)
        for stages in (2, 3, 4):
            NativeSparse().prepare(TINY, candidate_of(replace(SMALL, stages=stages)), given)
        assert len(calls) == 1
        datas = {weight.data.data_ptr() for weight, _, _ in bound.made}
        assert datas == {given.weight.packed["native"].data.data_ptr()}

    def test_sets_take_turns(self, operands, bound):
        given = operands(TINY)
        given.sets = 3
        runner = NativeSparse().prepare(TINY, candidate_of(), given)
        assert len({weight.data.data_ptr() for weight, _, _ in bound.made}) == 3
        assert len({tensors[0].data_ptr() for tensors in bound.bound}) == 3
        assert len({tensors[1].data_ptr() for tensors in bound.bound}) == 3
        for index in range(5):
            runner.launch(index, 9)
        assert bound.launched == [(0, 9), (1, 9), (2, 9), (0, 9), (1, 9)]

    @pytest.mark.parametrize(
        ("candidate", "message"),
        [
            (Candidate("native", {}, True), "a native candidate needs along_x, blocks"),
            (candidate_of(tile=3), "a native candidate has no tile"),
            (candidate_of(tokens="64"), "native tokens='64' is not of type int"),
            (candidate_of(slabs=True), "native slabs=True is not of type int"),
            (candidate_of(tokens=1000), "tokens=1000 is not between 8 and 256"),
            (candidate_of(blocks=4, stages=16), "bytes of shared memory are more than 232448"),
        ],
        ids=["nothing", "unknown", "text", "true", "range", "too large"],
    )
    def test_broken_params_cost_the_candidate(self, operands, bound, candidate, message):
        given = operands(TINY)
        with pytest.raises(CandidateError, match=message):
            NativeSparse().prepare(TINY, candidate, given)
        assert not given.weight.packed, "the weight was packed for nothing"
        assert not bound.made

    @pytest.mark.parametrize("where", ["__init__", "bind"])
    def test_what_the_kernel_refuses_costs_the_candidate(self, operands, bound, monkeypatch, where):
        def refuse(*arguments):
            raise KernelError("2 stages of 8 blocks pass the 8")

        monkeypatch.setattr(kernels.NativeGemm, where, refuse)
        with pytest.raises(CandidateError, match=r"^2 stages of 8 blocks pass the 8$"):
            NativeSparse().prepare(TINY, candidate_of(), operands(TINY))
