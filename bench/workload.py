"""Workloads: the layers of a model as GEMM problems."""

from __future__ import annotations

from dataclasses import dataclass, replace

from slidesparse.models import LinearLayer, ModelSpec
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import GemmProblem


@dataclass(frozen=True)
class LayerProblem:
    """A layer of the model at one M and pattern.

    Args:
        layer: with its name and how often the model has it.
        tokens: of the batch; `problem.m` is smaller for routed experts.
        problem: the GEMM that it is.
    """

    layer: LinearLayer
    tokens: int
    problem: GemmProblem


def layer_problems(
    spec: ModelSpec,
    tp: int,
    tokens: tuple[int, ...],
    patterns: tuple[Pattern, ...],
    template: GemmProblem,
) -> tuple[LayerProblem, ...]:
    """Every (layer, M, pattern) of a model as a GEMM problem like `template`, dense always first.

    A routed expert sees its mean share of the tokens. A bias is left out: the search compares
    GEMMs, and no backend is slower or faster for adding one vector.

    Raises:
        ModelError: `tp` does not divide what has to be divided.
    """
    every = dict.fromkeys((DENSE, *patterns))
    return tuple(
        LayerProblem(
            layer, m, replace(template, m=layer.rows(m), n=layer.n, k=layer.k, pattern=pattern)
        )
        for layer in spec.linears(tp)
        for pattern in every
        for m in tokens
    )
