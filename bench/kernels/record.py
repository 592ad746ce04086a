"""Result files of `slidesparse bench kernels`: figures, ceilings and how they were taken.

One JSON form, versioned, written by the tool and never by hand; a CSV beside it for spreadsheets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, PlainSerializer, PlainValidator

from slidesparse import __version__
from slidesparse.bench.fields import (
    STRICT,
    Amount,
    Duration,
    Machine,
    Name,
    Positive,
    Text,
    plain_reader,
)
from slidesparse.bench.record_form import RecordForm, Stamped
from slidesparse.bench.result_file import FileKind, write_rows
from slidesparse.bench.schema import PlainSchema
from slidesparse.kernel_problem import KernelProblem
from slidesparse.serialize import to_plain

KIND = FileKind("slidesparse-kernels-bench", 1, "slidesparse bench kernels")

CSV_COLUMNS = (
    "op",
    "m",
    "k",
    "source",
    "out",
    "pattern",
    "residual",
    "what",
    "how",
    "median_us",
    "spread_us",
    "ratio_to_ours",
    "gbs",
    "percent_of_copy",
    "percent_of_copy_same_size",
    "floor_us",
    "wide_us",
    "tuned",
    "reason",
)


Problem = Annotated[
    KernelProblem,
    PlainValidator(plain_reader(KernelProblem)),
    PlainSerializer(to_plain),
    PlainSchema(KernelProblem),
]


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do at best, from the same run.

    Args:
        copy_gbs: of a large copy, bytes read and written, in GB/s (1e9 bytes).
        copy_bytes: that it reads and writes together.
        empty_us: of a kernel with one program that does nothing, timed like all others; 0 on a CPU.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    copy_gbs: Duration
    copy_bytes: Positive
    empty_us: Amount

    def floor_us(self, size: int) -> float:
        """The least time that a kernel can take that moves `size` bytes."""
        return self.empty_us + size / (self.copy_gbs * 1e3)


@dataclass(frozen=True)
class AlternativeTime:
    """What another way to compute the same took, or why there is no time.

    Args:
        name: of the alternative: vllm, torch.compile or two-step.
        how: which of its ways this is, for example "dynamic M".
        median_us: None where it did not run, then `reason` says why.
        spread_us: interquartile range of the samples; None like the median.
        reason: "" where it ran.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Name
    how: Text
    median_us: Duration | None
    spread_us: Amount | None
    reason: Text


@dataclass(frozen=True)
class Row:
    """One kernel problem as it was measured.

    Args:
        problem: that was run.
        config: of the launch by name of its fields; None for a reference implementation.
        tuned: whether the configuration is from the tuning cache; False for the default.
        bytes: that the problem moves at least, each read and written once.
        median_us: of our kernel; None where `error` says what was wrong with it.
        spread_us: interquartile range of the samples.
        gbs: bytes over median, GB/s (1e9).
        percent_of_copy: of the large copy's bandwidth.
        percent_of_copy_same_size: of the bandwidth of a copy of the same number of bytes.
        floor_us: an empty kernel and the bytes at the large copy's bandwidth.
        wide_us: our kernel with 64-bit row offsets, where a launch does with 32-bit ones.
        alternatives: that were tried, those that did not run too.
        error: None, or why there is no time.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    problem: Problem
    config: dict[Name, int | bool] | None
    tuned: bool
    bytes: Positive
    median_us: Duration | None
    spread_us: Amount | None
    gbs: Amount | None
    percent_of_copy: Amount | None
    percent_of_copy_same_size: Amount | None
    floor_us: Amount
    wide_us: Duration | None
    alternatives: tuple[AlternativeTime, ...]
    error: Text | None

    def ratio(self, name: str) -> float | None:
        """The fastest way of an alternative over our time: above 1 where ours is faster."""
        times = [a.median_us for a in self.alternatives if a.name == name and a.median_us]
        return min(times) / self.median_us if times and self.median_us else None


@dataclass(frozen=True)
class Skipped:
    """A problem that was not tried, and why."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    problem: Problem
    reason: Text


@dataclass(frozen=True)
class KernelRecord(Stamped):
    """One run of the benchmark, as its result file holds it.

    Args:
        model: name as it was given.
        tp: tensor-parallel size.
        fingerprint: of the machine.
        settings: the options of the command.
        seconds: wall time.
        interrupted: whether it ended early, by hand or because the device was lost.
        ceilings: of the same run.
        rows: by operation, K, pattern and M.
        skipped: problems that were not tried, and the one that lost the device.
        commit: of the source, "unknown" outside a checkout.
        version: of the package.
        created: UTC time in ISO 8601.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: Name
    tp: Positive
    fingerprint: Machine
    settings: dict[Name, Any]
    seconds: Amount
    interrupted: bool
    ceilings: Ceilings
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    commit: Text = ""
    version: Text = __version__
    created: Text = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The alternatives that ran at least once, in the order of their first appearance."""
        ran = (a.name for row in self.rows for a in row.alternatives if a.median_us is not None)
        return tuple(dict.fromkeys(ran))


FORM = RecordForm(KIND, KernelRecord)
read_json, write_json = FORM.read, FORM.write


def write_csv(record: KernelRecord, path: Path) -> None:
    """Write one line per problem for our kernel and one per alternative.

    Raises:
        UsageError: the file cannot be written.
    """
    write_rows(path, CSV_COLUMNS, (line for row in record.rows for line in _lines(row)))


def _lines(row: Row) -> Iterator[Sequence[object]]:
    it = row.problem
    head = [it.op, it.m, it.k, it.source, it.out, it.pattern, int(it.residual)]
    own = [row.gbs, row.percent_of_copy, row.percent_of_copy_same_size, row.floor_us, row.wide_us]
    ours = "slidesparse" if row.config is not None else "reference"
    config = " ".join(f"{name}={value}" for name, value in (row.config or {}).items())
    times = [_text(row.median_us), _text(row.spread_us), "1.000" if row.median_us else ""]
    tuned = int(row.tuned)
    yield [*map(str, head), ours, config, *times, *map(_text, own), tuned, row.error or ""]
    for other in row.alternatives:
        ratio = other.median_us / row.median_us if other.median_us and row.median_us else None
        times = [_text(other.median_us), _text(other.spread_us), _text(ratio)]
        empty = [""] * (len(own) + 1)
        yield [*map(str, head), other.name, other.how, *times, *empty, other.reason]


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
