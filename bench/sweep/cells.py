"""What books of measured cells share: settings that have to be equal, cells taken over, sessions.

A book begins anew or takes over the file of an earlier run; sweeps and load benchmarks keep one.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypedDict, TypeVar

from slidesparse.bench.result_file import source_commit
from slidesparse.bench.sweep.plan import Compared, Known
from slidesparse.bench.sweep.record import PlacedCell, Session
from slidesparse.bench.sweep.runner import Failure, Kind
from slidesparse.candidate import timestamp
from slidesparse.devices import Fingerprint
from slidesparse.models import ModelSpec

K = TypeVar("K", bound=Compared)
K_co = TypeVar("K_co", bound=Hashable, covariant=True)


class AnyCell(PlacedCell, Protocol[K_co]):
    """One cell of a result file, measured or failed."""

    @property
    def key(self) -> K_co:
        """What it is a cell of."""

    @property
    def failure(self) -> Kind | None:
        """How it failed, None where it was measured."""

    @property
    def reason(self) -> str:
        """Why it failed, "" where it was measured."""


SETTLED = (Kind.MEMORY, Kind.ERROR)
"""Failures that are there again each time, unlike a crash, a hang or a budget."""

C = TypeVar("C", bound=AnyCell[Any])
C_co = TypeVar("C_co", bound=AnyCell[Any], covariant=True)


class CellsRecord(Protocol[C_co]):
    """A result file of cells that several sessions measured."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the machine."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Of what the fingerprint does not name."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The options of the command."""

    @property
    def models(self) -> Mapping[str, str]:
        """The sizes of each model in one line."""

    @property
    def sessions(self) -> tuple[Session, ...]:
        """In their order."""

    @property
    def ran(self) -> Sequence[Mapping[str, str]]:
        """What engines said that they had built; cells refer to it."""

    @property
    def cells(self) -> tuple[C_co, ...]:
        """In the order in which they are measured."""

    @property
    def failed(self) -> tuple[C_co, ...]:
        """The cells that have no figures."""


R = TypeVar("R", bound=CellsRecord[Any])


@dataclass(frozen=True)
class CellsHeading(ABC, Generic[R]):
    """What the cells of a file have in common.

    Args:
        device: on which they are measured, as torch spells it.
        fingerprint: of the machine.
        versions: of what the fingerprint does not name.
        specs: sizes of the models by their names.
        cards: UUIDs of the GPUs, empty on a CPU.
    """

    FIXED: ClassVar[tuple[str, ...]]
    """Settings that all cells of a file share."""

    LISTS: ClassVar[tuple[str, ...]]
    """Settings that a later session may add to."""

    device: str
    fingerprint: Fingerprint
    versions: Mapping[str, str]
    specs: Mapping[str, ModelSpec]
    cards: tuple[str, ...]

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """As a result file holds them; `tp` is one of them."""

    @property
    def sizes(self) -> dict[str, str]:
        """The sizes of each model in one line: two folders of one name may hold two models."""
        tp = self.settings["tp"]
        return {name: _model_sizes(spec, tp) for name, spec in self.specs.items()}

    def besides(self, record: R) -> dict[str, tuple[Any, Any]]:
        """What else has to be equal, here and in the file, by name."""
        return {}

    def differences(self, record: R) -> list[str]:
        """Why a file's cells cannot stand beside these, one line each; none if they can."""
        pairs, settings, sizes = self.besides(record), self.settings, self.sizes
        for name in self.FIXED:
            pairs[name] = settings[name], record.settings.get(name)
        for name, version in {**dict.fromkeys(record.versions, "none"), **self.versions}.items():
            pairs[name] = version, record.versions.get(name, "none")
        for name in sizes.keys() & record.models.keys():
            pairs[name] = sizes[name], record.models[name]
        lines = [
            f"{name} {here} here, {there} there"
            for name, (here, there) in pairs.items()
            if here != there
        ]
        return [*self.fingerprint.differences(record.fingerprint), *lines]


H = TypeVar("H", bound=CellsHeading[Any])


class Shared(TypedDict):
    """What the records of all books hold, by the names of their fields."""

    fingerprint: Fingerprint
    versions: dict[str, str]
    settings: dict[str, Any]
    models: dict[str, str]
    interrupted: bool
    sessions: tuple[Session, ...]
    ran: tuple[dict[str, str], ...]
    commit: str
    created: str


class Tail(TypedDict):
    """What the cells of all books hold besides their keys and figures."""

    session: int
    ran: int | None
    failure: Kind | None
    reason: str


class CellsBook(Generic[H, K, C]):
    """Keeps the newest of each cell, over all sessions of a file.

    Args:
        heading: of the cells.
        before: record of earlier sessions, None for a new file.

    Attributes:
        heading: as it was given.
    """

    def __init__(self, heading: H, before: CellsRecord[C] | None = None) -> None:
        """Begin a session."""
        self.heading = heading
        self._cells: dict[K, C] = {}
        self._ran: list[dict[str, str]] = []
        self._sessions: tuple[Session, ...] = ()
        self._settings, self._models = heading.settings, heading.sizes
        if before is not None:
            self._cells = {cell.key: cell for cell in before.cells}
            self._ran = [dict(ran) for ran in before.ran]
            self._sessions = before.sessions
            self._models = {**before.models, **self._models}
            for name in heading.LISTS:
                both = [*before.settings.get(name, ()), *self._settings[name]]
                self._settings[name] = list(dict.fromkeys(both))
        self._begun, self._started, self._commit = time.monotonic(), timestamp(), source_commit()

    @property
    def measured(self) -> tuple[K, ...]:
        """The cells that have figures."""
        return tuple(key for key, cell in self._cells.items() if cell.figures is not None)

    @property
    def known(self) -> Known[K]:
        """What says which cells are due."""
        settled = {key for key, cell in self._cells.items() if cell.failure in SETTLED}
        return Known(set(self.measured), set(self.elsewhere), settled)

    @property
    def elsewhere(self) -> tuple[K, ...]:
        """The cells that have figures of other GPUs: two boards of a kind differ by per cents."""
        cards = [session.cards for session in self._sessions] + [self.heading.cards]
        here = set(self.heading.cards)
        return tuple(key for key in self.measured if set(cards[self._cells[key].session]) != here)

    def replaced_by(self, due: Iterable[K]) -> tuple[K, ...]:
        """The cells of other GPUs that go once a cell of their comparison is measured here.

        Args:
            due: cells that are going to be measured.
        """
        compared = {key.comparison for key in due}
        return tuple(key for key in self.elsewhere if key.comparison in compared)

    def _keep(self, cell: C) -> C:
        """Replace what was known of the cell, and what it cannot stand beside once it has figures.

        Not before: until then the file holds what it held, for a cell that was not reached too.
        """
        if cell.failure is Kind.BUDGET and cell.key in self.elsewhere:
            return cell
        if cell.figures is not None:
            for key in self.replaced_by([cell.key]):
                del self._cells[key]
        self._cells[cell.key] = cell
        return cell

    def _tail(self, ran: Mapping[str, str], found: object) -> Tail:
        """Which session and build a cell is of, and why it failed if it did."""
        failed = found if isinstance(found, Failure) else None
        return Tail(
            session=len(self._sessions),
            ran=self._index(ran),
            failure=failed.kind if failed else None,
            reason=failed.reason if failed else "",
        )

    def _shared(self, interrupted: bool) -> Shared:
        """What a record of all sessions until now holds besides its cells."""
        seconds = time.monotonic() - self._begun
        return Shared(
            fingerprint=self.heading.fingerprint,
            versions=dict(self.heading.versions),
            settings=self._settings,
            models=self._models,
            interrupted=interrupted,
            sessions=(
                *self._sessions,
                Session(self._started, self._commit, seconds, self.heading.cards),
            ),
            ran=tuple(self._ran),
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


def _model_sizes(spec: ModelSpec, tp: int) -> str:
    """The sizes of a model's linears in one line."""
    layers = "; ".join(f"{it.name} {it.n}x{it.k} x{it.count}" for it in spec.linears(tp))
    return f"{spec.architecture} hidden {spec.hidden}: {layers}"[:16000]
