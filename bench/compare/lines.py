"""Comparison of result files: rows aligned by workload, the best of each file, ratios with spread.

Files become columns, workloads become lines. A column is a file, or with `split` what a file has of
one value ("system" gives stock and ours a column each), so that one file can be compared with
itself in the same way as two GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from slidesparse.bench.compare.align import require_common, require_one_unit
from slidesparse.bench.compare.files import (
    Difference,
    differences,
    require_same_settings,
    unknown_settings,
)
from slidesparse.bench.compare.quality import Shift, is_quality, shift_of
from slidesparse.bench.compare.ratio import Ratio, ratio_of
from slidesparse.bench.compare.select import Column, Options, Phase, make_columns
from slidesparse.bench.rows import ResultFile, Row, Value
from slidesparse.candidate import Provenance
from slidesparse.errors import UsageError

T = TypeVar("T")

BOUND = "bound"
"""In a variant: the figure is what the hardware allows, not what something took."""

Names = frozenset[tuple[str, Value]]
"""A workload or a variant, hashable, in no order."""


@dataclass(frozen=True)
class Line:
    """One metric of one workload, or with `by` "variant" of one variant of it.

    Args:
        workload: that all cells share.
        variant: that all cells share; empty where each column shows its best. Figures of quality
            always share it: the best of them would always be the dense model's.
        metric: of the cells.
        unit: of the cells.
        cells: one per column, None where it has none.
        base: index of the column that ratios are over.
    """

    workload: Mapping[str, Value]
    variant: Mapping[str, Value]
    metric: str
    unit: str
    cells: tuple[Row | None, ...]
    base: int

    @property
    def shared(self) -> bool:
        """Whether more than one column has it."""
        return sum(cell is not None for cell in self.cells) > 1

    @property
    def quality(self) -> bool:
        """Whether it is about what a model says: differences are told instead of ratios."""
        return any(cell is not None and is_quality(cell) for cell in self.cells)

    @property
    def shifts(self) -> tuple[Shift | None, ...]:
        """How far each cell is from the base's: None for the base and where one lacks."""
        return self._over_base(shift_of)

    @property
    def ratios(self) -> tuple[Ratio | None, ...]:
        """How much better each cell is than the base's: None for the base and where one lacks."""
        return self._over_base(ratio_of)

    def _over_base(self, compared: Callable[[Row, Row], T | None]) -> tuple[T | None, ...]:
        base = self.cells[self.base]
        return tuple(
            None if base is None or cell is None or index == self.base else compared(base, cell)
            for index, cell in enumerate(self.cells)
        )


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Args:
        files: in their order.
        options: that it was made with.
        differences: between the files; said first.
        exempt: indices of files whose settings nobody knows.
        columns: in the order of the files.
        base: index of the column that ratios are over: the first of the base's file.
        lines: of which at least two columns have a cell.
        alone: lines that one column has.
    """

    files: tuple[ResultFile, ...]
    options: Options
    differences: tuple[Difference, ...]
    exempt: tuple[int, ...]
    columns: tuple[Column, ...]
    base: int
    lines: tuple[Line, ...]
    alone: tuple[Line, ...]


def compare(files: Sequence[ResultFile], options: Options) -> Comparison:
    """Align result files by workload.

    Args:
        files: two or more, or one with a split.
        options: how.

    Raises:
        UsageError: settings differ in the baseline phase; units or metrics of a workload differ;
            nothing is in common; `split`, `where` or `metrics` name what no file has.
    """
    if options.phase is Phase.BASELINE:
        require_same_settings(files)
    columns = tuple(make_columns(files, options))
    if len(columns) < 2:
        raise UsageError(
            f"there is nothing to compare {files[0].path} with; name a second file, or a --split"
        )
    base = next(index for index, it in enumerate(columns) if it.file == options.base)
    labels = [_place(files, column) for column in columns]
    require_one_unit(labels, [column.rows for column in columns])
    lines = _lines(columns, options.by, base)
    if not any(line.shared and line.cells[base] for line in lines):
        free = options.adapt if options.phase is Phase.BASELINE else ()
        by_variant = options.by == "variant"
        require_common(labels, [column.rows for column in columns], base, free, by_variant)
    unknown = unknown_settings(files)
    return Comparison(
        files=tuple(files),
        options=options,
        differences=differences(files),
        exempt=tuple(i for i, file in enumerate(files) if any(file is it for it in unknown)),
        columns=columns,
        base=base,
        lines=tuple(line for line in lines if line.shared),
        alone=tuple(line for line in lines if not line.shared),
    )


def _place(files: Sequence[ResultFile], column: Column) -> str:
    path = str(files[column.file].path)
    return f"{path} ({column.value})" if column.value else path


def _lines(columns: Sequence[Column], by: Literal["workload", "variant"], base: int) -> list[Line]:
    """Every workload (and variant) of any column, in the order in which columns name them."""
    cells: dict[tuple[Names, str, Names | None], list[Row | None]] = {}
    for index, column in enumerate(columns):
        for row in column.rows:
            own = by == "variant" or is_quality(row)
            variant = frozenset(row.variant.items()) if own else None
            key = (frozenset(row.workload.items()), row.metric, variant)
            found = cells.setdefault(key, [None] * len(columns))
            found[index] = better(found[index], row)
    lines = []
    for (_, metric, paired), found in cells.items():
        first = next(cell for cell in found if cell is not None)
        shared = {} if paired is None else first.variant
        lines.append(Line(first.workload, shared, metric, first.unit, tuple(found), base))
    return lines


def better(one: Row | None, other: Row) -> Row:
    """The better of two rows of one metric; the first where they are equal.

    A bound is nothing that ran: it never beats a figure. Nor does what is computed or estimated
    beat what was measured.
    """
    if one is None:
        return other
    if _ran(one) != _ran(other):
        return max(one, other, key=_ran)
    ahead = other.value > one.value if other.better == "higher" else other.value < one.value
    return other if ahead else one


def _ran(row: Row) -> int:
    """How real a figure is: 2 measured by somebody, 1 computed from that, 0 a bound."""
    if BOUND in row.variant.values():
        return 0
    return 1 if row.provenance in (Provenance.DERIVED, Provenance.ESTIMATED) else 2
