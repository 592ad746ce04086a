"""One run of `slidesparse bench agreement`: every checkpoint in stock vLLM and in ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from slidesparse._version import __version__
from slidesparse.bench.accuracy.record import text_source
from slidesparse.bench.agreement.numbers import Scores, compare
from slidesparse.bench.agreement.plan import AgreementOptions, Prepared, prepare, warm
from slidesparse.bench.agreement.record import (
    AgreementRecord,
    CheckpointAgreement,
    MixedRequests,
    Pair,
    Served,
)
from slidesparse.bench.agreement.requests import compare_sequences
from slidesparse.bench.agreement.vllm import FACTORY, Answered, Built, Task
from slidesparse.bench.sweep.job import Mode, System
from slidesparse.bench.sweep.runner import BUILD_TIMEOUT, explain
from slidesparse.errors import SlideSparseError
from slidesparse.worker import Worker

if TYPE_CHECKING:
    from slidesparse.devices import Device, Fingerprint


class AgreementRun:
    """Runs the command; what was measured is kept at any end.

    Args:
        options: of the command.
        device: on which vLLM runs.
        fingerprint: of that device.
        notify: told in one line what begins.
        factory: of the engine, for a worker.
    """

    def __init__(
        self,
        options: AgreementOptions,
        device: Device,
        fingerprint: Fingerprint,
        notify: Callable[[str], None] = lambda text: None,
        factory: str = FACTORY,
    ) -> None:
        """Nothing is read yet."""
        self.options, self.device, self.fingerprint = options, device, fingerprint
        self.notify, self._factory = notify, factory
        self._start = time.monotonic()
        self._scored = 0
        self._served: dict[Path, list[Served]] = {}
        self._scores: dict[tuple[Path, System, Mode], Scores] = {}

    def prepare(self) -> tuple[Prepared, ...]:
        """Read the text and the headers of every checkpoint, so that what is wrong is found first.

        Raises:
            SlideSparseError: a checkpoint or the text cannot be used; says why.
        """
        prepared = tuple(prepare(self.options, folder) for folder in self.options.folders)
        self._scored = sum(scored for _, scored in prepared[0].windows)
        return prepared

    def run(self, prepared: Sequence[Prepared]) -> Iterator[Served]:
        """Run every checkpoint in every mode in both systems, each in a process of its own.

        Yields:
            What became of each vLLM.
        """
        for it in prepared:
            warm(it.folder)
            for mode, system in product(self.options.modes, (System.STOCK, System.OURS)):
                served = self._serve(it, system, mode)
                self._served.setdefault(it.folder, []).append(served)
                yield served

    def record(self, interrupted: bool) -> AgreementRecord:
        """What there is so far, as the result file holds it."""
        options = self.options
        versions = {"slidesparse": __version__}
        try:
            versions["vllm"] = version_of("vllm")
        except PackageNotFoundError:
            versions["vllm"] = "unknown"
        return AgreementRecord(
            fingerprint=self.fingerprint,
            versions=versions,
            settings={**options.plain(), "device": str(self.device)},
            limits=options.limits,
            text=text_source(options.text, self._scored),
            checkpoints=tuple(
                CheckpointAgreement(folder.name, tuple(served), self._pairs(folder, served))
                for folder, served in self._served.items()
            ),
            seconds=time.monotonic() - self._start,
            interrupted=interrupted,
        ).stamped()

    def _serve(self, it: Prepared, system: System, mode: Mode) -> Served:
        """One vLLM, in a process of its own; what fails there is part of the result."""
        options = self.options
        task = Task(str(it.folder), system, mode, options.tp, it.longest, options.seed)
        worker = Worker(self.device, self._factory, task, children=True)
        name = f"{it.folder.name}: {system}, {mode}"
        built: Built | None = None
        scores, requests = Scores(), None
        failure, reason = None, ""
        try:
            self.notify(f"{name}: loading")
            built = worker.call("build", timeout=BUILD_TIMEOUT)
            self.notify(f"{name}: scoring {len(it.windows)} windows")
            scores = worker.call("score", it.windows, timeout=options.timeout)
            self._scores[it.folder, system, mode] = scores
            if it.requests and mode is options.modes[0]:
                self.notify(f"{name}: {len(it.requests)} mixed requests")
                requests = self._mixed(worker, it)
        except SlideSparseError as error:
            failed = explain(error)
            failure, reason = failed.kind, failed.reason
        except BaseException:
            # Ctrl-C: what runs is not waited for.
            worker.cancel()
            raise
        finally:
            worker.stop()
        return Served(
            system=system,
            mode=mode,
            ran={} if built is None else dict(built.ran),
            load_s=None if built is None else built.load_s,
            start_s=None if built is None else built.start_s,
            tokens=len(scores),
            loss=scores.loss if len(scores) else None,
            requests=requests,
            failure=failure,
            reason=reason,
        )

    def _mixed(self, worker: Worker, it: Prepared) -> MixedRequests:
        timeout = self.options.timeout
        found: Answered = worker.call("together", it.requests, timeout=timeout)
        alone = worker.call("alone", it.alone, timeout=timeout)
        compared = compare_sequences(found.answers, alone)
        first = min(found.broken, default=None)
        return MixedRequests(
            count=len(it.requests),
            aborted=found.aborted,
            broken=len(found.broken),
            reason="" if first is None else f"request {first} {found.broken[first]}",
            compared=compared.compared,
            differing=compared.differing,
        )

    def _pairs(self, folder: Path, served: Sequence[Served]) -> tuple[Pair, ...]:
        """Ours against stock in each mode, then graphs against eager of each."""
        stock, ours, modes = System.STOCK, System.OURS, self.options.modes
        wanted = [((stock, mode), (ours, mode)) for mode in modes]
        if len(modes) > 1:
            one, other = Mode.EAGER, Mode.GRAPHS
            wanted += [((system, one), (system, other)) for system in (stock, ours)]
        by_key = {(it.system, it.mode): it for it in served}
        return tuple(
            Pair.of(
                by_key[reference],
                by_key[other],
                compare(self._scores[(folder, *reference)], self._scores[(folder, *other)]),
            )
            for reference, other in wanted
            if (folder, *reference) in self._scores and (folder, *other) in self._scores
            if reference in by_key and other in by_key
        )
