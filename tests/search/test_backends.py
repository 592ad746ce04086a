"""What each backend refuses, with its reason, and that the CPU ones compute every form rightly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slidesparse.candidate import Measurement
from slidesparse.devices import CPU, Device, Fingerprint, detect
from slidesparse.errors import UsageError
from slidesparse.pattern import Pattern
from slidesparse.problem import _OUTPUTS, DType, GemmProblem, Scales
from slidesparse.search import (
    cublaslt,
    cusparselt,
    native,
    nvidia,
    torch_dense,
    torchao_sparse,
)
from slidesparse.search.backend import Effort
from slidesparse.search.backends import BUILT_IN, all_backends, load_backend
from slidesparse.search.reference import limits_for
from slidesparse.search.session import Session

GPU = Device("cuda")
GPU_BACKENDS = ("cublaslt", "cusparselt", "torch", "vllm", "native", "torchao")
FP8 = GemmProblem(64, 256, 512, DType.FP8, DType.BF16)
INT8 = GemmProblem(64, 256, 512, DType.INT8, DType.INT32, Scales.NONE)
ROWCOL = replace(FP8, scales=Scales.ROWCOL)


@pytest.fixture
def refusal(monkeypatch):
    """The refusal of a backend on a GPU of some compute capability."""

    def ask(name, sm, problem):
        card = Fingerprint("NVIDIA fake", sm, 132, 81920)
        for module in (nvidia, cublaslt, cusparselt, native, torch_dense, torchao_sparse):
            monkeypatch.setattr(module, "detect", lambda device: card)
        return load_backend(name).refusal(problem, GPU)

    return ask


def no_fp8(sm):
    return f"FP8 needs SM 8.9 or newer and this is SM {sm}; use --dtype int8"


def row_wise(sm):
    return f"torch._scaled_mm row-wise needs SM 9.0 or newer and this is SM {sm}"


UNFUSED = replace(INT8, out=DType.BF16, scales=Scales.ROWCOL)

NO_SPARSE = "sparse tensor cores need SM 8.0 or newer and this is SM 7.0"


@pytest.mark.parametrize(
    ("name", "problem", "wanted"),
    [
        ("cublaslt", FP8, [no_fp8("7.0"), no_fp8("8.0"), None, None, None]),
        ("cublaslt", INT8, [None] * 5),
        (
            "cublaslt",
            ROWCOL,
            [
                "cuBLASLt has no row x column scales for fp8_e4m3 on SM 7.0",
                "cuBLASLt has no row x column scales for fp8_e4m3 on SM 8.0",
                "cuBLASLt has no row x column scales for fp8_e4m3 on SM 8.9",
                None,
                "cuBLASLt has no row x column scales for fp8_e4m3 on SM 10.0",
            ],
        ),
        ("cusparselt", FP8, [NO_SPARSE, no_fp8("8.0"), None, None, None]),
        ("cusparselt", INT8, [NO_SPARSE, None, None, None, None]),
        ("torch", FP8, [no_fp8("7.0"), no_fp8("8.0"), None, None, None]),
        ("torch", INT8, [None] * 5),
        ("torch", ROWCOL, [row_wise("7.0"), row_wise("8.0"), row_wise("8.9"), None, None]),
        (
            "native",
            FP8,
            [
                "the native kernel is for SM 9.0 (Hopper) and this is SM 7.0",
                "the native kernel is for SM 9.0 (Hopper) and this is SM 8.0",
                "the native kernel is for SM 9.0 (Hopper) and this is SM 8.9",
                None,
                "the native kernel is for SM 9.0 (Hopper) and this is SM 10.0",
            ],
        ),
        (
            "torchao",
            FP8,
            [
                "torchao's sparse FP8 kernel is for SM 9.0 and this is SM 7.0",
                "torchao's sparse FP8 kernel is for SM 9.0 and this is SM 8.0",
                "torchao's sparse FP8 kernel is for SM 9.0 and this is SM 8.9",
                None,
                "torchao's sparse FP8 kernel is for SM 9.0 and this is SM 10.0",
            ],
        ),
    ],
)
def test_refusals_by_compute_capability(refusal, name, problem, wanted):
    assert [refusal(name, sm, problem) for sm in (70, 80, 89, 90, 100)] == wanted


@pytest.mark.parametrize(
    ("name", "problem", "reason"),
    [
        ("cublaslt", replace(FP8, n=264), "N=264 is not a multiple of 16; pad it to 272"),
        ("cublaslt", replace(FP8, k=3588), "K=3588 is not a multiple of 16; pad it to 3600"),
        (
            "cublaslt",
            replace(INT8, out=DType.BF16, scales=Scales.TENSOR),
            "int8 gives int32 or int8 in cuBLASLt, not bf16",
        ),
        ("cublaslt", replace(INT8, bias=True), "cuBLASLt adds no bias to INT8 products here"),
        (
            "cublaslt",
            replace(INT8, out=DType.INT8, scales=Scales.ROWCOL),
            "int8 gives bf16 or fp16 or fp32 in cuBLASLt, not int8",
        ),
        ("cublaslt", UNFUSED, None),
        ("cublaslt", replace(UNFUSED, bias=True, out=DType.FP32), None),
        ("cusparselt", replace(FP8, n=272), "N=272 is not a multiple of 32; pad it to 288"),
        ("cusparselt", replace(FP8, k=3588), None),  # K' is padded, so any K will do.
        ("cusparselt", ROWCOL, None),
        ("cusparselt", replace(UNFUSED, bias=True), None),
        (
            "cusparselt",
            replace(UNFUSED, out=DType.INT8),
            "int8 gives bf16, fp16, fp32 in cuSPARSELt, not int8",
        ),
        ("cusparselt", replace(FP8, bias=True), "the cuSPARSELt backend adds no bias"),
        (
            "cusparselt",
            replace(INT8, out=DType.FP32, scales=Scales.TENSOR),
            "int8 gives int32, bf16, fp16, int8 in cuSPARSELt, not fp32",
        ),
        ("torch", replace(FP8, k=520), "K=520 is not a multiple of 16; pad it to 528"),
        ("torch", replace(FP8, n=250), "N=250 is not a multiple of 16; pad it to 256"),
        ("torch", replace(INT8, m=16), "torch._int_mm refuses M=16, it takes more than 16 rows"),
        ("torch", replace(INT8, m=17), None),
        ("torch", replace(UNFUSED, bias=True), None),
        (
            "torch",
            replace(UNFUSED, out=DType.INT8),
            "torch._int_mm gives int32 without a bias",
        ),
        ("torch", replace(INT8, bias=True), "torch._int_mm gives int32 without a bias"),
        (
            "torch",
            replace(INT8, out=DType.BF16, scales=Scales.TENSOR),
            "torch._int_mm gives int32 without a bias",
        ),
        (
            "torch",
            replace(ROWCOL, out=DType.FP16),
            "torch._scaled_mm row-wise gives bf16, not fp16",
        ),
        ("native", ROWCOL, None),
        ("native", INT8, None),
        ("native", replace(FP8, bias=True), None),
        (
            "native",
            replace(FP8, out=DType.FP32),
            "the native kernel gives bf16, fp16 from fp8_e4m3, not fp32",
        ),
        ("native", replace(FP8, n=252), "N=252 is not a multiple of 8; pad it to 256"),
        ("native", replace(INT8, n=251), None),
        ("torchao", INT8, "torchao's sparse kernel gives fp8_e4m3->bf16, not int8->int32"),
        (
            "torchao",
            replace(FP8, out=DType.FP16),
            "torchao's sparse kernel gives fp8_e4m3->bf16, not fp8_e4m3->fp16",
        ),
        ("torchao", replace(FP8, bias=True), "the torchao backend adds no bias"),
        ("torchao", replace(FP8, n=264), "N=264 is not a multiple of 16; pad it to 272"),
    ],
)
def test_refusals_on_hopper_name_the_values(refusal, name, problem, reason):
    assert refusal(name, 90, problem) == reason


@pytest.mark.parametrize("name", GPU_BACKENDS)
def test_gpu_backends_say_on_the_cpu_that_they_need_a_gpu(name):
    availability = load_backend(name).availability(CPU)
    assert not availability.ok
    assert availability.reason == "needs an NVIDIA GPU"
    assert availability.remedy == "run on a machine with one"


@pytest.mark.parametrize("name", ["cpu", "cpu-slid"])
def test_cpu_backends_are_for_the_cpu(name):
    assert load_backend(name).availability(CPU).ok
    there = load_backend(name).availability(Device("cuda", 1))
    assert (there.ok, there.reason) == (False, "runs on the cpu device, not on cuda:1")


@pytest.mark.parametrize("binding", ["cublasLt", "cusparseLt"])
def test_a_missing_library_comes_with_the_command_that_mends_it(monkeypatch, binding):
    monkeypatch.setattr(nvidia, "binding_version", lambda name: ("none", f"no {name} here"))
    availability = load_backend(binding.lower()).availability(GPU)
    assert (availability.ok, availability.reason) == (False, f"no {binding} here")
    assert availability.remedy == (
        "pip install 'slidesparse[cuda13]' (or [cuda12] with a CUDA 12 driver)"
    )


def test_names_and_kinds_agree_with_the_table():
    backends = all_backends()
    assert [backend.name for backend in backends] == list(BUILT_IN)
    assert {b.name for b in backends if b.sparse} == {"cusparselt", "native", "torchao", "cpu-slid"}
    assert {b.name for b in backends if not b.on_gpu} == {"cpu", "cpu-slid"}


def test_torch_offers_its_functions_in_both_accumulations():
    def offered(problem):
        found = load_backend("torch").candidates(problem, Effort.QUICK)
        return [(c.params["function"], c.params.get("fast_accum")) for c in found]

    row_wise = [("scaled_mm_rowwise", True), ("scaled_mm_rowwise", False)]
    per_tensor = [("scaled_mm", True), ("scaled_mm", False)]
    assert offered(FP8) == per_tensor + row_wise
    assert offered(replace(FP8, out=DType.FP16)) == per_tensor
    assert offered(ROWCOL) == row_wise
    assert offered(INT8) == [("int_mm", None)]


def test_the_session_passes_refusals_on(refusal, monkeypatch, seed):
    """On an A100 every FP8 way is left out, each with its own reason."""
    refusal("torch", 80, INT8)  # Leaves the fake card in place.
    session = Session(CPU, ("torch", "cublaslt"), seed)
    for backend in session._backends:
        monkeypatch.setattr(
            backend, "availability", lambda device: load_backend("cpu").availability(CPU)
        )
    opening = session.offer(FP8, Effort.QUICK)
    assert opening.candidates == ()
    assert opening.left_out == {"torch": no_fp8("8.0"), "cublaslt": no_fp8("8.0")}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "cublas",
            "unknown backend 'cublas', did you mean 'cublaslt'; known: cublaslt, cusparselt",
        ),
        (
            "zzz",
            "unknown backend 'zzz'; known: cublaslt, cusparselt, torch, vllm, native, torchao, "
            "cpu, cpu-slid",
        ),
        ("no.such:X", "backend 'no.such:X' cannot be loaded: No module named 'no'"),
        ("math:pi_", "backend 'math:pi_' cannot be loaded: module 'math' has no attribute 'pi_'"),
        ("fractions:Fraction", "fractions:Fraction is not a slidesparse backend"),
    ],
)
def test_specs_that_cannot_be_loaded(spec, message):
    with pytest.raises(UsageError) as caught:
        load_backend(spec)
    assert message in str(caught.value)


FORMS = [(dtype, out) for dtype, outs in _OUTPUTS.items() for out in outs]
BF16_FORM = (DType.FP8, DType.BF16)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(map(str, f)))
@pytest.mark.parametrize("pattern", ["dense", "2:4", "8:10"])
@pytest.mark.parametrize("m", [1, 7, 129])
def test_the_cpu_computes_every_form_within_its_limits(form, pattern, m, seed):
    dtype, out = form
    modes = [Scales.NONE] if out is DType.INT32 else [Scales.TENSOR, Scales.ROWCOL]
    session = Session(CPU, ("cpu", "cpu-slid"), seed)
    for mode in modes:
        for bias in [False] if out in {DType.INT32, DType.INT8} else [False, True]:
            problem = GemmProblem(m, 48, 200, dtype, out, mode, Pattern.parse(pattern), bias)
            opening = session.open(problem, Effort.QUICK)
            assert {c.sparse for c in opening.candidates} == {pattern != "dense"}
            # A bfloat16 product is one way to a BF16 output and no way to a finer one.
            assert len(opening.candidates) == (2 if (dtype, out) == BF16_FORM else 1)
            for candidate in opening.candidates:
                outcome = session.screen(candidate)
                assert isinstance(outcome, Measurement), (problem, outcome)
                assert outcome.error <= limits_for(problem).error


def test_the_fingerprint_of_this_test_run_is_a_cpu():
    assert not detect(CPU).is_gpu
