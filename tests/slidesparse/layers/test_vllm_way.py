"""vLLM's GEMM in a layer: planned where it was fastest and is the same vLLM, called as it wants."""

from __future__ import annotations

import layer_plans as plans
import pytest
import torch
from layer_plans import CUBLASLT, NATIVE, REFERENCE, SCALED_MM, race, shape_of, steps_of
from vllm_product import VERSION, StrictProduct

from slidesparse import vllm_gemm
from slidesparse.candidate import Candidate
from slidesparse.errors import CandidateError
from slidesparse.layers import plan_layer
from slidesparse.layers.layer_plan import DENSE_FORM, from_text
from slidesparse.layers.vllm_way import VllmWay
from slidesparse.layers.ways import make_way, way_of
from slidesparse.pattern import DENSE
from slidesparse.problem import DType
from slidesparse.tensors import TORCH_DTYPES

FP8 = shape_of()
INT8 = FP8._replace(dtype=DType.INT8)
VLLM = Candidate("vllm", {"function": "cutlass_scaled_mm", "version": VERSION})
GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch):
    """Pretend that this version of vLLM is installed, and that importing it is an error."""

    def imports() -> str:
        raise AssertionError("vLLM is imported")

    def install(wanted: str) -> None:
        monkeypatch.setattr(vllm_gemm, "package_version", lambda name: wanted)
        monkeypatch.setattr(vllm_gemm, "vllm_reason", imports)

    return install


def refused(shape, sm=90):
    return VllmWay.refusal(plans.plan_of(shape, [(16, VLLM)]), VLLM, sm)


@pytest.mark.parametrize("shape", [FP8, INT8, FP8._replace(out=DType.FP16, bias=True)])
def test_it_is_found_and_reads_the_dense_form(version, shape):
    version(VERSION)
    plan = plans.plan_of(shape, [(16, VLLM)])
    assert way_of(plan, VLLM) is VllmWay
    assert VllmWay.form == DENSE_FORM
    assert refused(shape) is None
    assert type(make_way(from_text(plan.to_text()), VLLM)) is VllmWay


@pytest.mark.parametrize(
    ("shape", "sm", "reason"),
    [
        (FP8, 0, "vLLM's product needs a GPU"),
        (FP8, 80, "FP8 needs SM 8.9 or newer and this is SM 8.0; use --dtype int8"),
        (INT8, 100, "vLLM has no INT8 product for SM 10.0 and newer and this is SM 10.0; use fp8"),
        (FP8._replace(n=40), 90, "N=40 is not a multiple of 16"),
        (INT8._replace(k=40), 90, "K=40 is not a multiple of 16"),
        (FP8._replace(out=DType.FP32), 90, "vLLM's product gives bf16 or fp16, not fp32"),
    ],
)
def test_what_it_cannot_run_is_said_with_the_values(version, shape, sm, reason):
    version(VERSION)
    assert refused(shape, sm) == reason


def test_without_the_vllm_that_was_measured_it_is_refused(version):
    version("none")
    assert refused(FP8) == "vLLM is not installed"
    version("0.26.0")
    assert refused(FP8) == "vLLM 0.25.1 was measured and 0.26.0 is installed; search again"


@pytest.mark.parametrize(
    ("times", "installed", "runs"),
    [
        ({VLLM: 7.0, CUBLASLT: 8.0, SCALED_MM: 9.0}, VERSION, VLLM),
        ({VLLM: 7.0, CUBLASLT: 8.0, SCALED_MM: 9.0}, "none", CUBLASLT),
        ({VLLM: 7.0, CUBLASLT: 8.0, SCALED_MM: 9.0}, "0.26.0", CUBLASLT),
        ({VLLM: 8.0, CUBLASLT: 7.0}, VERSION, CUBLASLT),
        # A sparse way that vLLM beats is slower than what runs without it: then sparse gains.
        ({VLLM: 7.0, NATIVE: 8.0, CUBLASLT: 9.0}, VERSION, VLLM),
        ({VLLM: 7.0, NATIVE: 8.0, CUBLASLT: 9.0}, "none", NATIVE),
        ({VLLM: 7.0, NATIVE: 6.0}, "none", NATIVE),
    ],
)
def test_a_plan_holds_it_only_where_it_can_run(hopper, version, times, installed, runs):
    """Also when it is a race's baseline, as results that come with the package may have it."""
    hopper.put_many([race(FP8, 16, times)])
    version(installed)
    assert steps_of(plan_layer(FP8, GPU)) == [(16, runs)]


def test_vllm_alone_leaves_nothing_to_run_without_it(hopper, version):
    hopper.put_many([race(FP8, 16, {VLLM: 7.0})])
    version("none")
    assert steps_of(plan_layer(FP8, GPU)) == [(16, SCALED_MM)]


def test_what_is_gone_when_it_is_made_ready_is_said(version):
    way = make_way(plans.plan_of(FP8, [(16, VLLM)]), VLLM)
    version("none")
    with pytest.raises(CandidateError, match=r"^vLLM is not installed$"):
        way.prepare(CPU)


@pytest.mark.parametrize("out", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
@pytest.mark.parametrize("m", [1, 7, 129])
def test_the_op_is_called_as_it_wants(version, m, dtype, out, seed):
    """Through the op's own checks, against the way that is exact; scales may be expanded."""
    shape = shape_of(144, 208, DENSE, dtype, DType.BF16 if out is torch.bfloat16 else DType.FP16)
    way = VllmWay(plans.plan_of(shape, [(16, VLLM)]), VLLM)
    way.product = StrictProduct()
    exact = make_way(plans.plan_of(shape, [(16, REFERENCE)]), REFERENCE)
    exact.prepare(CPU)
    generator = torch.Generator().manual_seed(seed + m)
    q, weight = (
        (40 * torch.randn(rows, 208, generator=generator)).clamp(-127, 127).to(TORCH_DTYPES[dtype])
        for rows in (m, 144)
    )
    per_row, w_scale = (1e-3 * torch.rand(size, generator=generator) for size in (m, 144))
    bias = torch.randn(144, generator=generator).to(out)
    for x_scale in (per_row, per_row[:1].expand(m)):
        for added in (bias, None):
            made, want = (torch.full((m, 144), float("nan"), dtype=out) for _ in range(2))
            way.run(q, x_scale, weight, w_scale, added, made)
            exact.run(q, x_scale, weight, w_scale, added, want)
            torch.testing.assert_close(made, want, rtol=2 * torch.finfo(out).eps, atol=1e-5)
    assert way.product.calls == 4
