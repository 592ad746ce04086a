"""The kernel problems of a model: what surrounds each of its linear layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.models import LinearLayer, ModelSpec
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import SEARCH_M, SWEEP_M, DType

BEHIND_NORM = ("qkv", "gate_up", "in_proj")
"""Layers that read the normalised hidden state, by a part of their name."""

ACCUMULATOR = {DType.INT8: DType.INT32, DType.FP8: DType.BF16}
"""What a GEMM without row and column scales leaves, by the dtype of its operands."""

LONGEST_M = SWEEP_M[-1]
"""The most tokens per batch that a sweep has."""


def model_problems(
    spec: ModelSpec,
    tp: int,
    dtype: DType,
    patterns: tuple[Pattern, ...],
    tokens: tuple[int, ...],
    activation: DType = DType.BF16,
    ops: tuple[Op, ...] = tuple(Op),
) -> tuple[KernelProblem, ...]:
    """Every kernel that a model's linear layers may want, one problem per cache key.

    Args:
        spec: of the model.
        tp: tensor-parallel size.
        dtype: of the quantised operands, fp8_e4m3 or int8.
        patterns: of the weights; dense is always among them.
        tokens: per batch; a routed expert sees its mean share.
        activation: dtype of activations, residuals and weights of norms.
        ops: that are wanted.

    Raises:
        ModelError: `tp` does not divide what has to be divided.
    """
    every = tuple(dict.fromkeys((DENSE, *patterns)))
    found: dict[str, KernelProblem] = {}
    for layer in spec.linears(tp):
        for count in tokens:
            for problem in _around(layer, spec.hidden, count, dtype, every, activation):
                if problem.op in ops:
                    found.setdefault(problem.key, problem)
    return tuple(sorted(found.values(), key=row_order))


def tuned_problems(
    spec: ModelSpec,
    tp: int,
    dtype: DType,
    patterns: tuple[Pattern, ...],
    ops: tuple[Op, ...] = tuple(Op),
) -> tuple[KernelProblem, ...]:
    """What is tuned unless told otherwise: SEARCH_M, and LONGEST_M where that runs other code.

    Arguments and errors as `model_problems`. Tensors past 2^31 elements have 64-bit offsets, whose
    code has a best configuration of its own; elsewhere what is best at 16384 rows is best above.
    """
    usual = model_problems(spec, tp, dtype, patterns, SEARCH_M, ops=ops)
    longest = model_problems(spec, tp, dtype, patterns, (LONGEST_M,), ops=ops)
    both = (*usual, *(problem for problem in longest if problem.passes_int32))
    return tuple(sorted(both, key=row_order))


def launched_problems(problems: Sequence[KernelProblem]) -> tuple[KernelProblem, ...]:
    """What a server launches of these: the first layer's norm, which adds nothing, as well."""
    plain = (
        replace(problem, residual=False)
        for problem in problems
        if problem.op is Op.RMSNORM_QUANTIZE
    )
    return tuple(dict.fromkeys((*problems, *plain)))


def _around(
    layer: LinearLayer,
    hidden: int,
    tokens: int,
    dtype: DType,
    patterns: tuple[Pattern, ...],
    activation: DType,
) -> Iterator[KernelProblem]:
    """The problems in front of a layer and behind it."""
    m, raw = layer.rows(tokens), ACCUMULATOR[dtype]
    yield KernelProblem(Op.DEQUANTIZE, m, layer.n, raw, activation)
    for pattern in patterns:
        yield KernelProblem(Op.QUANTIZE, m, layer.k, activation, dtype, pattern)
        if any(part in layer.name for part in BEHIND_NORM):
            yield KernelProblem(
                Op.RMSNORM_QUANTIZE, m, layer.k, activation, dtype, pattern, residual=True
            )
        if layer.name.endswith("down"):
            yield KernelProblem(Op.SILU_MUL_QUANTIZE, m, layer.k, activation, dtype, pattern)
        if layer.name.endswith("gate_up"):
            yield KernelProblem(Op.DEQUANT_SILU_MUL_QUANTIZE, m, layer.n // 2, raw, dtype, pattern)
        elif layer.n == hidden and layer.kind == "dense":
            yield KernelProblem(
                Op.DEQUANT_RMSNORM_QUANTIZE, m, layer.n, raw, dtype, pattern, residual=True
            )


def row_order(problem: KernelProblem) -> tuple[int, int, int, int]:
    """Where a problem stands in tables and files: by operation, K, pattern, M."""
    return (list(Op).index(problem.op), problem.k, problem.pattern.block, problem.m)
