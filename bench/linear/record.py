"""Result files of `slidesparse bench linear`: whole linears of ours against torch's.

One JSON form, versioned, written by the tool and never by hand; a CSV beside it for spreadsheets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
)

from slidesparse import __version__
from slidesparse.bench.kernels.record import Amount, Duration, Machine, Name, Text
from slidesparse.bench.result_file import (
    FileKind,
    read_record,
    source_commit,
    write_data,
    write_rows,
)
from slidesparse.bench.schema import PlainSchema
from slidesparse.candidate import timestamp
from slidesparse.models import LinearLayer
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem
from slidesparse.serialize import from_plain, to_plain

KIND = FileKind("slidesparse-linear-bench", 1, "slidesparse bench linear")

CSV_COLUMNS = (
    "layer",
    "count",
    "tokens",
    "m",
    "n",
    "k",
    "dtype",
    "pattern",
    "bias",
    "what",
    "how",
    "sparse",
    "median_us",
    "spread_us",
    "ratio_to_ours",
    "error",
    "reason",
)

_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def _problem(value: object) -> GemmProblem:
    return value if isinstance(value, GemmProblem) else from_plain(GemmProblem, value)


def _layer(value: object) -> LinearLayer:
    return value if isinstance(value, LinearLayer) else from_plain(LinearLayer, value)


Problem = Annotated[
    GemmProblem, PlainValidator(_problem), PlainSerializer(to_plain), PlainSchema(GemmProblem)
]
Layer = Annotated[
    LinearLayer, PlainValidator(_layer), PlainSerializer(to_plain), PlainSchema(LinearLayer)
]
Count = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class LinearTime:
    """What one linear took, quantisation, GEMM, scales and bias together.

    Args:
        median_us: microseconds per call.
        spread_us: interquartile range of the samples.
        error: |out - ref| / |ref| against float64 on the checked rows.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    median_us: Duration
    spread_us: Amount
    error: Amount


@dataclass(frozen=True)
class LinearRow:
    """One layer at one M and pattern: ours and torch's on the same pruned weight, in one race.

    Args:
        layer: with its name and how often the model has it.
        tokens: of the batch; `problem.m` is smaller for routed experts.
        problem: sizes, dtype, pattern and bias of the linear.
        plan: what ours runs for so many rows.
        sparse: whether that is a sparse GEMM.
        ours: None where `error` says what was wrong with it.
        torch: None where no way of torch's ran; `Ways` says why.
        torch_how: which of torch's ways that is, "" without one.
        sets: of operands that the launches rotate through, so that the L2 cache is cold.
        error: None, or why ours has no time.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    layer: Layer
    tokens: Count
    problem: Problem
    plan: Text
    sparse: bool
    ours: LinearTime | None
    torch: LinearTime | None
    torch_how: Text
    sets: Count
    error: Text | None

    @property
    def ratio(self) -> float | None:
        """Torch's time over ours: above 1 ours is faster."""
        return self.torch.median_us / self.ours.median_us if self.torch and self.ours else None

    @property
    def clear(self) -> bool:
        """Whether the difference is larger than half the spread of either."""
        if self.torch is None or self.ours is None:
            return False
        spread = max(self.torch.spread_us, self.ours.spread_us) / 2
        return abs(self.torch.median_us - self.ours.median_us) > spread


@dataclass(frozen=True)
class WayTime:
    """One way to run torch's linear, from the race that chose among them, or why it has no time."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    how: Name
    median_us: Duration | None
    spread_us: Amount | None
    reason: Text


@dataclass(frozen=True)
class Ways:
    """Torch's ways for one layer and M, raced on the weight of one pattern.

    Args:
        problem: that they were raced on.
        ways: the one of the least median is what `LinearRow.torch` is about. A single way that
            ran was not raced and has no time here.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    problem: Problem
    ways: tuple[WayTime, ...]


@dataclass(frozen=True)
class SkippedLinear:
    """A layer at one M that was not measured, and why; its problem is of one of the patterns."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    layer: Layer
    tokens: Count
    problem: Problem
    reason: Text


@dataclass(frozen=True)
class LinearRecord:
    """One run of the benchmark, as its result file holds it.

    Args:
        model: name as it was given.
        tp: tensor-parallel size.
        fingerprint: of the machine.
        settings: the options of the command, and what was timed.
        seconds: wall time.
        compile_seconds: of it, first calls of what torch.compile makes.
        interrupted: whether it ended early, by hand or because the device was lost.
        rows: by dtype, layer, M and pattern.
        ways: torch's, by dtype, layer and M.
        skipped: what was not measured.
        commit: of the source, "unknown" outside a checkout.
        version: of the package.
        created: UTC time in ISO 8601.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    model: Name
    tp: Count
    fingerprint: Machine
    settings: dict[Name, Any]
    seconds: Amount
    compile_seconds: Amount
    interrupted: bool
    rows: tuple[LinearRow, ...]
    ways: tuple[Ways, ...]
    skipped: tuple[SkippedLinear, ...]
    commit: Text = ""
    version: Text = __version__
    created: Text = ""

    def stamped(self) -> LinearRecord:
        """The record with commit and time of now."""
        return replace(self, commit=source_commit(), created=timestamp())

    @property
    def dtypes(self) -> tuple[DType, ...]:
        """That were measured, in their order."""
        return tuple(dict.fromkeys(row.problem.dtype for row in self.rows))

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """That were measured, in their order."""
        return tuple(dict.fromkeys(row.problem.pattern for row in self.rows))

    def of(self, dtype: DType, tokens: int, pattern: Pattern) -> list[LinearRow]:
        """The rows of all layers at one dtype, M and pattern."""
        return [
            row
            for row in self.rows
            if (row.problem.dtype, row.tokens, row.problem.pattern) == (dtype, tokens, pattern)
        ]

    def totals(self, dtype: DType, tokens: int, pattern: Pattern) -> tuple[float, float] | None:
        """Microseconds of all linears of the model: (torch, ours).

        Returns:
            None if a layer that the record has at this dtype has no time for both.
        """
        names = {row.layer.name for row in self.rows if row.problem.dtype is dtype}
        names |= {s.layer.name for s in self.skipped if s.problem.dtype is dtype}
        rows = [row for row in self.of(dtype, tokens, pattern) if row.torch and row.ours]
        if {row.layer.name for row in rows} != names:
            return None
        theirs = sum(row.layer.count * row.torch.median_us for row in rows if row.torch)
        return theirs, sum(row.layer.count * row.ours.median_us for row in rows if row.ours)


def write_json(record: LinearRecord, path: Path) -> None:
    """Write the result file; the folder must exist.

    Raises:
        UsageError: the file cannot be written.
    """
    write_data(path, KIND, _adapter().dump_python(record, mode="json"))


def read_json(path: Path) -> LinearRecord:
    """Read a result file back.

    Raises:
        UsageError: it is missing, truncated, of another kind or schema, or holds wrong values.
    """
    return read_record(path, KIND, _adapter())


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[LinearRecord]:
    return TypeAdapter(LinearRecord)


def write_csv(record: LinearRecord, path: Path) -> None:
    """Write one line per layer, M and pattern for ours and one for torch's.

    Raises:
        UsageError: the file cannot be written.
    """
    write_rows(path, CSV_COLUMNS, (line for row in record.rows for line in _lines(row)))


def _lines(row: LinearRow) -> Iterator[Sequence[object]]:
    it, layer = row.problem, row.layer
    head = [layer.name, layer.count, row.tokens, it.m, it.n, it.k, it.dtype, it.pattern]
    head.append(int(it.bias))
    for what, how, sparse, taken, reason in (
        ("slidesparse", row.plan, int(row.sparse), row.ours, row.error or ""),
        ("torch", row.torch_how, 0, row.torch, "" if row.torch else "no way of torch's ran"),
    ):
        times = [""] * 4
        if taken:
            ratio = f"{taken.median_us / row.ours.median_us:.4f}" if row.ours else ""
            times = [f"{taken.median_us:.3f}", f"{taken.spread_us:.3f}", ratio]
            times.append(f"{taken.error:.2e}")
        yield [*map(str, head), what, how, sparse, *times, reason]
