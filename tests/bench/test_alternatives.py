"""What ours is compared with computes the same: in the interpreter, against our kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from slidesparse import devices
from slidesparse.bench import vllm_kernels
from slidesparse.bench.alternatives import (
    Alternative,
    Gather,
    checked_rows,
    differs,
    two_steps,
)
from slidesparse.bench.compiled import Compiled
from slidesparse.bench.vllm_kernels import vllm_alternatives
from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.kernels import reference
from slidesparse.kernels.case import Case
from slidesparse.kernels.config import default_config
from slidesparse.kernels.launch import INTERPRETED
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.slide import lift

CPU = torch.device("cpu")
RAW = {DType.INT8: DType.INT32, DType.FP8: DType.BF16}
PATTERNS = ("dense", "6:8", "4:6")  # K = 64 fills the blocks of 6:8 and not those of 4:6.
FORMS = [
    (op, dtype, pattern)
    for op in Op
    for dtype in (DType.FP8, DType.INT8)
    for pattern in PATTERNS
    if op.quantizes or (pattern == "dense" and dtype is DType.FP8)
]
on_cpu = pytest.mark.skipif(not INTERPRETED, reason="the kernels run on a GPU here")


@pytest.fixture(autouse=True)
def _quiet_numpy() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def make_problem(op: Op, dtype: DType, pattern: str, m: int = 7, k: int = 64) -> KernelProblem:
    residual = op in (Op.RMSNORM_QUANTIZE, Op.DEQUANT_RMSNORM_QUANTIZE)
    source = RAW[dtype] if op.dequantizes else DType.BF16
    out = dtype if op.quantizes else DType.BF16
    return KernelProblem(op, m, k, source, out, Pattern.parse(pattern), residual)


def verified(problem: KernelProblem, seed: int) -> tuple[Case, torch.Tensor, tuple[Any, ...]]:
    """The operands, and what our kernel makes of them."""
    case = Case(problem, CPU, seed, 0)
    assert case.wrong(default_config(problem.op, problem.k, problem.m)) is None
    rows = checked_rows(problem.m, CPU)
    return case, rows, tuple(tensor[rows].clone() for tensor in case.sets[0].outputs)


def assert_right(case: Case, other: Alternative, ours: tuple[Any, ...], rows: torch.Tensor) -> None:
    for tensor in case.sets[0].outputs:
        tensor.view(torch.uint8).fill_(0xA5)
    assert other.run is not None, other.reason
    assert differs(other.run(0), ours, rows) is None, other


@on_cpu
@pytest.mark.parametrize(("op", "dtype", "pattern"), FORMS)
def test_two_steps_and_the_plain_function_agree_with_ours(
    op: Op, dtype: DType, pattern: str, seed: int
) -> None:
    problem = make_problem(op, dtype, pattern)
    case, rows, ours = verified(problem, seed)
    others = list(two_steps(case, devices.CPU))
    ways = {"dense": 0, "6:8": 2, "4:6": 1}[pattern]
    fused = op in (Op.DEQUANT_RMSNORM_QUANTIZE, Op.DEQUANT_SILU_MUL_QUANTIZE)
    assert len(others) == (1 if fused else ways)
    for other in (Compiled(problem, CPU, backend=None).of(case), *others):
        assert_right(case, other, ours, rows)


@on_cpu
@pytest.mark.parametrize("op", [Op.QUANTIZE, Op.DEQUANT_RMSNORM_QUANTIZE])
def test_one_graph_serves_every_m(op: Op, seed: int) -> None:
    """Traced whole, for M from 2 on once and for M = 1 once."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    problem = make_problem(op, DType.INT8, "4:6", m=33)
    made = Compiled(problem, CPU, backend=backend)
    for m in (33, 7, 2, 1):
        case, rows, ours = verified(make_problem(op, DType.INT8, "4:6", m=m), seed)
        assert_right(case, made.of(case), ours, rows)
    assert len(graphs) == 2


@pytest.mark.parametrize("pattern", ["2:4", "6:8", "4:6", "14:16"])
@pytest.mark.parametrize("k", [64, 96, 3588])
def test_the_gathers_are_the_lift(pattern: str, k: int, seed: int) -> None:
    problem = make_problem(Op.QUANTIZE, DType.INT8, pattern, k=k)
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(-128, 128, (5, k), dtype=torch.int8, generator=generator)
    want = lift(q, problem.pattern)
    gather = Gather(problem, CPU)
    assert "index_select" in gather.ways
    assert ("unfold" in gather.ways) == (want.shape[1] == k * problem.pattern.expansion)
    for way in gather.ways.values():
        out = torch.full_like(want, 77)
        way(q, out)
        assert torch.equal(out, want)


def test_differences_are_named() -> None:
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    q, scale = reference.quantize(x, torch.int8)
    rows = checked_rows(9, CPU)
    assert differs((q, scale[:, None]), (q, scale), rows) is None
    moved = (q.int() - 3 * q.int().sign()).to(torch.int8)
    assert "by up to 3 codes" in str(differs((moved, scale), (q, scale), rows))
    assert "scales differ" in str(differs((q, scale * 1.1), (q, scale), rows))
    assert "scales differ" in str(differs((q, scale * float("nan")), (q, scale), rows))
    assert "it gives torch.int8 (9, 32)" in str(differs((q[:, :32], scale), (q, scale), rows))
    assert "the output differs" in str(differs((x * 1.1,), (x,), rows))
    assert "the output differs" in str(differs((x * float("nan"),), (x,), rows))


def test_the_checked_rows_reach_both_ends() -> None:
    assert checked_rows(1, CPU).tolist() == [0]
    assert checked_rows(129, CPU).tolist() == list(range(129))
    many = checked_rows(65536, CPU)
    assert len(set(many.tolist())) == 192
    assert (int(many[0]), int(many[-1])) == (0, 65535)


class FakeOps:
    """vLLM's ops with the signatures of 0.25.1, in plain torch, rounding where they round."""

    def dynamic_per_token_scaled_fp8_quant(self, result, input, scale, scale_ub):
        assert scale_ub is None
        self._quantize(result, input, scale)

    def dynamic_scaled_int8_quant(self, result, input, scale, azp):
        assert azp is None
        self._quantize(result, input, scale)

    def rms_norm_dynamic_per_token_quant(
        self, result, input, weight, scale, epsilon, scale_ub, residual
    ):
        if residual is not None:
            residual.copy_((input.float() + residual.float()).to(input.dtype))
            input = residual
        normed = reference.rmsnorm(input, torch.ones_like(weight), epsilon).to(input.dtype)
        self._quantize(result, normed * weight, scale)

    def silu_and_mul(self, result, input):
        gate, up = input.chunk(2, dim=1)
        result.copy_(torch.nn.functional.silu(gate) * up)

    def _quantize(self, result, rows, scale):
        assert scale.shape == (rows.shape[0], 1)
        assert result.is_contiguous()
        q, found = reference.quantize(rows, result.dtype)
        result.view(torch.uint8).copy_(q.view(torch.uint8))
        scale.copy_(found[:, None])


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> FakeOps:
    fake = FakeOps()
    monkeypatch.setattr(vllm_kernels, "vllm_reason", lambda: "")
    monkeypatch.setattr(vllm_kernels, "_ops", lambda: fake)
    return fake


@on_cpu
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
@pytest.mark.parametrize("op", [Op.QUANTIZE, Op.RMSNORM_QUANTIZE, Op.SILU_MUL_QUANTIZE])
def test_vllms_ops_are_called_as_they_want(
    vllm: FakeOps, op: Op, dtype: DType, pattern: str, seed: int
) -> None:
    case, rows, ours = verified(make_problem(op, dtype, pattern), seed)
    residual = case.sets[0].residual
    before = None if residual is None else residual.clone()
    others = list(vllm_alternatives(case))
    assert len(others) == {"dense": 1, "6:8": 2, "4:6": 1}[pattern]
    for other in others:
        assert other.name == "vllm"
        assert_right(case, other, ours, rows)
    if residual is not None:
        assert torch.equal(residual, before), "ours has to find its own residual"


@on_cpu
def test_an_op_that_this_vllm_lacks(
    vllm: FakeOps, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.delattr(FakeOps, "silu_and_mul")
    case = Case(make_problem(Op.SILU_MUL_QUANTIZE, DType.FP8, "dense"), CPU, seed, 0)
    (other,) = vllm_alternatives(case)
    assert other.run is None
    assert other.reason == "this vLLM has no op silu_and_mul"


def test_without_vllm_the_reason_is_given(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(vllm_kernels, "vllm_reason", lambda: "vLLM is not installed")
    case = Case(make_problem(Op.QUANTIZE, DType.FP8, "6:8"), CPU, seed, 0)
    (other,) = vllm_alternatives(case)
    assert (other.run, other.reason) == (None, "vLLM is not installed")


def test_vllm_has_nothing_for_dequantisation(seed: int) -> None:
    case = Case(make_problem(Op.DEQUANTIZE, DType.FP8, "dense"), CPU, seed, 0)
    (other,) = vllm_alternatives(case)
    assert other.run is None
    assert "inside its GEMMs" in other.reason
