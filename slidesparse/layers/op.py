"""The operators of a planned linear layer: make rows, quantise (and lift), multiply, scale, add.

One operator each for what may stand before the layer, so that the pass that quantises does that
work too, and knows from the plan which lift the rows need for their number.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from slidesparse.errors import KernelError
from slidesparse.kernels.launch import FLOATS
from slidesparse.kernels.quant import quantize_rows
from slidesparse.kernels.rmsnorm_quant import rmsnorm_quantize_rows
from slidesparse.kernels.silu_mul_quant import silu_mul_quantize_rows
from slidesparse.layers.layer_plan import from_text
from slidesparse.layers.prepared import Prepared, Quantised, prepared
from slidesparse.pattern import Pattern
from slidesparse.tensors import TORCH_DTYPES


def _linear(
    x: torch.Tensor,
    weights: list[torch.Tensor],
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    plan: str,
    x_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """A planned W8A8 linear layer.

    Args:
        x: [M, K] bf16, fp16 or fp32.
        weights: the forms of the weight that the plan names, in their order.
        w_scale: [N] float32.
        bias: [N] of the output's dtype, or None.
        plan: `LayerPlan.to_text`.
        x_scale: [1] float32 that quantises all rows, or None for the largest value of each.

    Returns:
        [M, N] of the plan's output dtype.

    Raises:
        KernelError: x does not fit the plan.
    """
    ready = _ready(x, plan, 1)

    def produce(lift: Pattern) -> Quantised:
        return quantize_rows(x, ready.dtype, lift, x_scale)

    with _on(x):
        return ready.run("quantize", x, produce, weights, w_scale, bias)


def _rmsnorm_linear(
    x: torch.Tensor,
    norm: torch.Tensor,
    eps: float,
    weights: list[torch.Tensor],
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    plan: str,
    x_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """RMSNorm, then `_linear`. norm: [K] weight of the norm; the rest as there."""
    ready = _ready(x, plan, 1)

    def produce(lift: Pattern) -> Quantised:
        return rmsnorm_quantize_rows(x, norm, eps, ready.dtype, lift, None, x_scale)[:2]

    with _on(x):
        return ready.run("rmsnorm", x, produce, weights, w_scale, bias)


def _add_rmsnorm_linear(
    x: torch.Tensor,
    residual: torch.Tensor,
    norm: torch.Tensor,
    eps: float,
    weights: list[torch.Tensor],
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    plan: str,
    x_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """H = x + residual, RMSNorm of h, then `_linear`; returns its result and h [M, K]."""
    ready = _ready(x, plan, 1)
    summed = x

    def produce(lift: Pattern) -> Quantised:
        nonlocal summed
        *made, hidden = rmsnorm_quantize_rows(x, norm, eps, ready.dtype, lift, residual, x_scale)
        assert hidden is not None  # There is a residual.
        summed = hidden
        return made[0], made[1]

    with _on(x):
        out = ready.run("add_rmsnorm", x, produce, weights, w_scale, bias)
    return out, summed


def _silu_mul_linear(
    gate_up: torch.Tensor,
    weights: list[torch.Tensor],
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    plan: str,
    x_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """SiLU(gate) * up of rows [M, 2 K], gate first, then `_linear`."""
    ready = _ready(gate_up, plan, 2)

    def produce(lift: Pattern) -> Quantised:
        return silu_mul_quantize_rows(gate_up, ready.dtype, lift, x_scale)

    with _on(gate_up):
        return ready.run("silu_mul", gate_up, produce, weights, w_scale, bias)


def _ready(x: torch.Tensor, plan: str, width: int) -> Prepared:
    """The plan on the device of x, whose rows are `width` times as long as those of the layer."""
    device = x.device
    ready = prepared(plan, device.type, device.index or 0)
    columns = width * ready.plan.k
    if x.ndim != 2 or x.shape[1] != columns or x.dtype not in FLOATS:
        raise KernelError(
            f"x is {x.dtype} {tuple(x.shape)}; bfloat16, float16 or float32 [M, {columns}] is "
            "needed"
        )
    return ready


def _on(x: torch.Tensor) -> AbstractContextManager[Any]:
    other = x.is_cuda and x.device.index != torch.cuda.current_device()
    return torch.cuda.device(x.device) if other else nullcontext()


def _made(x: torch.Tensor, plan: str) -> torch.Tensor:
    """The result without its values."""
    wanted = from_text(plan)
    return torch.empty((x.shape[0], wanted.n), dtype=TORCH_DTYPES[wanted.out], device=x.device)


def _fake_linear(x: torch.Tensor, weights: Any, w_scale: Any, bias: Any, plan: str, *_: Any) -> Any:
    return _made(x, plan)


def _fake_rmsnorm(
    x: torch.Tensor,
    norm: Any,
    eps: float,
    weights: Any,
    w_scale: Any,
    bias: Any,
    plan: str,
    *_: Any,
) -> Any:
    return _made(x, plan)


def _fake_add_rmsnorm(
    x: torch.Tensor,
    residual: Any,
    norm: Any,
    eps: float,
    weights: Any,
    w_scale: Any,
    bias: Any,
    plan: str,
    *_: Any,
) -> Any:
    # As the kernel makes it: rows of the residual may be strided, those of the sum are not.
    return _made(x, plan), torch.empty(x.shape, dtype=x.dtype, device=x.device)


# Not torch.library.custom_op, whose checks of every call cost more than a decode step's GEMM.
_LIBRARY = torch.library.Library("slidesparse", "FRAGMENT")  # type: ignore[no-untyped-call]
_TAIL = "Tensor[] weights, Tensor w_scale, Tensor? bias, str plan, Tensor? x_scale=None"
_NORM = "Tensor norm, float eps"
for _name, _head, _result, _run, _fake in (
    ("linear", "Tensor x", "Tensor", _linear, _fake_linear),
    ("rmsnorm_linear", f"Tensor x, {_NORM}", "Tensor", _rmsnorm_linear, _fake_rmsnorm),
    (
        "add_rmsnorm_linear",
        f"Tensor x, Tensor residual, {_NORM}",
        "(Tensor, Tensor)",
        _add_rmsnorm_linear,
        _fake_add_rmsnorm,
    ),
    ("silu_mul_linear", "Tensor gate_up", "Tensor", _silu_mul_linear, _fake_linear),
):
    _LIBRARY.define(  # type: ignore[no-untyped-call]
        f"{_name}({_head}, {_TAIL}) -> {_result}", tags=(torch.Tag.pt2_compliant_tag,)
    )
    for _key in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _run, _key)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"slidesparse::{_name}", _fake)

linear_op = torch.ops.slidesparse.linear.default
rmsnorm_linear_op = torch.ops.slidesparse.rmsnorm_linear.default
add_rmsnorm_linear_op = torch.ops.slidesparse.add_rmsnorm_linear.default
silu_mul_linear_op = torch.ops.slidesparse.silu_mul_linear.default
