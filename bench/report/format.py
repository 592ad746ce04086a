"""How a report writes numbers and names, and which colour and mark each series has."""

from __future__ import annotations

import re

from slidesparse.bench.report.view import Cell, Look
from slidesparse.pattern import Pattern

_UNFIT = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)

LONGEST_SLUG = 120
"""Characters; a file's name may have 255, and more is added to it."""

_LOOKS = {
    "dense": Look("ink", "o"),
    "2:4": Look("vermillion", "s"),
    "4:6": Look("blue", "^"),
    "6:8": Look("green", "D"),
    "8:10": Look("purple", "v"),
    "10:12": Look("orange", "P"),
    "12:14": Look("sky", "X"),
}
_OTHER = Look("muted", "*")

HUES = (
    Look("blue", "o"),
    Look("vermillion", "s"),
    Look("green", "D"),
    Look("purple", "v"),
    Look("orange", "^"),
    Look("sky", "P"),
)
"""For series that are no patterns, in this order."""


def pattern_look(pattern: Pattern) -> Look:
    """A pattern looks the same in every chart."""
    return _LOOKS.get(str(pattern), _OTHER)


def number(value: float, digits: int = 3) -> str:
    """A number for people: `digits` significant digits, thousands whole and grouped."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if size < 1e-3:
        return f"{value:.{digits - 1}e}"
    return f"{value:#.{digits}g}".rstrip(".")


def cell(value: float | None, text: str | None = None, digits: int = 3) -> Cell:
    """A number as a cell; "n/a" for None, which is sorted last."""
    if value is None:
        return Cell("n/a")
    return Cell(number(value, digits) if text is None else text, float(value))


def ratio_cell(value: float | None, clear: bool = True) -> Cell:
    """A ratio as a cell, marked where it is within the spread."""
    if value is None:
        return Cell("n/a")
    return Cell(f"{'' if clear else '~ '}{value:.2f}x", value)


def slug(text: str) -> str:
    """A text as part of a file's name or an anchor: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:LONGEST_SLUG].strip("-")


def cleaned(text: str) -> str:
    """A text without what no page or drawing may hold.

    That is control characters, halves of pairs, and marks that turn the text after them round.
    """
    return _UNFIT.sub("\N{REPLACEMENT CHARACTER}", text)
