"""Sparsity patterns of the (2N-2):2N family and their sliding-window decomposition.

A pattern "6:8" allows at most six non-zeros in every eight consecutive weights of a row. A block of
2N weights is covered by N-1 windows of four weights with stride two; laid side by side the windows
form a 2:4 matrix, which sparse tensor cores run (arXiv 2603.05232).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

from slidesparse.errors import PatternError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

WINDOW = 4
"""Weights per window: the M of the hardware's 2:4."""

STRIDE = 2
"""Weights between the starts of two neighbouring windows."""

SMALLEST_BLOCK = 4
"""2:4 has the smallest block of the family."""

EXPANDED_K_ALIGNMENT = 32
"""K' is padded to this: what the sparse tensor-core libraries ask of 8-bit operands."""

_SPELLING = re.compile(r"([0-9]{1,6}):([0-9]{1,6})")
_FAMILY = "use dense, 2:4, 4:6, 6:8, 8:10 or another (2N-2):2N"


@dataclass(frozen=True, order=True)
class Pattern:
    """At most `nonzeros` non-zeros in every `block` consecutive weights of a row.

    Args:
        nonzeros: 2N-2, or 1 for the dense pattern.
        block: 2N, or 1 for the dense pattern.

    Raises:
        PatternError: the pair is neither dense (1, 1) nor (2N-2, 2N) with N >= 2.
    """

    nonzeros: int = 1
    block: int = 1

    def __post_init__(self) -> None:
        """Refuse pairs outside the family."""
        if (self.nonzeros, self.block) == (1, 1):
            return
        if self.block < SMALLEST_BLOCK or self.block % 2 or self.nonzeros != self.block - 2:
            raise PatternError(
                f"pattern {self.nonzeros}:{self.block} is not of the (2N-2):2N family; {_FAMILY}"
            )

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read "dense", "6:8" or the zeros notation "2:8" (two zeros in eight: the same pattern).

        Raises:
            PatternError: the text is malformed or names a pattern outside the family.
        """
        spelled = text.strip().lower()
        if spelled == "dense":
            return DENSE
        match = _SPELLING.fullmatch(spelled)
        if match is None:
            raise PatternError(f"cannot read pattern {text!r}; {_FAMILY}")
        first, block = int(match[1]), int(match[2])
        if first == 2 and block >= SMALLEST_BLOCK and block % 2 == 0:
            return cls(block - 2, block)
        if first > block:
            raise PatternError(
                f"pattern {text!r} keeps {first} of {block} weights, more than there are; {_FAMILY}"
            )
        if (first, block) == (1, 1):
            raise PatternError(f"pattern {text!r} is not of the (2N-2):2N family; {_FAMILY}")
        return cls(first, block)

    @property
    def dense(self) -> bool:
        """Whether every weight may be non-zero."""
        return self.block == 1

    @property
    def windows(self) -> int:
        """Windows per block: N-1, or 0 for dense."""
        return 0 if self.dense else self.block // 2 - 1

    @property
    def expansion(self) -> Fraction:
        """K' / K before padding: 4(N-1) / 2N, or 1 for dense."""
        return Fraction(1) if self.dense else Fraction(WINDOW * self.windows, self.block)

    @property
    def zeros(self) -> Fraction:
        """The fraction of weights that is zero: 1/N, or 0 for dense."""
        return Fraction(self.block - self.nonzeros, self.block)

    @property
    def bound(self) -> Fraction:
        """The largest speedup over dense that the arithmetic allows: N / (N-1)."""
        return Fraction(1) if self.dense else 2 / self.expansion

    def blocks(self, k: int) -> int:
        """How many blocks cover a row of `k` weights, the last one padded with zeros."""
        _check_k(k)
        return -(-k // self.block)

    def padded_k(self, k: int) -> int:
        """`k` rounded up to whole blocks."""
        return self.blocks(k) * self.block

    def expanded_k(self, k: int, align: int = EXPANDED_K_ALIGNMENT) -> int:
        """K' for a row of `k` weights: whole blocks of windows, then zeros up to `align`.

        Dense is not expanded and not padded: its K' is `k`.

        Raises:
            PatternError: `k` or `align` is not positive.
        """
        if align <= 0:
            raise PatternError(f"K' cannot be aligned to {align}; use a positive number")
        if self.dense:
            _check_k(k)
            return k
        width = self.blocks(k) * self.windows * WINDOW
        return -(-width // align) * align

    def lift_index(self, k: int, align: int = EXPANDED_K_ALIGNMENT) -> npt.NDArray[np.int64]:
        """Where each of the K' lifted activations comes from.

        lifted[4(N-1)b + 4w + j] = x[2Nb + 2w + j] for block b, window w and j = 0..3.

        Returns:
            int64 array [K']. Entries below `k` index a row of x; -1 stands for a padding zero.
        """
        _check_k(k)
        return _lift_index(self, k, align)

    def __str__(self) -> str:
        """The N:M spelling, which `parse` reads back."""
        return "dense" if self.dense else f"{self.nonzeros}:{self.block}"


DENSE = Pattern()


def parse_patterns(text: str) -> tuple[Pattern, ...]:
    """Read a comma-separated list such as "dense,2:4,6:8", without repetitions, order kept."""
    return tuple(dict.fromkeys(Pattern.parse(part) for part in text.split(",")))


def _check_k(k: int) -> None:
    if k <= 0:
        raise PatternError(f"K={k} is not a positive number of weights per row")


@lru_cache(maxsize=64)
def _lift_index(pattern: Pattern, k: int, align: int) -> npt.NDArray[np.int64]:
    import numpy as np

    if pattern.dense:
        index = np.arange(k, dtype=np.int64)
    else:
        block = np.arange(pattern.blocks(k), dtype=np.int64)[:, None, None] * pattern.block
        window = np.arange(pattern.windows, dtype=np.int64)[None, :, None] * STRIDE
        index = (block + window + np.arange(WINDOW, dtype=np.int64)).reshape(-1)
        index[index >= k] = -1
        padding = pattern.expanded_k(k, align) - index.size
        index = np.concatenate([index, np.full(padding, -1, dtype=np.int64)])
    index.setflags(write=False)
    return index
