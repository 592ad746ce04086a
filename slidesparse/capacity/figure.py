"""Numbers of a plan, each with where it comes from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from slidesparse.candidate import Provenance

GIB = 2**30

_WEAKEST = (Provenance.ESTIMATED, Provenance.DERIVED, Provenance.MEASURED)
"""A sum is worth what the weakest of its parts is."""


@dataclass(frozen=True)
class Part:
    """A part of the memory of one GPU.

    Args:
        name: for tables: "weights: qkv".
        bytes: that it takes.
        provenance: measured (read from a file), derived from sizes, or estimated.
        how: the formula or the source in a few words.
    """

    name: str
    bytes: int
    provenance: Provenance
    how: str


def total(parts: Iterable[Part]) -> int:
    """Bytes of all parts."""
    return sum(part.bytes for part in parts)


def weakest(provenances: Iterable[Provenance]) -> Provenance:
    """What a sum of figures of these provenances is: the least certain of them."""
    found = set(provenances)
    return next((word for word in _WEAKEST if word in found), Provenance.DERIVED)


def size(count: float) -> str:
    """Bytes as tables spell them: GiB with two digits, MiB below a tenth of one."""
    if abs(count) >= GIB / 10:
        return f"{count / GIB:,.2f} GiB"
    return f"{count / 2**20:,.1f} MiB"


def sequences(count: int) -> str:
    """So many sequences in words: "1 sequence", "1,024 sequences"."""
    return f"{count:,} sequence{'' if count == 1 else 's'}"
