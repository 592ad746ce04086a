"""Result files of `slidesparse compare`: what was compared, what differs, ratios and costs.

One JSON form, versioned, written by the tool and never by hand; a CSV beside it for spreadsheets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from slidesparse import __version__
from slidesparse.bench.compare.cost import Cost, CostLine
from slidesparse.bench.compare.files import Difference
from slidesparse.bench.compare.lines import Comparison, Line
from slidesparse.bench.compare.quality import Shift
from slidesparse.bench.compare.ratio import Ratio
from slidesparse.bench.compare.text import column_labels
from slidesparse.bench.fields import Index, Machine, Name, Positive, Text
from slidesparse.bench.record_form import RecordForm, Stamped
from slidesparse.bench.result_file import FileKind
from slidesparse.bench.rows import ResultFile, Row, Value
from slidesparse.candidate import Provenance

KIND = FileKind("slidesparse-comparison", 1, "slidesparse compare")

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class ComparedFile:
    """A file that was compared, as it told of itself.

    Args:
        path: as it was given.
        kind: of it.
        machine: for headings.
        fingerprint: of its machine, None for published figures.
        versions: of the software.
        settings: that it was made with.
        commit: of the source.
        created: UTC time in ISO 8601.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    path: Text
    kind: Name
    machine: Name
    fingerprint: Machine | None
    versions: dict[str, str]
    settings: dict[str, Any]
    commit: Text
    created: Text

    @classmethod
    def of(cls, file: ResultFile) -> ComparedFile:
        """A file as the record holds it."""
        return cls(
            path=str(file.path),
            kind=file.kind,
            machine=file.machine,
            fingerprint=file.fingerprint,
            versions=dict(file.versions),
            settings=dict(file.settings),
            commit=file.commit,
            created=file.created,
        )


@dataclass(frozen=True)
class ComparedColumn:
    """A column: which file, and of which value of the split."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    label: Name
    file: Index
    value: Text


@dataclass(frozen=True)
class ComparedCell:
    """A figure, what it is over the base's, and what it costs.

    Args:
        row: the figure.
        ratio: how much better than the base's; None for the base and where there is none.
        ratio_spread: relative interquartile range, None where unknown.
        difference: from the base's, of a figure of quality; None elsewhere.
        verdict: what tables say of it; "" for the base.
        cost: None where the row says nothing of tokens.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    row: Row
    ratio: float | None
    ratio_spread: float | None
    difference: float | None
    verdict: Text
    cost: CostFigures | None


@dataclass(frozen=True)
class CostFigures:
    """The figures of a `Cost`, in its units."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    gpus: Positive
    price: float | None
    joules_per_token: float | None
    energy: Provenance | None
    tokens_per_joule: float | None
    per_million: float | None
    hours: float | None
    total: float | None
    kwh: float | None

    @classmethod
    def of(cls, cost: Cost) -> CostFigures:
        """A cost as the record holds it."""
        return cls(
            gpus=cost.gpus,
            price=cost.price,
            joules_per_token=cost.joules_per_token,
            energy=cost.energy,
            tokens_per_joule=cost.tokens_per_joule,
            per_million=cost.per_million,
            hours=cost.hours,
            total=cost.total,
            kwh=cost.kwh,
        )


@dataclass(frozen=True)
class ComparedLine:
    """One workload and what each column has of it."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    workload: dict[str, Value]
    variant: dict[str, Value]
    metric: Name
    unit: Text
    cells: tuple[ComparedCell | None, ...]


@dataclass(frozen=True)
class ComparisonRecord(Stamped):
    """A comparison, as its result file holds it.

    Args:
        fingerprint: none: a comparison is of files, not of a machine.
        settings: the options of the command.
        files: that were compared.
        differences: between them.
        columns: of the lines.
        base: index of the column that ratios are over.
        lines: of which at least two columns have a cell.
        alone: of which one column has a cell.
        commit: of the source, "unknown" outside a checkout.
        version: of the package.
        created: UTC time in ISO 8601.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    fingerprint: Literal[None]
    settings: dict[Name, Any]
    files: tuple[ComparedFile, ...]
    differences: tuple[Difference, ...]
    columns: tuple[ComparedColumn, ...]
    base: Index
    lines: tuple[ComparedLine, ...]
    alone: tuple[ComparedLine, ...]
    commit: Text = ""
    version: Text = __version__
    created: Text = ""

    @property
    def machine(self) -> str:
        """For headings: every machine once."""
        return ", ".join(dict.fromkeys(file.machine for file in self.files))


def make_record(
    compared: Comparison,
    costs: Sequence[CostLine],
    settings: dict[str, Any],
) -> ComparisonRecord:
    """The record of a comparison.

    Args:
        compared: what was found.
        costs: of its lines.
        settings: the options of the command.
    """
    by_line = {id(it.line): it.costs for it in costs}
    none: tuple[Cost | None, ...] = (None,) * len(compared.columns)
    return ComparisonRecord(
        fingerprint=None,
        settings=settings,
        files=tuple(map(ComparedFile.of, compared.files)),
        differences=compared.differences,
        columns=tuple(
            ComparedColumn(label, column.file, column.value)
            for label, column in zip(
                column_labels(compared, compared.lines), compared.columns, strict=True
            )
        ),
        base=compared.base,
        lines=tuple(_line(line, by_line.get(id(line), none)) for line in compared.lines),
        alone=tuple(_line(line, none) for line in compared.alone),
    )


def _line(line: Line, costs: Sequence[Cost | None]) -> ComparedLine:
    cells: list[ComparedCell | None] = []
    for row, ratio, shift, cost in zip(line.cells, line.ratios, line.shifts, costs, strict=True):
        if row is None:
            cells.append(None)
            continue
        cells.append(
            ComparedCell(
                row=row,
                ratio=None if ratio is None else ratio.value,
                ratio_spread=None if ratio is None else ratio.spread,
                difference=shift.value if shift is not None and line.quality else None,
                verdict=_verdict(line, ratio, shift),
                cost=None if cost is None else CostFigures.of(cost),
            )
        )
    names = dict(line.workload), dict(line.variant)
    return ComparedLine(*names, line.metric, line.unit, tuple(cells))


def _verdict(line: Line, ratio: Ratio | None, shift: Shift | None) -> str:
    if line.quality:
        return "" if shift is None else shift.verdict
    return "" if ratio is None else ratio.verdict


FORM = RecordForm(KIND, ComparisonRecord)
read_json, write_json = FORM.read, FORM.write


def rows(record: ComparisonRecord) -> tuple[Row, ...]:
    """One row per ratio."""
    base = record.columns[record.base].label
    return tuple(
        Row(
            workload={**line.workload, "ratio of": _told(line)},
            variant={**_before(line), "compared": column.label, "base": base},
            metric="ratio",
            unit="",
            value=cell.ratio,
            better="higher",
            provenance=Provenance.DERIVED,
            spread=None if cell.ratio_spread is None else cell.ratio * cell.ratio_spread,
        )
        for line in record.lines
        for column, cell in zip(record.columns, line.cells, strict=True)
        if cell is not None and cell.ratio is not None
    )


def _told(line: ComparedLine) -> str:
    """What a ratio is of: a metric, or of a comparison of comparisons a ratio of one."""
    before = line.workload.get("ratio of")
    return line.metric if before is None else f"{line.metric} of {before}"


def _before(line: ComparedLine) -> dict[str, Value]:
    """The line's variant, the columns of an earlier comparison by other names than this one's."""
    return {
        f"of {name}" if name.endswith(("compared", "base")) else name: value
        for name, value in line.variant.items()
    }
