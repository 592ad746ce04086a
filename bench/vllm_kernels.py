"""vLLM's kernels on our operands, where vLLM is installed.

Its ops are called as vllm._custom_ops calls them (read from vLLM 0.25.1), but on given outputs, so
that they write to as cold memory as ours. vLLM knows no lift: for lifted patterns a gather follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from slidesparse.bench.alternatives import Alternative, Gather, Outputs, Way, dense_buffer
from slidesparse.kernel_problem import Op
from slidesparse.kernels.case import EPS, Case, Operands
from slidesparse.libraries import vllm_reason
from slidesparse.problem import DType

NAME = "vllm"

Step = Callable[[int, torch.Tensor, torch.Tensor], Outputs]
"""Quantises set `index` to q [M, K] and scale [M, 1]; returns what else it made."""


def vllm_alternatives(case: Case) -> Iterator[Alternative]:
    """The way through vLLM, followed by each way to gather where the pattern is lifted."""
    problem = case.problem
    if problem.op.dequantizes:
        reason = "vLLM scales back inside its GEMMs and has no kernel for it"
        yield Alternative(NAME, "", None, reason)
        return
    reason = vllm_reason()
    if reason:
        yield Alternative(NAME, "", None, reason)
        return
    name = " + ".join(_names(case))
    missing = [op for op in _names(case) if not hasattr(_ops(), op)]
    if missing:
        yield Alternative(NAME, name, None, f"this vLLM has no op {missing[0]}")
        return
    if problem.pattern.dense:
        yield Alternative(NAME, name, _run(case, _step(case), None, None))
        return
    between = dense_buffer(case)
    for way_name, way in Gather(problem, case.sets[0].x.device).ways.items():
        # A step of its own for each way: a step may change what it reads.
        run = _run(case, _step(case), between, way)
        yield Alternative(NAME, f"{name} + {way_name}", run)


def _run(
    case: Case, step: Step, between: torch.Tensor | None, way: Way | None
) -> Callable[[int], Outputs]:
    """The step on operand set `index`, then the gather, if there is one."""

    def run(index: int) -> Outputs:
        it = _set(case, index)
        assert it.scale is not None
        if between is None or way is None:
            return it.q, it.scale, *step(index, it.q, it.scale[:, None])
        rest = step(index, between, it.scale[:, None])
        way(between, it.q)
        return it.q, it.scale, *rest

    return run


def _names(case: Case) -> tuple[str, ...]:
    """The ops that vLLM runs for the case's operation, the quantisation last."""
    if case.problem.op is Op.RMSNORM_QUANTIZE:
        return ("rms_norm_dynamic_per_token_quant",)
    fp8 = case.problem.out is DType.FP8
    quantize = "dynamic_per_token_scaled_fp8_quant" if fp8 else "dynamic_scaled_int8_quant"
    first = () if case.problem.op is Op.QUANTIZE else ("silu_and_mul",)
    return (*first, quantize)


def _step(case: Case) -> Step:
    """A function that runs these ops."""
    quantize = _names(case)[-1]
    if case.problem.op is Op.QUANTIZE:

        def only(index: int, q: torch.Tensor, scale: torch.Tensor) -> Outputs:
            getattr(_ops(), quantize)(q, _set(case, index).x, scale, None)
            return ()

        return only
    if case.problem.op is Op.RMSNORM_QUANTIZE:
        return _norm(case)
    first = case.sets[0]
    # What the activation leaves is read back at once: one buffer, in the cache where it fits.
    between = torch.empty(
        (case.problem.m, case.problem.k), dtype=first.x.dtype, device=first.x.device
    )

    def both(index: int, q: torch.Tensor, scale: torch.Tensor) -> Outputs:
        _ops().silu_and_mul(between, _set(case, index).x)
        getattr(_ops(), quantize)(q, between, scale, None)
        return ()

    return both


def _norm(case: Case) -> Step:
    # It updates the residual in place: on copies, so that ours still finds its own.
    residuals = [None if it.residual is None else it.residual.clone() for it in case.sets]

    def step(index: int, q: torch.Tensor, scale: torch.Tensor) -> Outputs:
        residual = residuals[index % len(residuals)]
        x = _set(case, index).x
        _ops().rms_norm_dynamic_per_token_quant(q, x, case.weight, scale, EPS, None, residual)
        return () if residual is None else (residual,)

    return step


def _set(case: Case, index: int) -> Operands:
    return case.sets[index % len(case.sets)]


def _ops() -> Any:
    return torch.ops._C
