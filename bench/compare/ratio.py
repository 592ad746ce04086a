"""Ratios of two figures with their spread, and when a difference is none."""

from __future__ import annotations

import math
from dataclasses import dataclass

from slidesparse.bench.rows import Row

SAME = "no difference"
"""What a table says of a ratio inside its spread."""


@dataclass(frozen=True)
class Ratio:
    """How much better one figure is than another.

    Args:
        value: above 1 it is better, whichever way its metric improves.
        spread: interquartile range as a share of `value`; None where either figure has none.
    """

    value: float
    spread: float | None

    @property
    def clear(self) -> bool | None:
        """Whether 1 lies outside the ratio's interquartile interval; None without a spread.

        The interval is taken on the logarithm, value * exp(+- spread / 2), so that a ratio and its
        inverse are judged alike.
        """
        if self.spread is None:
            return None
        return abs(math.log(self.value)) > self.spread / 2

    @property
    def verdict(self) -> str:
        """In words: "better", "worse", "no difference", or "spread unknown"."""
        if self.clear is None:
            return "spread unknown"
        if not self.clear:
            return SAME
        return "better" if self.value > 1 else "worse"

    def __str__(self) -> str:
        """As tables print it: "1.32 ±0.01", "no difference (1.01)", "1.32~" without a spread."""
        small = 3 if self.value < 0.1 else 2
        if self.spread is None:
            return f"{self.value:.{small}f}~"
        if not self.clear:
            return f"{SAME} ({self.value:.2f})"
        half = self.value * self.spread / 2
        digits = 3 if half < 0.005 else small
        return f"{self.value:.{digits}f} ±{half:.{digits}f}"


def ratio_of(base: Row, other: Row) -> Ratio | None:
    """How much better `other` is than `base`: rows of one workload, metric and unit.

    The relative spread of a quotient of independent figures is the root of the sum of squares of
    theirs (GUM, JCGM 100:2008, 5.1.6, equation 12 with exponents 1 and -1). The interquartile range
    is proportional to the standard deviation that the formula is about, so it goes in and comes
    out.

    Returns:
        None where a figure is not positive (a share of 0, an increase of a loss), or the ratio is
        more than a float holds.
    """
    if base.value <= 0 or other.value <= 0:
        return None
    over, under = (other, base) if base.better == "higher" else (base, other)
    if not 0 < over.value / under.value < math.inf:
        return None
    if base.spread is None or other.spread is None:
        return Ratio(over.value / under.value, None)
    spread = math.hypot(base.spread / base.value, other.spread / other.value)
    return Ratio(over.value / under.value, spread)
