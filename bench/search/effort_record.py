"""Result files of scripts/compare_efforts.py: what a longer search finds beyond a shorter one.

One JSON form, versioned, written by the tool and never by hand.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from slidesparse import __version__
from slidesparse.bench.fields import STRICT, Amount, Count, Duration, Machine, Name, Problem, Text
from slidesparse.bench.record_form import RecordForm, Stamped
from slidesparse.bench.result_file import FileKind
from slidesparse.bench.rows import Row, Value
from slidesparse.candidate import Provenance

UNKNOWN = "unknown"
"""Version and time of a file of schema version 1, which had neither."""

KIND = FileKind(
    "slidesparse-effort-comparison",
    2,
    "scripts/compare_efforts.py",
    older={1: {"version": UNKNOWN, "created": UNKNOWN, "settings": {}}},
)

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

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

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
class EffortRecord(Stamped):
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

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

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


FORM = RecordForm(KIND, EffortRecord)
read_json, write_json = FORM.read, FORM.write


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
