"""Result files of scripts/compare_efforts.py: what a longer search finds beyond a shorter one.

One JSON form, versioned, written by the tool and never by hand.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter

from slidesparse import __version__
from slidesparse.bench.kernels.record import Amount, Duration, Machine, Name, Text
from slidesparse.bench.linear.record import Problem
from slidesparse.bench.result_file import (
    FileKind,
    load_object,
    read_data,
    read_record,
    record_of,
    source_commit,
    write_data,
)
from slidesparse.bench.rows import Row, Value
from slidesparse.bench.schema import record_schema
from slidesparse.candidate import Provenance, timestamp

KIND = FileKind("slidesparse-effort-comparison", 2, "scripts/compare_efforts.py", older=(1,))

UNKNOWN = "unknown"
"""Version and time of a file of schema version 1, which had neither."""

_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

Count = Annotated[int, Field(ge=0)]
Pair = Annotated[tuple[Duration, ...], Field(min_length=2, max_length=2)]


@dataclass(frozen=True)
class EffortRow:
    """The winners of both searches on one problem, raced on fresh operands.

    Args:
        problem: that both searched.
        winners: candidates as tables name them, the shorter search's first.
        same: whether they are one and the same; then there was no race.
        us: medians of each race, the shorter search's first; empty without a race.
        ratio: the first one's time over the other's, median of the races; 1 where they are the
            same, None where the race failed.
        failure: why it failed, None where it did not.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    problem: Problem
    winners: Annotated[tuple[Text, ...], Field(min_length=2, max_length=2)]
    same: bool
    us: tuple[Pair, ...] = ()
    ratio: Duration | None = None
    failure: Text | None = None

    def __post_init__(self) -> None:
        """Refuse a row that is both or neither."""
        if (self.ratio is None) == (self.failure is None):
            raise ValueError("a row has either a ratio or a failure")


@dataclass(frozen=True)
class EffortRecord:
    """A comparison of two searches.

    Args:
        fingerprint: of the machine of the races.
        settings: seed and races per problem.
        efforts: of the searches, the shorter one first.
        seconds: that the searches took.
        problems: that both went through.
        same_winner: of those, how many had one winner.
        within_2_percent: how many of the shorter search's winners are not slower by more.
        worst_ratio: largest of the rows' ratios.
        median_ratio: of the rows' ratios.
        rows: by problem.
        commit: of the source, "unknown" outside a checkout.
        version: of the package.
        created: UTC time in ISO 8601.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    fingerprint: Machine
    settings: dict[Name, Any]
    efforts: Annotated[tuple[Name, ...], Field(min_length=2, max_length=2)]
    seconds: Annotated[tuple[Amount, ...], Field(min_length=2, max_length=2)]
    problems: Count
    same_winner: Count
    within_2_percent: Count
    worst_ratio: Duration
    median_ratio: Duration
    rows: tuple[EffortRow, ...]
    commit: Text = ""
    version: Text = __version__
    created: Text = ""

    @classmethod
    def of(
        cls,
        fingerprint: Machine,
        settings: dict[str, Any],
        efforts: tuple[str, str],
        seconds: tuple[float, float],
        rows: tuple[EffortRow, ...],
    ) -> EffortRecord:
        """The record of these races, with the figures that follow from them.

        Raises:
            ValueError: no race has a ratio.
        """
        ratios = [row.ratio for row in rows if row.ratio is not None]
        if not ratios:
            raise ValueError(f"none of {len(rows)} problems has a ratio")
        return cls(
            fingerprint=fingerprint,
            settings=settings,
            efforts=efforts,
            seconds=seconds,
            problems=len(rows),
            same_winner=sum(row.same for row in rows),
            within_2_percent=sum(ratio <= 1.02 for ratio in ratios),
            worst_ratio=max(ratios),
            median_ratio=statistics.median(ratios),
            rows=rows,
        )

    def stamped(self) -> EffortRecord:
        """The record with commit and time of now."""
        return replace(self, commit=source_commit(), created=timestamp())


def write_json(record: EffortRecord, path: Path) -> None:
    """Write the result file; the folder must exist.

    Raises:
        UsageError: the file cannot be written.
    """
    write_data(path, KIND, _adapter().dump_python(record, mode="json"))


def read_json(path: Path) -> EffortRecord:
    """Read a result file back; one of schema version 1 says no time, version or settings.

    Raises:
        UsageError: it is missing, truncated, of another kind or schema, or holds wrong values.
    """
    if load_object(path, KIND.command).get("schema_version") != 1:
        return read_record(path, KIND, _adapter())
    data = read_data(path, KIND)
    late = {"version": UNKNOWN, "created": UNKNOWN, "settings": {}}
    return record_of(path, {**late, **data}, _adapter())


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[EffortRecord]:
    return TypeAdapter(EffortRecord)


def rows(record: EffortRecord) -> tuple[Row, ...]:
    """By how much the shorter search's winner is slower, per problem."""
    return tuple(_row(record, it, it.ratio) for it in record.rows if it.ratio is not None)


def _row(record: EffortRecord, it: EffortRow, ratio: float) -> Row:
    problem = it.problem
    workload: dict[str, Value] = {
        "what": "search effort",
        "m": problem.m,
        "n": problem.n,
        "k": problem.k,
        "dtype": str(problem.dtype),
        "out": str(problem.out),
        "scales": str(problem.scales),
        "pattern": str(problem.pattern),
    }
    return Row(
        workload=workload,
        variant={"efforts": " over ".join(record.efforts)},
        metric="time ratio",
        unit="",
        value=ratio,
        better="lower",
        provenance=Provenance.MEASURED,
        how=" against ".join(it.winners),
    )


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file behind its kind and schema version."""
    return record_schema(EffortRecord)


def older_json_schema() -> dict[int, dict[str, Any]]:
    """The same of older schema versions that can be read."""
    first = record_schema(EffortRecord)
    for name in ("version", "created", "settings"):
        del first["properties"][name]
        first["required"].remove(name)
    return {1: first}
