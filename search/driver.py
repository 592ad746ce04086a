"""The search of many problems on one or several devices: order, reuse, budget, interruption."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Failure, ProblemResult, Provenance
from slidesparse.devices import Device
from slidesparse.errors import UsageError
from slidesparse.problem import GemmProblem
from slidesparse.search.backend import Effort
from slidesparse.search.backends import all_backends, default_backends, load_backend
from slidesparse.search.journal import Journal
from slidesparse.search.messages import Opening
from slidesparse.search.reuse import answers, current
from slidesparse.search.strategy import (
    OPEN_TIMEOUT,
    OutOfTime,
    ProblemSearch,
    ProblemSkipped,
    Tick,
)
from slidesparse.worker import (
    Worker,
    WorkerCancelled,
    WorkerDied,
    WorkerOutOfMemory,
    WorkerTimeout,
)

SESSION = "slidesparse.search.session:Session"
"""A string, so that this process needs no torch: what each worker makes at its start."""

CHALLENGERS = 2
"""Dense candidates that race against the sparse ones, on the pruned weight."""


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Args:
        effort: how many candidates and how long.
        budget_s: seconds for everything, or None.
        fresh: start over: neither cached results nor journals nor remembered failures count.
        backends: names or "module:Class" specs of those that take part; None for all that the
            device has.
        seed: of the random operands; None draws one.
    """

    effort: Effort = Effort.NORMAL
    budget_s: float | None = None
    fresh: bool = False
    backends: tuple[str, ...] | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Found:
    """A result and where it comes from."""

    result: ProblemResult
    provenance: Provenance


@dataclass
class Outcome:
    """What a search of many problems ended with.

    Args:
        found: results by problem.
        skipped: problems without one, with the reason.
        interrupted: whether it was stopped by hand.
        seconds: wall time.
        seed: of the random operands.
    """

    found: dict[GemmProblem, Found] = field(default_factory=dict)
    skipped: dict[GemmProblem, str] = field(default_factory=dict)
    interrupted: bool = False
    seconds: float = 0.0
    seed: int = 0


class Listener:
    """What a user interface overrides; calls come from one thread per device."""

    def started(self, problem: GemmProblem, device: Device) -> None:
        """A problem is being searched."""

    def tick(self, tick: Tick) -> None:
        """A candidate is about to be tried."""

    def finished(self, problem: GemmProblem, found: Found | None, reason: str) -> None:
        """A problem is through: with a result, or skipped for `reason`."""


class Search:
    """Search problems on devices of one Fingerprint and file the results.

    Args:
        problems: to search; the dense form of each is searched too, since it is the baseline.
        devices: one worker process each.
        cache: where results are looked up and filed.
        options: how to search.
    """

    def __init__(
        self,
        problems: Sequence[GemmProblem],
        devices: Sequence[Device],
        cache: TuningCache,
        options: SearchOptions,
    ) -> None:
        """Order the work; nothing starts before `run`."""
        self.devices, self.cache = list(devices), cache
        self._options = options
        self._listener = Listener()
        seed = secrets.randbelow(2**31) if options.seed is None else options.seed
        self.outcome = Outcome(seed=seed)
        self._specs = specs_for(options.backends, self.devices[0])
        self._backends = all_backends(self._specs)
        self._known = {backend.name: backend for backend in all_backends()}
        self._problems = with_baselines(problems)
        self._groups = deque(_groups(self._problems, dense=True))
        self._waiting = _groups(self._problems, dense=False)
        self._lock = threading.Condition()
        self._open_groups = len(self._groups)
        self._workers: list[Worker] = []
        self._left = sum(map(_weight, self._problems))
        self._error: BaseException | None = None

    @property
    def problems(self) -> tuple[GemmProblem, ...]:
        """All problems in the order of the tables, baselines included."""
        return tuple(self._problems)

    @property
    def backend_names(self) -> tuple[str, ...]:
        """The backends that take part."""
        return tuple(backend.name for backend in self._backends)

    def offers(self) -> dict[GemmProblem, Opening]:
        """List the candidates of every problem without running one (the dry run)."""
        worker = self._worker(self.devices[0])
        try:
            return {
                problem: worker.call("offer", problem, self._options.effort, timeout=OPEN_TIMEOUT)
                for problem in self._problems
            }
        finally:
            worker.stop()

    def run(self, listener: Listener | None = None) -> Outcome:
        """Search everything; Ctrl-C ends it with what is finished.

        Args:
            listener: told what happens.
        """
        self._listener = listener or self._listener
        start = time.monotonic()
        if self._options.budget_s is not None:
            self._deadline: float | None = start + self._options.budget_s
        else:
            self._deadline = None
        threads = [
            threading.Thread(target=self._serve, args=(self._worker(device),), daemon=True)
            for device in self.devices
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(timeout=0.2)
        except KeyboardInterrupt:
            self.outcome.interrupted = True
            self._cancel()
            with contextlib.suppress(KeyboardInterrupt):  # A second Ctrl-C only hurries it.
                for thread in threads:
                    thread.join(timeout=10.0)
        self.outcome.seconds = round(time.monotonic() - start, 3)
        if self._error is not None:
            raise self._error
        if self.outcome.interrupted:
            for problem in self._problems:
                if problem not in self.outcome.found and problem not in self.outcome.skipped:
                    self.outcome.skipped[problem] = "interrupted"
        return self.outcome

    def _worker(self, device: Device) -> Worker:
        worker = make_worker(device, self._specs, self.outcome.seed)
        self._workers.append(worker)
        return worker

    def _cancel(self) -> None:
        with self._lock:
            self._groups.clear()
            self._open_groups = 0
            self._lock.notify_all()
        for worker in self._workers:
            worker.cancel()

    def _serve(self, worker: Worker) -> None:
        """Take groups until none is left or can still come."""
        try:
            while (group := self._next_group()) is not None:
                for problem in group:
                    self._one(worker, problem)
                self._group_done(group)
        except WorkerCancelled:
            pass
        except BaseException as error:  # Raised again by `run`, in the main thread.
            self._error = error
            self._cancel()
        finally:
            worker.stop()

    def _next_group(self) -> list[GemmProblem] | None:
        with self._lock:
            # Below zero when a group ends after `_cancel` set it to none.
            while not self._groups and self._open_groups > 0:
                self._lock.wait()
            return self._groups.popleft() if self._groups else None

    def _group_done(self, group: Sequence[GemmProblem]) -> None:
        """A dense group lets the sparse groups of its shape start: they race against its best."""
        with self._lock:
            self._open_groups -= 1
            if group[0].pattern.dense:
                ready = [g for g in self._waiting if g[0].on_dense() in group]
                self._waiting = [g for g in self._waiting if g not in ready]
                # The same worker finds the data of this shape warm, so they go first.
                self._groups.extendleft(reversed(ready))
                self._open_groups += len(ready)
            self._lock.notify_all()

    def _one(self, worker: Worker, problem: GemmProblem) -> None:
        found = None if self._options.fresh else self._reusable(problem)
        reason = ""
        if found is None:
            try:
                found = Found(self._search(worker, problem), Provenance.MEASURED)
            except ProblemSkipped as error:
                reason = str(error)
            except OutOfTime:
                reason = f"the budget of {self._options.budget_s:g} s is spent"
        with self._lock:
            self._left -= _weight(problem)
            if found is not None:
                self.outcome.found[problem] = found
            else:
                self.outcome.skipped[problem] = reason
        self._listener.finished(problem, found, reason)

    def _search(self, worker: Worker, problem: GemmProblem) -> ProblemResult:
        deadline = self._share(problem)
        self._listener.started(problem, worker.device)
        journal = Journal(self.cache.journal_directory, problem)
        if self._options.fresh:
            journal.remove()
        search = ProblemSearch(
            worker,
            problem,
            self._options.effort,
            self.outcome.seed,
            journal,
            challengers=self._challengers(problem),
            remembered=() if self._options.fresh else self._remembered(problem),
            deadline=deadline,
            tick=self._listener.tick,
        )
        try:
            result = search.run()
        except (WorkerDied, WorkerTimeout, WorkerOutOfMemory) as error:
            raise ProblemSkipped(f"the worker could not be brought back ({error})") from error
        self._file(result)
        journal.remove()
        return result

    def _share(self, problem: GemmProblem) -> float | None:
        """When this problem should be through: its share of the time that is left, by weight."""
        if self._deadline is None:
            return None
        now = time.monotonic()
        if now >= self._deadline:
            raise OutOfTime
        part = _weight(problem) / max(self._left, _weight(problem))
        return now + (self._deadline - now) * min(1.0, part * len(self.devices))

    def _reusable(self, problem: GemmProblem) -> Found | None:
        """A cached result that answers what this search would ask."""
        hit = self.cache.get(problem)
        if hit is None:
            return None
        result, provenance = current(hit[0], self._known), hit[1]
        rivals = self._challengers(problem)
        if not answers(result, problem, self._options.effort, self._backends, rivals):
            return None
        return Found(result, provenance)

    def _remembered(self, problem: GemmProblem) -> tuple[Failure, ...]:
        hit = self.cache.get(problem)
        names = {backend.name for backend in self._backends}
        failures = hit[0].failures if hit is not None else ()
        return tuple(f for f in failures if f.candidate.backend in names)

    def _file(self, result: ProblemResult) -> None:
        """Keep a result, unless the cache has a complete one that this one falls short of."""
        hit = self.cache.get(result.problem)
        if hit is not None and hit[0].complete and hit[0].problem == result.problem:
            fewer = set(current(hit[0], self._known).backends) > set(result.backends)
            if fewer or not result.complete:
                return
        self.cache.put(result)

    def _challengers(self, problem: GemmProblem) -> list[Candidate]:
        if problem.pattern.dense:
            return []
        with self._lock:
            dense = self.outcome.found.get(problem.on_dense())
        if dense is None:
            return []
        return [m.candidate for m in dense.result.ranked[:CHALLENGERS]]


def specs_for(wanted: Sequence[str] | None, device: Device) -> tuple[str, ...]:
    """The backends that take part on a device: all of its kind that are here, or those asked for.

    Raises:
        UsageError: a backend that was asked for is unknown or of the other kind of device.
    """
    if wanted is None:
        return default_backends(device)
    for spec in wanted:
        backend = load_backend(spec)
        if backend.on_gpu is not device.is_gpu:
            kind = "a GPU (--device cuda)" if backend.on_gpu else "the CPU (--device cpu)"
            raise UsageError(f"backend {backend.name} runs on {kind}, not on {device}")
    return tuple(wanted)


def make_worker(device: Device, specs: Sequence[str], seed: int) -> Worker:
    """A worker that searches: its session has the backends of `specs` and draws from `seed`."""
    return Worker(device, SESSION, tuple(specs), seed)


def with_baselines(problems: Sequence[GemmProblem]) -> list[GemmProblem]:
    """The problems, each preceded by its dense form, without repetitions."""
    both = ((problem.on_dense(), problem) for problem in problems)
    return list(dict.fromkeys(p for pair in both for p in pair))


def _weight(problem: GemmProblem) -> float:
    """How much time a problem wants next to others: about one more per TFLOP of a launch."""
    return 1.0 + problem.flops / 1e12


def _groups(problems: Sequence[GemmProblem], dense: bool) -> list[list[GemmProblem]]:
    """Problems that share a weight, all M of it: what one worker does in one go."""
    groups: dict[object, list[GemmProblem]] = {}
    for problem in problems:
        if problem.pattern.dense is dense:
            key = (problem.n, problem.k, problem.dtype, problem.scales, problem.pattern)
            groups.setdefault(key, []).append(problem)
    return list(groups.values())
