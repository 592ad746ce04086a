"""What a way refuses before it runs, and that plain torch is exact."""

from __future__ import annotations

import layer_plans as plans
import pytest
import torch
from layer_plans import (
    CUBLASLT,
    CUSPARSELT,
    INT_MM,
    NATIVE,
    REFERENCE,
    SCALED_MM,
    TORCHAO,
    shape_of,
)

from slidesparse.candidate import Candidate
from slidesparse.errors import CandidateError, KernelError
from slidesparse.layers.cublaslt_way import CublasLtWay
from slidesparse.layers.cusparselt_way import CusparseLtWay
from slidesparse.layers.layer_plan import CUSPARSELT_FORM, DENSE_FORM, NATIVE_FORM
from slidesparse.layers.ways import Native, Reference, TorchInt, TorchScaled, make_way, way_of
from slidesparse.pattern import DENSE
from slidesparse.problem import DType
from slidesparse.tensors import DTYPES

FP8 = shape_of()
INT8 = FP8._replace(dtype=DType.INT8)


def refused(shape, candidate, sm=90):
    plan = plans.plan_of(shape, [(16, candidate)])
    way = way_of(plan, candidate)
    assert way is not None
    return way.refusal(plan, candidate, sm)


@pytest.mark.parametrize(
    ("shape", "candidate", "way", "form"),
    [
        (FP8, SCALED_MM, TorchScaled, DENSE_FORM),
        (INT8, INT_MM, TorchInt, DENSE_FORM),
        (FP8, CUBLASLT, CublasLtWay, DENSE_FORM),
        (FP8, NATIVE, Native, NATIVE_FORM),
        (INT8, NATIVE, Native, NATIVE_FORM),
        (FP8, CUSPARSELT, CusparseLtWay, CUSPARSELT_FORM),
        (INT8, CUSPARSELT, CusparseLtWay, CUSPARSELT_FORM),
        (FP8, REFERENCE, Reference, DENSE_FORM),
    ],
)
def test_every_way_is_found_and_fits(hopper, shape, candidate, way, form):
    plan = plans.plan_of(shape, [(16, candidate)])
    assert way_of(plan, candidate) is way
    assert way.form == form
    assert refused(shape, candidate) is None
    made = make_way(plan, candidate)
    assert type(made) is way
    assert made.k_run == (512 if form == DENSE_FORM else 768)


def test_nothing_runs_a_backend_without_a_way():
    plan = plans.plan_of(FP8, [(16, TORCHAO)])
    assert way_of(plan, TORCHAO) is None
    with pytest.raises(KernelError) as raised:
        make_way(plan, TORCHAO)
    assert str(raised.value) == "nothing runs candidates of torchao in a layer"


@pytest.mark.parametrize(
    ("shape", "candidate", "sm", "reason"),
    [
        (FP8, SCALED_MM, 0, "a GPU is needed"),
        (
            FP8,
            SCALED_MM,
            80,
            "FP8 needs SM 8.9 or newer and this is SM 8.0; use --dtype int8",
        ),
        (FP8._replace(n=100), SCALED_MM, 90, "N=100 is not a multiple of 16"),
        (FP8._replace(k=100), SCALED_MM, 90, "K=100 is not a multiple of 16"),
        (INT8, INT_MM, 0, "a GPU is needed"),
        (INT8._replace(n=40), INT_MM, 90, "N=40 is not a multiple of 16"),
        (FP8, CUBLASLT, 0, "cuBLASLt is not there"),
        (FP8, CUBLASLT, 100, "cuBLASLt scales rows and columns on SM 9.0 only"),
        (
            FP8._replace(out=DType.FP32),
            CUBLASLT,
            90,
            "cuBLASLt scales rows and columns to 16 bits",
        ),
        (INT8._replace(n=40), CUBLASLT, 90, "N=40 or K=512 is not a multiple of 16"),
        (FP8._replace(k=40), CUBLASLT, 90, "N=256 or K=40 is not a multiple of 16"),
        (FP8, NATIVE, 100, "the native kernel is for SM 9.0"),
        (FP8, NATIVE, 0, "the native kernel is for SM 9.0"),
        (
            FP8._replace(out=DType.FP32),
            NATIVE,
            90,
            "the native kernel gives bf16, fp16 from fp8_e4m3, not fp32",
        ),
        (FP8._replace(n=48), CUSPARSELT, 90, "N=48 is not a multiple of 32"),
        (FP8._replace(pattern=DENSE), CUSPARSELT, 90, "a dense weight has no sparse form"),
        (
            FP8._replace(out=DType.FP16),
            CUSPARSELT,
            90,
            "cuSPARSELt's FP8 product is rounded to bf16, and fp16 keeps more bits",
        ),
        (INT8, CUSPARSELT, 75, "sparse tensor cores need SM 8.0"),
        (INT8, CUSPARSELT, 0, "sparse tensor cores need SM 8.0"),
        (FP8, CUSPARSELT, 80, "FP8 needs SM 8.9 or newer and this is SM 8.0; use --dtype int8"),
        (FP8._replace(n=100), NATIVE, 90, "N=100 is not a multiple of 8; pad it to 104"),
        (FP8, Candidate("native", {}, True), 90, "a native candidate needs "),
    ],
)
def test_what_a_way_cannot_run_is_said_with_the_values(hopper, shape, candidate, sm, reason):
    assert str(refused(shape, candidate, sm)).startswith(reason)


def test_functions_of_the_other_dtype_are_not_mixed_up():
    plan = plans.plan_of(INT8, [(16, SCALED_MM)])
    assert TorchScaled.refusal(plan, SCALED_MM, 90) == "torch._scaled_mm takes FP8, not int8"
    plan = plans.plan_of(FP8, [(16, INT_MM)])
    assert TorchInt.refusal(plan, INT_MM, 90) == "torch._int_mm takes INT8, not fp8_e4m3"


def test_without_its_library_cublaslt_is_refused(hopper, monkeypatch):
    where = "slidesparse.layers.cublaslt_way.binding_version"
    monkeypatch.setattr(where, lambda name: ("none", "not installed"))
    assert refused(FP8, CUBLASLT) == "cuBLASLt is not there"


def test_without_its_library_cusparselt_is_refused(hopper, monkeypatch):
    where = "slidesparse.layers.cusparselt_way.binding_version"
    monkeypatch.setattr(where, lambda name: ("none", "not installed"))
    assert refused(FP8, CUSPARSELT) == "cuSPARSELt is not there"


def test_without_a_compiler_the_native_kernel_is_refused(hopper, monkeypatch):
    monkeypatch.setattr("slidesparse.kernels.native.program.missing", lambda: "no NVRTC")
    assert refused(FP8, NATIVE) == "no NVRTC"


@pytest.mark.parametrize("params", [{}, {"algo": "not hexadecimal"}])
def test_a_broken_algorithm_is_refused_when_it_is_prepared(params):
    broken = Candidate("cublaslt", params, fields={"id": 66})
    way = make_way(plans.plan_of(FP8, [(16, broken)]), broken)
    with pytest.raises(CandidateError, match=r"^not a cuBLASLt candidate: cublaslt id=66$"):
        way.prepare(torch.device("cpu"))


@pytest.mark.parametrize("m", [1, 7, 129])
@pytest.mark.parametrize("out", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_int8_sums_of_plain_torch_are_exact(m, out):
    """All -128 and 127 over K = 2048: sums beyond what float32 counts one by one."""
    shape = INT8._replace(k=2048, n=37, pattern=DENSE, out=DTYPES[out])
    way = make_way(plans.plan_of(shape, [(16, REFERENCE)]), REFERENCE)
    way.prepare(torch.device("cpu"))
    generator = torch.Generator().manual_seed(m)
    q, w = (
        torch.randint(0, 2, (rows, 2048), generator=generator).mul(255).sub(128).to(torch.int8)
        for rows in (m, 37)
    )
    q[0], w[0] = -128, -128
    x_scale, w_scale = (1e-3 * torch.rand(size, generator=generator) for size in (m, 37))
    bias = torch.randn(37, generator=generator).to(out)
    for added in (bias, None):
        made = torch.full((m, 37), float("nan"), dtype=out)
        way.run(q, x_scale, w, w_scale, added, made)
        want = (q.double() @ w.double().T) * x_scale.double()[:, None] * w_scale.double()
        if added is not None:
            want += added.double()
        torch.testing.assert_close(made.double(), want, rtol=2 * torch.finfo(out).eps, atol=1e-6)
