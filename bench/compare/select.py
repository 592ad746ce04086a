"""Which rows of which files are compared, and in which columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from slidesparse.bench.compare.quality import is_quality, with_noise
from slidesparse.bench.rows import ResultFile, Row, Value
from slidesparse.errors import UsageError

ADAPTED = ("dtype", "out", "scales", "kv_dtype", "quant", "mode", "backend")
"""What a GPU may choose for itself in the adapted phase. The pattern is not among them: it belongs
to the weights and decides what the model says; whether they run sparse is the variant's business.
"""


class Phase(str, Enum):
    """What a comparison holds equal (document E's phases; its third, cost, is `--price`)."""

    BASELINE = "baseline"
    ADAPTED = "adapted"

    def __str__(self) -> str:
        """The word as the command line has it."""
        return self.value


@dataclass(frozen=True)
class Options:
    """How files are compared.

    Args:
        phase: baseline holds the settings equal; adapted lets each file choose among `ADAPTED`.
        by: "workload" pairs the best of each column; "variant" only what is of one variant.
        base: index of the file, from 0, that ratios are over.
        split: name in the workload or variant whose values become columns, "" for none.
        where: rows to keep, by name in the workload or variant: one of these values each.
        metrics: to keep, all where empty.
        adapt: names that each file may choose among in the adapted phase.
    """

    phase: Phase = Phase.BASELINE
    by: Literal["workload", "variant"] = "workload"
    base: int = 0
    split: str = ""
    where: Mapping[str, tuple[str, ...]] | None = None
    metrics: tuple[str, ...] = ()
    adapt: tuple[str, ...] = ADAPTED


@dataclass(frozen=True)
class Column:
    """A file, or what it has of one value.

    Args:
        file: index of the file.
        value: of the split, "" without one.
        rows: of it, as they are compared.
    """

    file: int
    value: str
    rows: tuple[Row, ...]


def make_columns(files: Sequence[ResultFile], options: Options) -> Iterator[Column]:
    """The columns of a comparison, in the order of the files.

    Raises:
        UsageError: a file has nothing of what was asked for, or nothing to split by.
    """
    kept = [_kept(file, options) for file in files]
    name = options.split
    for index, (file, rows) in enumerate(zip(files, kept, strict=True)):
        if not name:
            yield Column(index, "", with_noise(rows))
            continue
        values = dict.fromkeys(v for row in rows if (v := _named(row, name)) is not None)
        if not values:
            known = sorted({key for row in rows for key in (*row.workload, *row.variant)})
            raise UsageError(
                f"{file.path} has no {name!r} to split by; its rows have {', '.join(known)}"
            )
        for value in values:
            mine = [_without(row, name) for row in rows if _named(row, name) == value]
            yield Column(index, str(value), with_noise(mine))


def _kept(file: ResultFile, options: Options) -> list[Row]:
    """The rows of a file that are compared, adapted where the phase says so.

    Raises:
        UsageError: there are none; says what the file has.
    """
    wanted = options.where or {}
    found = [
        row
        for row in file.rows
        if (not options.metrics or row.metric in options.metrics)
        and all(str(_named(row, name)) in values for name, values in wanted.items())
    ]
    if not found:
        raise UsageError(f"{file.path} {_lack(file.rows, options)}")
    if options.phase is Phase.ADAPTED:
        return [_adapted(row, options) for row in found]
    return found


def _lack(rows: Sequence[Row], options: Options) -> str:
    """What a file does not have of what was asked for."""
    if not rows:
        return "holds no figures to compare"
    for name, values in (options.where or {}).items():
        known = {str(value) for row in rows if (value := _named(row, name)) is not None}
        if not known & set(values):
            said = f"it has {', '.join(sorted(known))}" if known else f"its rows have no {name}"
            return f"has no row with {name}={'|'.join(values)}; {said}"
    metrics = {row.metric for row in rows}
    if options.metrics and not metrics & set(options.metrics):
        return f"has no metric {'|'.join(options.metrics)}; it has {', '.join(sorted(metrics))}"
    return "has no row that fits all of what was asked for; ask for less"


def _named(row: Row, name: str) -> Value | None:
    return row.workload.get(name, row.variant.get(name))


def _without(row: Row, name: str) -> Row:
    return replace(
        row,
        workload={key: value for key, value in row.workload.items() if key != name},
        variant={key: value for key, value in row.variant.items() if key != name},
    )


def _adapted(row: Row, options: Options) -> Row:
    """The row with what a GPU may choose moved from the workload to the variant."""
    if is_quality(row):
        return row
    free = [name for name in options.adapt if name in row.workload and name != options.split]
    chosen = {name: row.workload[name] for name in free}
    workload = {name: value for name, value in row.workload.items() if name not in free}
    return replace(row, workload=workload, variant={**chosen, **row.variant})
