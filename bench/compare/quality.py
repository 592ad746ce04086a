"""What a model says on two GPUs: it should be the same, within the noise that the files state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slidesparse.bench.rows import Row

QUALITY = frozenset(
    {"perplexity", "perplexity difference", "loss", "loss increase", "agreement", "divergence"}
)
"""Metrics of what a model says, not of its speed."""

_INCREASE = "loss increase"


@dataclass(frozen=True)
class Shift:
    """How far a figure of quality is from the base's.

    Args:
        value: other less base, in the metric's unit.
        noise: half the interquartile range of that difference; None where no file states any.
    """

    value: float
    noise: float | None

    @property
    def verdict(self) -> str:
        """One of "identical", "within noise", "differs" and "differs, noise unknown"."""
        if self.value == 0:
            return "identical"
        if self.noise is None:
            return "differs, noise unknown"
        return "within noise" if abs(self.value) <= self.noise else "differs"

    def __str__(self) -> str:
        """The verdict, with the difference where there is one."""
        if self.value == 0:
            return self.verdict
        noise = "" if self.noise is None else f" ±{self.noise:.2g}"
        return f"{self.verdict} ({self.value:+.2g}{noise})"


def is_quality(row: Row) -> bool:
    """Whether a row is about what a model says."""
    return row.metric in QUALITY or row.workload.get("what") == "accuracy"


def shift_of(base: Row, other: Row) -> Shift:
    """The difference of two figures of quality.

    The spread of a difference of independent figures is the root of the sum of squares of theirs
    (GUM, JCGM 100:2008, 5.1.2, equation 10 with coefficients 1 and -1).
    """
    noise = None
    if base.spread is not None and other.spread is not None:
        noise = math.hypot(base.spread, other.spread) / 2
    return Shift(other.value - base.value, noise)


def with_noise(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows, perplexities with the noise that the loss increase of the same variant states.

    Perplexity is exp(loss), so d perplexity = perplexity * d loss to first order. A noise of 0,
    that of the dense model's increase over itself, says nothing of its perplexity.
    """
    stated = {row.key[:2]: row.spread for row in rows if row.metric == _INCREASE and row.spread}
    return tuple(
        replace(row, spread=row.value * stated[row.key[:2]])
        if row.metric == "perplexity" and row.spread is None and row.key[:2] in stated
        else row
        for row in rows
    )
