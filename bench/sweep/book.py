"""What a sweep has measured so far: begun anew, or taken over from a file of equal settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from slidesparse.bench.sweep.cells import CellsBook, CellsHeading
from slidesparse.bench.sweep.job import CellTime, Stage, System
from slidesparse.bench.sweep.plan import Block, Key, Sweep
from slidesparse.bench.sweep.record import Cell, Figures, SweepRecord
from slidesparse.bench.sweep.runner import ENGINES, Failure, Outcome
from slidesparse.models import int32_overflows
from slidesparse.problem import INT32_MAX


@dataclass(frozen=True)
class Heading(CellsHeading[SweepRecord]):
    """What a sweep's cells have in common.

    Args:
        device: on which it runs, as torch spells it.
        fingerprint: of the machine.
        versions: of what the fingerprint does not name.
        specs: sizes of the models by their names.
        cards: UUIDs of the GPUs, empty on a CPU.
        sweep: what it compares.
        engine: linear or vllm.
        stock: what the baseline is.
        timed: what a step holds.
    """

    FIXED: ClassVar = ("tp", "repeats", "seed", "device")
    LISTS: ClassVar = ("models", "dtypes", "patterns", "m", "modes")

    sweep: Sweep
    engine: str
    stock: str
    timed: str

    @property
    def settings(self) -> dict[str, Any]:
        """As a result file holds them."""
        it = self.sweep
        return {
            "models": list(it.models),
            "dtypes": [str(dtype) for dtype in it.dtypes],
            "patterns": [str(pattern) for pattern in it.patterns],
            "m": list(it.ms),
            "modes": [str(mode) for mode in it.modes],
            "tp": it.tp,
            "prompt": it.prompt,
            "outputs": it.outputs,
            "repeats": it.repeats,
            "seed": it.seed,
            "same_weights": it.same_weights,
            "device": self.device,
            "stock": self.stock,
            "timed": self.timed,
        }

    def besides(self, record: SweepRecord) -> dict[str, tuple[Any, Any]]:
        """Stage and engine, and how long requests are where the engine has any."""
        found: dict[str, tuple[Any, Any]] = {
            "stage": (str(self.sweep.stage), str(record.stage)),
            "engine": (self.engine, record.engine),
        }
        if ENGINES[self.engine].requests:
            found["prompt"] = self.sweep.prompt, record.settings.get("prompt")
            if self.sweep.stage is Stage.DECODE:
                found["outputs"] = self.sweep.outputs, record.settings.get("outputs")
        return found


class SweepBook(CellsBook[Heading, Key, Cell]):
    """Takes the outcomes of a sweep and gives its record at any time.

    Args:
        heading: of the sweep.
        before: record of its earlier sessions, None for a new sweep.

    Attributes:
        heading: as it was given.
    """

    def __init__(self, heading: Heading, before: SweepRecord | None = None) -> None:
        """Begin a session."""
        super().__init__(heading, before)
        if before is not None and before.settings.get("same_weights"):
            self._settings["same_weights"] = True

    def add(self, outcome: Outcome[CellTime]) -> Cell:
        """Take what became of a cell; it replaces what was known of it."""
        key, found = outcome.key, outcome.found
        if isinstance(found, Failure):
            figures, wide = None, self._passes_int32(key)
        else:
            figures, wide = Figures.of(found), found.largest > INT32_MAX
        return self._keep(
            Cell(
                *key.block,
                system=key.variant.system,
                pattern=key.variant.pattern,
                again=key.again,
                m=key.m,
                wide=wide,
                figures=figures,
                **self._tail(outcome.ran, found),
            )
        )

    def record(self, interrupted: bool) -> SweepRecord:
        """All that is known now.

        Args:
            interrupted: whether cells are missing because the sweep was stopped by hand.
        """
        cells = list(self._cells.values())
        blocks = list(dict.fromkeys(cell.block for cell in cells))
        cells.sort(key=lambda cell: _order(cell, blocks))
        return SweepRecord(
            stage=self.heading.sweep.stage,
            engine=self.heading.engine,
            cells=tuple(cells),
            **self._shared(interrupted),
        )

    def _passes_int32(self, key: Key) -> bool:
        """Whether the model's sizes say so, where no engine could."""
        spec = self.heading.specs[key.block.model]
        lifted = key.variant.pattern if key.variant.system is System.OURS else None
        patterns = () if lifted is None else (lifted,)
        return bool(int32_overflows(spec.linears(self.heading.sweep.tp), (key.m,), patterns))


def _order(cell: Cell, blocks: list[Block]) -> tuple[int | bool, ...]:
    """As a sweep runs: stock, by pattern stock on its weights and ours, stock again."""
    ours = cell.system is System.OURS
    first = not ours and cell.pattern.dense
    return (blocks.index(cell.block), cell.again, not first, cell.pattern.block, ours, cell.m)
