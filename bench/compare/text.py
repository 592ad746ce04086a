"""How comparisons are worded: names of columns, numbers, what workloads have in common."""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from slidesparse.bench.compare.lines import Comparison, Line
from slidesparse.bench.rows import ResultFile, Row, Value


@dataclass(frozen=True)
class Section:
    """A table, or lines without one.

    Args:
        title: above it.
        headings: of the columns; none for lines only.
        rows: of the table.
        lines: below it.
        words: indices of the columns that hold words; the others hold numbers.
    """

    title: str
    headings: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    lines: tuple[str, ...] = ()
    words: frozenset[int] = frozenset({0})


def letters(compared: Comparison) -> tuple[str, ...]:
    """A short name per column: A, B, ... Z, AA."""
    alphabet = string.ascii_uppercase
    names = [*alphabet, *(one + two for one in alphabet for two in alphabet)]
    return tuple(names[index] for index in range(len(compared.columns)))


def column_labels(compared: Comparison, lines: Sequence[Line]) -> tuple[str, ...]:
    """How tables head each column: "A H200 (measured)", "B H100 (published)".

    Args:
        compared: whose columns they are.
        lines: below the headings, which say where their figures come from.
    """
    labels, many = [], len(compared.files) > 1
    for index, (letter, column) in enumerate(zip(letters(compared), compared.columns, strict=True)):
        cells = [cell for line in lines if (cell := line.cells[index]) is not None]
        file = compared.files[column.file]
        name = f"{letter} {machine_name(file)}" if many or not column.value else letter
        said = provenance_of(file, cells)
        labels.append(" ".join(filter(None, (name, column.value, said))))
    return tuple(labels)


def machine_name(file: ResultFile) -> str:
    """A file's machine, without its maker."""
    return file.machine.removeprefix("NVIDIA ")


def provenance_of(file: ResultFile, rows: Sequence[Row]) -> str:
    """Where figures come from, in brackets; "" where the machine's name says it."""
    kinds = Counter(str(row.provenance) for row in rows)
    said = ", ".join(kind for kind, _ in kinds.most_common())
    return f"({said})" if said and f"({said})" not in file.machine else ""


def figure(value: float) -> str:
    """A number as tables print it: four significant digits, thousands apart."""
    if value and not 1e-4 <= abs(value) < 1e12:
        return f"{value:.3e}"
    digits = 0 if abs(value) >= 1000 else max(0, 3 - math.floor(math.log10(abs(value) or 1)))
    return f"{value:,.{digits}f}"


def varying(lines: Sequence[Line]) -> tuple[dict[str, Value], list[str]]:
    """What all workloads of these lines share, and the names that tell them apart.

    M is left out where it is the number of tokens, N and K where the layer says them.
    """
    every = [line.workload for line in lines]
    names = list(dict.fromkeys(name for workload in every for name in workload))
    shared = {
        name: every[0][name]
        for name in names
        if len({workload.get(name) for workload in every}) == 1
    }
    implied = {
        name
        for name, sayer in (("m", "tokens"), ("n", "layer"), ("k", "layer"))
        if sayer in names and sayer not in shared and _says(every, sayer, name)
    }
    return shared, [name for name in names if name not in shared and name not in implied]


def _says(workloads: Sequence[Mapping[str, Value]], sayer: str, name: str) -> bool:
    """Whether one name's value follows from another's."""
    pairs = {(workload.get(sayer), workload.get(name)) for workload in workloads}
    return len(pairs) == len({said for said, _ in pairs})


def others_of(compared: Comparison) -> list[int]:
    """Indices of all columns but the base."""
    return [index for index in range(len(compared.columns)) if index != compared.base]
