"""What a load benchmark has measured so far: begun anew, or taken over from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from slidesparse.bench.counters.job import Load, LoadFound, LoadKey, load_key
from slidesparse.bench.counters.record import CountersRecord, LoadCell, LoadFigures
from slidesparse.bench.sweep.cells import CellsBook, CellsHeading
from slidesparse.bench.sweep.runner import EngineKind, Failure, Outcome, TurnRunner
from slidesparse.errors import SearchError

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
class LoadHeading(CellsHeading[CountersRecord]):
    """What the cells of a file have in common.

    Args:
        device: on which they are measured, as torch spells it.
        fingerprint: of the machine.
        versions: of what the fingerprint does not name.
        specs: sizes of the models by their names.
        cards: UUIDs of the GPUs, empty on a CPU.
        load: what is measured.
    """

    FIXED: ClassVar = (
        *("tp", "prompt", "max_tokens", "seconds", "settle", "sample_ms", "counter_source"),
        *("seed", "device"),
    )
    LISTS: ClassVar = ("models", "dtypes", "concurrency", "modes")

    load: Load

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


class LoadBook(CellsBook[LoadHeading, LoadKey, LoadCell]):
    """Takes the outcomes of a load benchmark and gives its record at any time.

    Args:
        heading: of the benchmark.
        before: record of its earlier sessions, None for a new one.

    Attributes:
        heading: as it was given.
    """

    def add(self, outcome: Outcome[LoadFound]) -> LoadCell:
        """Take what became of a cell; it replaces what was known of it."""
        found = outcome.found
        return self._keep(
            LoadCell(
                *load_key(outcome.key),
                figures=None if isinstance(found, Failure) else LoadFigures.of(found),
                **self._tail(outcome.ran, found),
            )
        )

    def record(self, interrupted: bool) -> CountersRecord:
        """All that is known now.

        Args:
            interrupted: whether cells are missing because the run was stopped by hand.
        """
        order = list(dict.fromkeys((it.model, it.dtype, it.mode) for it in self._cells.values()))
        cells = sorted(
            self._cells.values(),
            key=lambda it: (order.index((it.model, it.dtype, it.mode)), it.concurrency),
        )
        return CountersRecord(cells=tuple(cells), **self._shared(interrupted))
