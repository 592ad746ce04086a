"""Result files of `slidesparse bench prefill` and `decode`: every cell, measured or why not.

One JSON form, versioned, written by the tool and never by hand; a CSV beside it for spreadsheets.
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import ConfigDict, Field

from slidesparse import __version__
from slidesparse.bench.fields import (
    STRICT,
    Amount,
    Duration,
    Index,
    Machine,
    Name,
    Positive,
    Text,
    Zeros,
)
from slidesparse.bench.record_form import RecordForm
from slidesparse.bench.result_file import FileKind
from slidesparse.bench.sweep.job import CellTime, Mode, Stage, System, Variant
from slidesparse.bench.sweep.plan import Block, Key
from slidesparse.bench.sweep.runner import Kind
from slidesparse.problem import INT32_MAX, DType
from slidesparse.stats import interquartile

KIND = FileKind("slidesparse-sweep", 1, "slidesparse bench prefill or decode")

_ROUNDED = 1e-6
"""A file's figures may be off from what follows from its samples by this share."""

Share = Annotated[float, Field(ge=0, le=1.0001)]


@dataclass(frozen=True)
class Figures:
    """What one cell took.

    Args:
        step_us: microseconds of a step, one per sample.
        median_us: of them.
        spread_us: their interquartile range.
        tokens_per_s: M over the median, of a prefill step and of a decode step alike.
        shares: fraction of the GPU's busy time by kind of kernel; empty where not measured.
        clock_mhz: of the SMs, mean while timed; None without NVML.
        power_w: mean while timed; None without NVML.
        joules_per_token: None without NVML.
        largest: elements of the largest tensor of a step.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    step_us: Annotated[tuple[Duration, ...], Field(min_length=1)]
    median_us: Duration
    spread_us: Amount
    tokens_per_s: Duration
    shares: dict[Name, Share]
    clock_mhz: Amount | None
    power_w: Amount | None
    joules_per_token: Amount | None
    largest: Index

    def __post_init__(self) -> None:
        """Refuse figures that do not follow from the samples."""
        for name, given, true in (
            ("median_us", self.median_us, statistics.median(self.step_us)),
            ("spread_us", self.spread_us, interquartile(self.step_us)),
        ):
            if abs(given - true) > _ROUNDED * self.median_us:
                raise ValueError(f"{name} {given} is not {true}, that of the samples")

    @classmethod
    def of(cls, time: CellTime) -> Figures:
        """What an engine measured."""
        median = statistics.median(time.step_us)
        return cls(
            step_us=tuple(map(float, time.step_us)),
            median_us=float(median),
            spread_us=float(interquartile(time.step_us)),
            tokens_per_s=1e6 * time.m / median,
            shares=dict(time.shares),
            clock_mhz=time.clock_mhz,
            power_w=time.power_w,
            joules_per_token=time.joules_per_token,
            largest=time.largest,
        )


@dataclass(frozen=True)
class Cell:
    """One cell: what it took, or why there is no time.

    Args:
        model: as it was given.
        dtype: FP8 or INT8.
        mode: eager or graphs.
        system: whose linears run.
        pattern: of the weights.
        again: whether this is stock for the second time.
        m: tokens of a prefill step, or sequences of a decode step.
        wide: whether a tensor of the step has more than 2^31 - 1 elements.
        session: index of the record's session that measured it.
        ran: index into the record's `ran`, None where nothing could be built.
        figures: None where it failed.
        failure: how it failed, None where it was measured.
        reason: why it failed, "" where it was measured.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: Name
    dtype: DType
    mode: Mode
    system: System
    pattern: Zeros
    again: bool
    m: Positive
    wide: bool
    session: Index
    ran: Index | None
    figures: Figures | None
    failure: Kind | None
    reason: Text

    def __post_init__(self) -> None:
        """Refuse a cell that is both or neither, or whose mark contradicts its figures."""
        if (self.figures is None) == (self.failure is None):
            raise ValueError("a cell has either figures or a failure")
        if self.figures is not None and self.wide != (self.figures.largest > INT32_MAX):
            raise ValueError(f"wide is {self.wide}, largest {self.figures.largest}")

    @property
    def block(self) -> Block:
        """What it is compared within."""
        return Block(self.model, self.dtype, self.mode)

    @property
    def key(self) -> Key:
        """Which cell it is."""
        return Key(self.block, Variant(self.system, self.pattern), self.again, self.m)

    @property
    def median_us(self) -> float | None:
        """Microseconds of a step, None where it failed."""
        return None if self.figures is None else self.figures.median_us


@dataclass(frozen=True)
class Session:
    """One run of the command; a sweep that was resumed has several.

    Args:
        started: UTC time in ISO 8601.
        commit: of the source, "unknown" outside a checkout.
        seconds: wall time.
        cards: UUIDs of the GPUs that it ran on, empty on a CPU.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    started: Text
    commit: Text
    seconds: Amount
    cards: tuple[Text, ...]


class PlacedCell(Protocol):
    """A cell of a file that several sessions measured."""

    @property
    def key(self) -> Hashable:
        """Which cell it is."""

    @property
    def session(self) -> int:
        """Index of the session that measured it."""

    @property
    def ran(self) -> int | None:
        """Index of what ran, None where nothing could be built."""

    @property
    def figures(self) -> object | None:
        """What it took, None where it failed."""


C = TypeVar("C", bound=PlacedCell)


class OfCells(Generic[C]):
    """What records of cells that several sessions measured can all be asked."""

    if TYPE_CHECKING:

        @property
        def sessions(self) -> tuple[Session, ...]:
            """In their order."""

        @property
        def ran(self) -> tuple[dict[str, str], ...]:
            """What engines said that they had built."""

        @property
        def cells(self) -> tuple[C, ...]:
            """In the order in which they are measured."""

    def __post_init__(self) -> None:
        """Refuse cells that are there twice or refer to nothing."""
        check_cells(self.cells, len(self.sessions), len(self.ran))

    @property
    def seconds(self) -> float:
        """Wall time of all sessions."""
        return sum(session.seconds for session in self.sessions)

    @property
    def measured(self) -> tuple[C, ...]:
        """The cells that have figures."""
        return tuple(cell for cell in self.cells if cell.figures is not None)

    @property
    def failed(self) -> tuple[C, ...]:
        """The cells that have none."""
        return tuple(cell for cell in self.cells if cell.figures is None)


def check_cells(cells: Sequence[PlacedCell], sessions: int, builds: int) -> None:
    """Refuse cells that are there twice or refer to nothing.

    Args:
        cells: of a file.
        sessions: how many the file has.
        builds: how many it has, of what engines said that they had built.

    Raises:
        ValueError: the first thing that is wrong.
    """
    if len({cell.key for cell in cells}) < len(cells):
        raise ValueError("a cell is there twice")
    for cell in cells:
        if cell.session >= sessions or (cell.ran or 0) >= max(builds, 1):
            raise ValueError(f"{cell.key} refers to a session or a build that is not there")


@dataclass(frozen=True)
class SweepRecord(OfCells[Cell]):
    """A sweep as its result file holds it.

    Args:
        stage: prefill or decode.
        engine: linear or vllm.
        fingerprint: of the machine.
        versions: of what the fingerprint does not name: slidesparse, vllm.
        settings: the options of the command, and what was timed.
        models: by name as it was given, the sizes that its config.json says.
        interrupted: whether it ended early, by hand.
        sessions: in their order.
        ran: what engines said that they had built; cells refer to it.
        cells: in the order of the sweep.
        commit: of the last session's source, "unknown" outside a checkout.
        version: of the package.
        created: UTC time of writing in ISO 8601.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    stage: Stage
    engine: Name
    fingerprint: Machine
    versions: dict[Name, Text]
    settings: dict[Name, Any]
    models: dict[Name, Text]
    interrupted: bool
    sessions: tuple[Session, ...]
    ran: tuple[dict[Name, Text], ...]
    cells: tuple[Cell, ...]
    commit: Text = ""
    version: Text = __version__
    created: Text = ""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """What is compared within itself, in order."""
        return tuple(dict.fromkeys(cell.block for cell in self.cells))

    def of(self, block: Block) -> list[Cell]:
        """The cells of one block."""
        return [cell for cell in self.cells if cell.block == block]


FORM = RecordForm(KIND, SweepRecord)
read_json, write_json = FORM.read, FORM.write
