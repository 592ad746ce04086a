"""Norms and activations before a layer: the same as one after the other, for every plan and M."""

from __future__ import annotations

import layer_checks as checks
import layer_plans as plans
import pytest
import torch
from layer_plans import shape_of
from torch._subclasses.fake_tensor import FakeTensorMode

from slidesparse.candidate import Candidate
from slidesparse.errors import KernelError
from slidesparse.kernels import quantize, rmsnorm_quantize, silu_mul_quantize
from slidesparse.layers import SparseLinear
from slidesparse.layers.fused import rmsnorm_linear, silu_mul_linear
from slidesparse.layers.op import (
    add_rmsnorm_linear_op,
    linear_op,
    rmsnorm_linear_op,
    silu_mul_linear_op,
)
from slidesparse.layers.ways import Reference
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.tensors import TORCH_DTYPES

N, K = 24, 96
EPS = 1e-5
SIX = Pattern.parse("6:8")


def made(quantised: str = "int8") -> SparseLinear:
    return SparseLinear.from_linear(checks.linear_of(N, K, "6:8"), "6:8", quantised)


def norm_weight(seed: int = 3) -> torch.Tensor:
    return 1 + checks.tokens(1, K, seed=seed)[0] / 8


def product(layer: SparseLinear, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What the layer makes of quantised rows, in float64."""
    w = layer.weight.to(torch.float64) * layer.weight_scale.to(torch.float64)
    out = (q.to(torch.float64) * scale[:, None]) @ w.t()
    return out if layer.bias is None else out + layer.bias


def close(ours: torch.Tensor, truth: torch.Tensor) -> bool:
    """Rounded to BF16 once."""
    return bool(((ours - truth).abs() <= truth.abs() * 2**-8 + 1e-6).all())


class TestAgainstTheirParts:
    @pytest.mark.parametrize("quantised", ["fp8", "int8"])
    @pytest.mark.parametrize("m", [1, 7, 129])
    @pytest.mark.parametrize("residual", [False, True])
    def test_rmsnorm(self, m, residual, quantised):
        layer, weight = made(quantised), norm_weight()
        x = checks.tokens(m, K)
        other = checks.tokens(m, K, seed=5) if residual else None
        out, summed = rmsnorm_linear(layer, x, weight, EPS, other)
        dtype = TORCH_DTYPES[layer.quantised]
        q, scale, hidden = rmsnorm_quantize(x, weight, EPS, dtype, residual=other)
        assert torch.equal(summed, hidden)
        assert torch.equal(summed, x if other is None else x + other)
        assert close(out.double(), product(layer, q, scale))

    @pytest.mark.parametrize("quantised", ["fp8", "int8"])
    @pytest.mark.parametrize("m", [1, 7, 129])
    def test_silu_mul(self, m, quantised):
        layer, gate_up = made(quantised), checks.tokens(m, 2 * K)
        out = silu_mul_linear(layer, gate_up)
        q, scale = silu_mul_quantize(gate_up, TORCH_DTYPES[layer.quantised])
        assert close(out.double(), product(layer, q, scale))

    def test_no_rows(self):
        layer = made()
        x = checks.tokens(0, K)
        out, summed = rmsnorm_linear(layer, x, norm_weight(), EPS, x)
        assert (out.shape, summed.shape) == ((0, N), (0, K))
        assert silu_mul_linear(layer, checks.tokens(0, 2 * K)).shape == (0, N)

    def test_a_static_scale_quantises_all_rows(self):
        layer, x = made("fp8"), checks.tokens(5, K)
        given = torch.tensor([0.02])
        q, scale = quantize(x, TORCH_DTYPES[DType.FP8], static_scale=given)
        assert torch.equal(scale, given.expand(5))
        out = linear_op(x, *layer.operands(), given)
        assert close(out.double(), product(layer, q, scale))
        assert not torch.equal(out, linear_op(x, *layer.operands()))


class TestTheStepOfTheNumberOfTokens:
    """A sparse step reads lifted rows; a dense one must not get them."""

    @pytest.mark.parametrize(("m", "lifted"), [(16, False), (17, True)])
    @pytest.mark.parametrize("producer", ["quantize", "rmsnorm", "add_rmsnorm", "silu_mul"])
    def test_decides_the_lift(self, producer, m, lifted, monkeypatch):
        widths = []

        class Noted(Reference):
            def run(self, q, x_scale, weight, w_scale, bias, out):
                widths.append(q.shape[1])
                out.zero_()

        monkeypatch.setattr("slidesparse.layers.prepared.make_way", lambda plan, c: Noted(plan, c))
        shape = shape_of(N, K, SIX, DType.INT8, bias=False)
        steps = [
            (16, Candidate("reference", {"case": producer, "m": m}, sparse=False)),
            (256, Candidate("reference", {"case": producer, "m": m, "s": 1}, sparse=True)),
        ]
        plan = plans.plan_of(shape, steps)
        forms = [torch.zeros(N, K, dtype=torch.int8) for _ in plan.forms]
        rest = (forms, torch.ones(N), None, plan.to_text())
        x, norm = checks.tokens(m, K), norm_weight()
        {
            "quantize": lambda: linear_op(x, *rest),
            "rmsnorm": lambda: rmsnorm_linear_op(x, norm, EPS, *rest),
            "add_rmsnorm": lambda: add_rmsnorm_linear_op(x, x, norm, EPS, *rest),
            "silu_mul": lambda: silu_mul_linear_op(checks.tokens(m, 2 * K), *rest),
        }[producer]()
        assert widths == [(SIX if lifted else DENSE).expanded_k(K)]


class TestOperators:
    def cases(self):
        rest = made().operands()
        x, norm = checks.tokens(3, K), norm_weight()
        return [
            (rmsnorm_linear_op, (x, norm, EPS, *rest)),
            (add_rmsnorm_linear_op, (x, checks.tokens(3, K, seed=8), norm, EPS, *rest)),
            (silu_mul_linear_op, (checks.tokens(3, 2 * K), *rest)),
        ]

    def test_opcheck(self):
        for op, arguments in self.cases():
            torch.library.opcheck(op, arguments)

    def test_inputs_are_left_alone(self):
        for op, arguments in self.cases():
            tensors = [t for t in arguments if isinstance(t, torch.Tensor)]
            before = [t.clone() for t in tensors]
            op(*arguments)
            assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))

    def test_what_graphs_expect_of_strided_rows(self):
        wide = checks.tokens(3, 2 * K)
        rest = made().operands()
        real = add_rmsnorm_linear_op(wide[:, :K], wide[:, K:], norm_weight(), EPS, *rest)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            rows = mode.from_tensor(wide)
            fake = add_rmsnorm_linear_op(rows[:, :K], rows[:, K:], norm_weight(), EPS, *rest)
        for ours, theirs in zip(real, fake, strict=True):
            assert (ours.shape, ours.dtype, ours.stride()) == (
                theirs.shape,
                theirs.dtype,
                theirs.stride(),
            )

    @pytest.mark.parametrize("function", ["rmsnorm", "silu_mul"])
    def test_rows_of_another_width_or_dtype(self, function):
        layer, norm = made(), function == "rmsnorm"
        width = K if norm else 2 * K
        rest = (norm_weight(), EPS) if norm else ()
        run = rmsnorm_linear if norm else silu_mul_linear
        for x in (checks.tokens(2, width - 1), checks.tokens(2, width, dtype=torch.float32)):
            with pytest.raises(KernelError) as raised:
                run(layer, x, *rest)
            assert str(raised.value) == (
                f"x is {x.dtype} {tuple(x.shape)} and the layer takes torch.bfloat16 "
                f"[M, {width}] here"
            )
