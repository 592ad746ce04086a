"""What a load benchmark has measured so far: begun anew, or taken over from a file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slidesparse.bench.counters.job import Load, LoadFound, LoadKey, load_key
from slidesparse.bench.counters.record import CountersRecord, LoadCell, LoadFigures
from slidesparse.bench.result_file import source_commit
from slidesparse.bench.sweep.book import model_sizes
from slidesparse.bench.sweep.record import Session
from slidesparse.bench.sweep.runner import EngineKind, Failure, Outcome, TurnRunner
from slidesparse.candidate import timestamp
from slidesparse.devices import Fingerprint
from slidesparse.errors import SearchError
from slidesparse.models import ModelSpec

FIXED = (
    *("tp", "prompt", "max_tokens", "seconds", "settle", "sample_ms", "counter_source"),
    *("seed", "device"),
)
"""Settings that all cells of a file share; models, dtypes, concurrencies and modes may be added."""

LISTS = ("models", "dtypes", "concurrency", "modes")


LOAD_ENGINE = EngineKind(
    factory="slidesparse.bench.counters.vllm:LoadEngine",
    stock="vLLM as it is, without the plug-in",
    timed="tokens that requests get, in a closed loop",
    children=True,
    cell="C",
)
"""What runs in each process."""


class LoadRunner(TurnRunner[LoadFound]):
    """Runs the processes of a load benchmark on one device."""

    def check(self, found: object, m: int) -> LoadFound:
        """What an engine gave, if a record can hold it.

        Raises:
            SearchError: it cannot, with the reason.
        """
        if not isinstance(found, LoadFound) or found.concurrency != m:
            raise SearchError(f"the engine gave no figures of C={m} but {str(found)[:200]}")
        try:
            LoadFigures.of(found)
        except (ValueError, ArithmeticError) as error:
            raise SearchError(f"the engine gave figures that cannot be: {error}") from error
        return found


@dataclass(frozen=True)
class LoadHeading:
    """What the cells of a file have in common.

    Args:
        load: what is measured.
        device: on which it runs, as torch spells it.
        fingerprint: of the machine.
        versions: of what the fingerprint does not name.
        specs: sizes of the models by their names.
    """

    load: Load
    device: str
    fingerprint: Fingerprint
    versions: Mapping[str, str]
    specs: Mapping[str, ModelSpec]

    @property
    def settings(self) -> dict[str, Any]:
        """As a result file holds them."""
        it = self.load
        return {
            "models": list(it.models),
            "dtypes": [str(dtype) for dtype in it.dtypes],
            "concurrency": sorted(it.concurrencies),
            "modes": [str(mode) for mode in it.modes],
            "tp": it.tp,
            "prompt": it.prompt,
            "max_tokens": it.outputs,
            "seconds": it.seconds,
            "settle": it.settle,
            "sample_ms": it.sample_ms,
            "counter_source": str(it.source),
            "seed": it.seed,
            "device": self.device,
        }

    @property
    def sizes(self) -> dict[str, str]:
        """The sizes of each model in one line: two folders of one name may hold two models."""
        return {name: model_sizes(spec, self.load.tp) for name, spec in self.specs.items()}

    def differences(self, record: CountersRecord) -> list[str]:
        """Why a file's cells cannot stand beside these, one line each; none if they can."""
        here: dict[str, Any] = {}
        there: dict[str, Any] = {}
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


class LoadBook:
    """Takes the outcomes of a load benchmark and gives its record at any time.

    Args:
        heading: of the benchmark.
        before: record of its earlier sessions, None for a new one.

    Attributes:
        heading: as it was given.
    """

    def __init__(self, heading: LoadHeading, before: CountersRecord | None = None) -> None:
        """Begin a session."""
        self.heading = heading
        self._cells: dict[LoadKey, LoadCell] = {}
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
        self._begun, self._started, self._commit = time.monotonic(), timestamp(), source_commit()

    @property
    def measured(self) -> tuple[LoadKey, ...]:
        """The cells that have figures."""
        return tuple(key for key, cell in self._cells.items() if cell.figures is not None)

    def add(self, outcome: Outcome[LoadFound]) -> LoadCell:
        """Take what became of a cell; it replaces what was known of it."""
        key, found = load_key(outcome.key), outcome.found
        failed = found if isinstance(found, Failure) else None
        cell = LoadCell(
            *key,
            session=len(self._sessions),
            ran=self._index(outcome.ran),
            figures=None if isinstance(found, Failure) else LoadFigures.of(found),
            failure=failed.kind if failed else None,
            reason=failed.reason if failed else "",
        )
        self._cells[key] = cell
        return cell

    def record(self, interrupted: bool) -> CountersRecord:
        """All that is known now.

        Args:
            interrupted: whether cells are missing because the run was stopped by hand.
        """
        seconds = time.monotonic() - self._begun
        order = list(dict.fromkeys((it.model, it.dtype, it.mode) for it in self._cells.values()))
        cells = sorted(
            self._cells.values(),
            key=lambda it: (order.index((it.model, it.dtype, it.mode)), it.concurrency),
        )
        return CountersRecord(
            fingerprint=self.heading.fingerprint,
            versions=dict(self.heading.versions),
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
