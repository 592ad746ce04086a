"""Where the tensors around a linear layer have more elements than 32-bit offsets address."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from slidesparse.models.spec import LinearLayer
from slidesparse.pattern import Pattern
from slidesparse.problem import INT32_MAX


@dataclass(frozen=True)
class Overflow:
    """One tensor whose element count passes 2^31 - 1.

    Args:
        layer: name of the linear layer.
        m: tokens of the batch.
        tensor: "output" for D, "input" for X (lifted, where `pattern` is sparse).
        pattern: that the input is lifted for; None for an output, which no pattern changes.
        rows: of the tensor: m, or m * active for routed experts (one tensor holds every copy).
        columns: of the tensor: N, or K'.
    """

    layer: str
    m: int
    tensor: str
    pattern: Pattern | None
    rows: int
    columns: int

    @property
    def elements(self) -> int:
        """Element count of the tensor."""
        return self.rows * self.columns


def int32_overflows(
    layers: Iterable[LinearLayer], tokens: Iterable[int], patterns: Iterable[Pattern]
) -> tuple[Overflow, ...]:
    """Find every (layer, M) with an output or a lifted input above 2^31 - 1 elements.

    Args:
        layers: the linears of one rank.
        tokens: batch sizes M to look at.
        patterns: whose lifted inputs [M, K'] to look at.

    Returns:
        Overflows in the order of `layers`, then of `tokens`; the output before the inputs.
    """
    tokens, patterns = tuple(tokens), tuple(patterns)
    return tuple(
        found
        for layer in layers
        for m in tokens
        for found in _tensors(layer, m, patterns)
        if found.elements > INT32_MAX
    )


def _tensors(layer: LinearLayer, m: int, patterns: tuple[Pattern, ...]) -> Iterator[Overflow]:
    rows = layer.grouped_rows(m)
    yield Overflow(layer.name, m, "output", None, rows, layer.n)
    for pattern in patterns:
        yield Overflow(layer.name, m, "input", pattern, rows, pattern.expanded_k(layer.k))
