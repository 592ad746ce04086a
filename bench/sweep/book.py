"""What a sweep has measured so far: begun anew, or taken over from a file of equal settings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slidesparse.bench.result_file import source_commit
from slidesparse.bench.sweep.job import CellTime, System
from slidesparse.bench.sweep.plan import Block, Key, Sweep
from slidesparse.bench.sweep.record import Cell, Figures, Session, SweepRecord
from slidesparse.bench.sweep.runner import Failure, Outcome
from slidesparse.candidate import timestamp
from slidesparse.devices import Fingerprint
from slidesparse.models import ModelSpec, int32_overflows
from slidesparse.problem import INT32_MAX

FIXED = ("tp", "prompt", "outputs", "repeats", "seed", "device")
"""Settings that all cells of a file share; models, dtypes, patterns, M and modes may be added."""

LISTS = ("models", "dtypes", "patterns", "m", "modes")


@dataclass(frozen=True)
class Heading:
    """What a sweep's cells have in common.

    Args:
        sweep: what it compares.
        engine: linear or vllm.
        device: on which it runs, as torch spells it.
        fingerprint: of the machine.
        versions: of what the fingerprint does not name.
        specs: sizes of the models by their names.
        stock: what the baseline is.
        timed: what a step holds.
    """

    sweep: Sweep
    engine: str
    device: str
    fingerprint: Fingerprint
    versions: Mapping[str, str]
    specs: Mapping[str, ModelSpec]
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

    @property
    def sizes(self) -> dict[str, str]:
        """The sizes of each model in one line: two folders of one name may hold two models."""
        return {name: model_sizes(spec, self.sweep.tp) for name, spec in self.specs.items()}

    def differences(self, record: SweepRecord) -> list[str]:
        """Why a file's cells cannot be compared with this sweep's, one line each; none if so."""
        here: dict[str, Any] = {"stage": str(self.sweep.stage), "engine": self.engine}
        there: dict[str, Any] = {"stage": str(record.stage), "engine": record.engine}
        for name in FIXED:
            here[name], there[name] = self.settings[name], record.settings.get(name)
        versions = {**dict.fromkeys(record.versions, "none"), **self.versions}
        for name, version in versions.items():
            here[name], there[name] = version, record.versions.get(name, "none")
        for name in self.sizes.keys() & record.models.keys():
            here[name], there[name] = self.sizes[name], record.models[name]
        lines = [
            f"{name} {value} here, {there[name]} there"
            for name, value in here.items()
            if value != there[name]
        ]
        return [*self.fingerprint.differences(record.fingerprint), *lines]


class SweepBook:
    """Takes the outcomes of a sweep and gives its record at any time.

    Args:
        heading: of the sweep.
        before: record of its earlier sessions, None for a new sweep.

    Attributes:
        heading: as it was given.
    """

    def __init__(self, heading: Heading, before: SweepRecord | None = None) -> None:
        """Begin a session."""
        self.heading = heading
        self._cells: dict[Key, Cell] = {}
        self._ran: list[dict[str, str]] = []
        self._sessions: tuple[Session, ...] = ()
        self._settings, self._models = heading.settings, heading.sizes
        if before is not None:
            self._cells = {cell.key: cell for cell in before.cells}
            self._ran = [dict(ran) for ran in before.ran]
            self._sessions = before.sessions
            self._models = {**before.models, **self._models}
            for name in LISTS:
                both = [*before.settings.get(name, ()), *self._settings[name]]
                self._settings[name] = list(dict.fromkeys(both))
            if before.settings.get("same_weights"):
                self._settings["same_weights"] = True
        self._begun, self._started, self._commit = time.monotonic(), timestamp(), source_commit()

    @property
    def measured(self) -> tuple[Key, ...]:
        """The cells that have a time."""
        return tuple(key for key, cell in self._cells.items() if cell.figures is not None)

    def add(self, outcome: Outcome[CellTime]) -> Cell:
        """Take what became of a cell; it replaces what was known of it."""
        key, found = outcome.key, outcome.found
        if isinstance(found, Failure):
            figures, failed, wide = None, found, self._passes_int32(key)
        else:
            figures, failed, wide = Figures.of(found), None, found.largest > INT32_MAX
        cell = Cell(
            *key.block,
            system=key.variant.system,
            pattern=key.variant.pattern,
            again=key.again,
            m=key.m,
            wide=wide,
            session=len(self._sessions),
            ran=self._index(outcome.ran),
            figures=figures,
            failure=failed.kind if failed else None,
            reason=failed.reason if failed else "",
        )
        self._cells[key] = cell
        return cell

    def record(self, interrupted: bool) -> SweepRecord:
        """All that is known now.

        Args:
            interrupted: whether cells are missing because the sweep was stopped by hand.
        """
        it, seconds = self.heading, time.monotonic() - self._begun
        cells = list(self._cells.values())
        blocks = list(dict.fromkeys(cell.block for cell in cells))
        cells.sort(key=lambda cell: _order(cell, blocks))
        return SweepRecord(
            stage=it.sweep.stage,
            engine=it.engine,
            fingerprint=it.fingerprint,
            versions=dict(it.versions),
            settings=self._settings,
            models=self._models,
            interrupted=interrupted,
            sessions=(*self._sessions, Session(self._started, self._commit, seconds)),
            ran=tuple(self._ran),
            cells=tuple(cells),
            commit=self._commit,
            created=timestamp(),
        )

    def _index(self, ran: Mapping[str, str]) -> int | None:
        if not ran:
            return None
        plain = {name[:256]: text[:16384] for name, text in ran.items()}
        if plain not in self._ran:
            self._ran.append(plain)
        return self._ran.index(plain)

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


def model_sizes(spec: ModelSpec, tp: int) -> str:
    """The sizes of a model's linears in one line."""
    layers = "; ".join(f"{it.name} {it.n}x{it.k} x{it.count}" for it in spec.linears(tp))
    return f"{spec.architecture} hidden {spec.hidden}: {layers}"[:16000]
