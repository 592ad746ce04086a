"""Which processes a sweep runs, in which order, and which of their cells are still to be measured.

Stock comes first and once more at the end, ours in between, for each (model, dtype, mode): what
the machine drifts meanwhile shows as a difference between the two.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Generic, NamedTuple, Protocol, TypeVar

from slidesparse.bench.sweep.job import Job, Mode, Stage, System, Variant
from slidesparse.pattern import Pattern
from slidesparse.problem import DType


class Block(NamedTuple):
    """What is compared with each other: everything else is equal in its cells.

    Args:
        model: a preset's name or a folder.
        dtype: FP8 or INT8.
        mode: eager or graphs.
    """

    model: str
    dtype: DType
    mode: Mode

    def __str__(self) -> str:
        """As a heading names it."""
        return f"{self.model} {self.dtype} {self.mode}"


class Key(NamedTuple):
    """One cell of a sweep.

    Args:
        block: what it is compared within.
        variant: whose linears run, on which weights.
        again: whether this is stock for the second time.
        m: tokens of a prefill step, or sequences of a decode step.
    """

    block: Block
    variant: Variant
    again: bool
    m: int

    @property
    def comparison(self) -> Block:
        """What one GPU has to measure all of."""
        return self.block

    @property
    def label(self) -> str:
        """The variant as tables print it."""
        return f"{self.variant} again" if self.again else str(self.variant)

    def __str__(self) -> str:
        """One line for messages."""
        return f"{self.block} {self.label} M={self.m}"


@dataclass(frozen=True)
class Turn:
    """One process of a sweep.

    Args:
        job: what it measures.
        again: whether this is stock for the second time.
    """

    job: Job
    again: bool = False

    @property
    def block(self) -> Block:
        """What its cells are compared within."""
        return Block(self.job.model, self.job.dtype, self.job.mode)

    @property
    def keys(self) -> tuple[Key, ...]:
        """Its cells, in the order in which they are measured."""
        return tuple(self.key(m) for m in self.job.ms)

    def key(self, m: int) -> Key:
        """One of its cells."""
        return Key(self.block, self.job.variant, self.again, m)

    def with_ms(self, ms: Iterable[int]) -> Turn:
        """The same for other M."""
        return replace(self, job=replace(self.job, ms=tuple(ms)))

    def __str__(self) -> str:
        """One line for messages."""
        name = f"{self.block} {self.job.variant}"
        return f"{name} again" if self.again else name


@dataclass(frozen=True)
class Sweep:
    """All that one sweep compares.

    Args:
        stage: prefill or decode.
        models: presets' names or folders.
        dtypes: FP8, INT8 or both.
        patterns: of ours.
        ms: tokens of a prefill step, or sequences of a decode step.
        modes: eager, graphs or both.
        tp: tensor-parallel size.
        prompt: tokens of one prompt.
        outputs: tokens that each sequence of a decode cell generates.
        repeats: samples of each cell.
        seed: of weights and tokens.
        same_weights: whether stock runs on the weights of each pattern, too. That baseline is
            harder: a GPU at its power limit runs faster on zeros.
    """

    stage: Stage
    models: tuple[str, ...]
    dtypes: tuple[DType, ...]
    patterns: tuple[Pattern, ...]
    ms: tuple[int, ...]
    modes: tuple[Mode, ...]
    tp: int
    prompt: int
    outputs: int
    repeats: int
    seed: int
    same_weights: bool

    def turns(self) -> tuple[Turn, ...]:
        """All its processes, in order."""
        return tuple(
            turn
            for model in self.models
            for dtype in self.dtypes
            for mode in self.modes
            for turn in self._block(model, dtype, mode)
        )

    def _block(self, model: str, dtype: DType, mode: Mode) -> Iterator[Turn]:
        stock = Variant(System.STOCK)
        yield Turn(self._job(model, dtype, mode, stock))
        for pattern in self.patterns:
            if self.same_weights and not pattern.dense:
                yield Turn(self._job(model, dtype, mode, Variant(System.STOCK, pattern)))
            yield Turn(self._job(model, dtype, mode, Variant(System.OURS, pattern)))
        yield Turn(self._job(model, dtype, mode, stock), again=True)

    def _job(self, model: str, dtype: DType, mode: Mode, variant: Variant) -> Job:
        # The largest M comes last. One that runs out of memory takes its process along: by then
        # all smaller ones are measured, and none of them needs another process.
        ms = tuple(sorted(self.ms))
        tail = (self.prompt, self.outputs, self.repeats, self.seed)
        return Job(self.stage, model, self.tp, dtype, variant, mode, ms, *tail)


class Compared(Hashable, Protocol):
    """Names a cell that is compared with others."""

    @property
    def comparison(self) -> Hashable:
        """What it is compared within; one GPU has to measure all of that."""


K = TypeVar("K", bound=Compared)


@dataclass(frozen=True)
class Known(Generic[K]):
    """What earlier sessions left.

    Args:
        measured: cells that have a time.
        elsewhere: those of them that another GPU has measured.
        settled: cells that failed for good.
    """

    measured: Set[K]
    elsewhere: Set[K] = frozenset()
    settled: Set[K] = frozenset()

    def done(self, asked: Iterable[K]) -> set[K]:
        """The cells that need no other run.

        Boards of a kind differ, so a comparison that another GPU has begun starts anew here. One
        that is complete stays as it is; what failed there for good is not tried on another board.

        Args:
            asked: every cell of the run.
        """
        compared: dict[Hashable, set[K]] = {}
        for key in asked:
            compared.setdefault(key.comparison, set()).add(key)
        found: set[K] = set()
        for wanted in compared.values():
            kept = self.measured
            if wanted & self.elsewhere:
                whole = self.measured | self.settled
                kept = whole if wanted <= whole else self.measured - self.elsewhere
            found |= wanted & kept
        return found


def due(turns: Sequence[Turn], known: Known[Key]) -> tuple[Turn, ...]:
    """What is left of a sweep.

    Where a cell is measured later than stock was, stock is measured again after it: otherwise a
    drift between two sessions would not show.

    Args:
        turns: of the whole sweep, in order.
        known: of its cells.
    """
    left, done = [], known.done(key for turn in turns for key in turn.keys)
    for _, group in groupby(turns, key=lambda turn: turn.block):
        late: set[int] = set()
        for turn in group:
            fresh = late if turn.again else set()
            ms = [m for m in turn.job.ms if turn.key(m) not in done or m in fresh]
            late.update(ms)
            if ms:
                left.append(turn.with_ms(ms))
    return tuple(left)
