"""Result files of `slidesparse bench linear`: whole linears of ours against torch's.

One JSON form, versioned, written by the tool and never by hand; a CSV beside it for spreadsheets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from slidesparse import __version__
from slidesparse.bench.fields import (
    STRICT,
    Amount,
    Duration,
    Layer,
    Machine,
    Name,
    Positive,
    Problem,
    Text,
)
from slidesparse.bench.record_form import RecordForm, Stamped
from slidesparse.bench.result_file import FileKind, write_rows
from slidesparse.pattern import Pattern
from slidesparse.problem import DType

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


@dataclass(frozen=True)
class LinearTime:
    """What one linear took, quantisation, GEMM, scales and bias together.

    Args:
        median_us: microseconds per call.
        spread_us: interquartile range of the samples.
        error: |out - ref| / |ref| against float64 on the checked rows.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

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

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    layer: Layer
    tokens: Positive
    problem: Problem
    plan: Text
    sparse: bool
    ours: LinearTime | None
    torch: LinearTime | None
    torch_how: Text
    sets: Positive
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

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

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

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    problem: Problem
    ways: tuple[WayTime, ...]


@dataclass(frozen=True)
class SkippedLinear:
    """A layer at one M that was not measured, and why; its problem is of one of the patterns."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    layer: Layer
    tokens: Positive
    problem: Problem
    reason: Text


@dataclass(frozen=True)
class LinearRecord(Stamped):
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

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: Name
    tp: Positive
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


FORM = RecordForm(KIND, LinearRecord)
read_json, write_json = FORM.read, FORM.write


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
