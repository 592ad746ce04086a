"""What a library refuses only when it runs is computed another way, once asked and not again."""

from __future__ import annotations

from types import SimpleNamespace

import layer_plans as plans
import pytest
import torch
from layer_plans import CUBLASLT, CUSPARSELT, SCALED_MM, shape_of

from slidesparse.candidate import Candidate
from slidesparse.errors import CandidateError, KernelError
from slidesparse.layers.cublaslt_way import Bound
from slidesparse.layers.prepared import kind_of
from slidesparse.layers.ways import TorchScaled, Way, make_way
from slidesparse.problem import DType

M, N, K = 7, 48, 64
FP8 = shape_of(n=N, k=K)
REFUSED = "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul(...)`"


def way_for(candidate: Candidate) -> Way:
    return make_way(plans.plan_of(FP8, [(16, candidate)]), candidate)


def operands(m: int = M) -> tuple[torch.Tensor, ...]:
    """Quantised rows, scales, weight, scales, bias and an output to fill."""
    generator = torch.Generator().manual_seed(m)
    q, weight = (
        torch.randn(rows, K, generator=generator).to(torch.float8_e4m3fn) for rows in (m, N)
    )
    x_scale, w_scale = (torch.rand(rows, generator=generator) for rows in (m, N))
    bias = torch.randn(N, generator=generator).bfloat16()
    return q, x_scale, weight, w_scale, bias, torch.full((m, N), float("nan")).bfloat16()


def assert_right(q, x_scale, weight, w_scale, bias, out) -> None:
    want = (q.double() @ weight.double().T) * x_scale.double()[:, None] * w_scale.double()
    want += bias.double()
    assert ((out.double() - want).abs() <= 2.0**-8 * want.abs() + 1e-5).all()


class ScaledMM:
    """torch's product, whose row-wise form fails."""

    def __init__(self, message: str) -> None:
        self.message, self.calls = message, 0

    def out(self, *args: object, out: torch.Tensor) -> None:
        self.calls += 1
        raise RuntimeError(self.message)

    def __call__(self, q, weight, *rest) -> torch.Tensor:
        return q.float() @ weight.float()


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> TorchScaled:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    way = way_for(SCALED_MM)
    way.prepare(torch.device("cpu"))
    assert way.fused
    return way


def use(monkeypatch: pytest.MonkeyPatch, message: str) -> ScaledMM:
    product = ScaledMM(message)
    ops = SimpleNamespace(aten=SimpleNamespace(_scaled_mm=product))
    monkeypatch.setattr("slidesparse.layers.ways.torch.ops", ops)
    return product


def test_scales_follow_where_cublas_has_no_product_with_them(scaled, monkeypatch):
    product = use(monkeypatch, REFUSED)
    for m, calls in ((M, 1), (M, 1), (M + 1, 2), (M, 2)):
        given = operands(m)
        scaled.run(*given)
        assert_right(*given)
        assert product.calls == calls


def test_other_errors_of_torch_are_not_hidden(scaled, monkeypatch):
    use(monkeypatch, "CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        scaled.run(*operands())
    assert not scaled.refused


def test_a_pass_that_never_ran_is_not_captured(scaled, monkeypatch):
    use(monkeypatch, REFUSED)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(KernelError) as raised:
        scaled.run(*operands())
    assert str(raised.value) == (
        f"M={M} is scaled by a pass that never ran, which a CUDA graph cannot capture; "
        "run it once before"
    )


def test_an_algorithm_that_is_refused_when_it_runs_is_left_to_torch(monkeypatch):
    tried, done = [], []

    class Refusing:
        def bind_scales(self, *addresses: int) -> None:
            pass

        bind_bias = bind_scales

        def run(self, *args: object) -> None:
            tried.append(args)
            raise CandidateError("cublasLtMatmul refuses it: NOT_SUPPORTED (15)")

    way = way_for(CUBLASLT)
    bound = Bound(Refusing(), None, 0)
    way.fused, way.bound = True, lambda m, bias: bound
    way.other = SimpleNamespace(run=lambda *args: done.append(args))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    given = operands()
    for _ in range(3):
        way.run(*given)
    assert len(tried) == 1
    assert len(done) == 3
    assert all(one is other for one, other in zip(done[0], given, strict=True))


@pytest.mark.parametrize(("dtype", "refused"), [(DType.FP8, True), (DType.INT8, False)])
def test_cusparselt_is_not_asked_for_short_fp8_products(hopper, dtype, refused):
    shape = FP8._replace(k=40, n=1504, dtype=dtype)
    plan = plans.plan_of(shape, [(16, CUSPARSELT)])
    said = type(make_way(plan, CUSPARSELT)).refusal(plan, CUSPARSELT, 90)
    assert said == ("K'=64 is less than the 128 that cuSPARSELt needs in FP8" if refused else None)


def test_rows_that_other_code_quantises_are_of_another_kind():
    """A graph may only capture what ran: Triton compiles anew for unaligned rows and long ones."""
    wide = torch.zeros(32, 200, dtype=torch.bfloat16)
    out = torch.empty(32, 8)
    first = kind_of("quantize", wide[:, :96], out)
    assert first == ("quantize", torch.bfloat16, 32, False, False)
    even = torch.zeros(32, 208, dtype=torch.bfloat16)
    rows = (even[:, :96], even[:20, 16:112], even[:, 1:97], even[:16])
    kinds = [kind_of("quantize", x, out) for x in rows]
    assert kinds[0] == kinds[1] == ("quantize", torch.bfloat16, 32, True, False)
    assert kinds[2] == first
    assert kinds[3] == ("quantize", torch.bfloat16, 16, True, False)
    assert kind_of("silu_mul", rows[0], out) != kinds[0]
    huge = torch.empty(65536, 37888, device="meta")
    assert kind_of("quantize", even, huge)[4]
