"""Tuning of a model's kernels on one GPU: which configuration is fastest for every problem."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Failure, Measurement, Provenance
from slidesparse.devices import Device
from slidesparse.errors import CandidateError
from slidesparse.kernel_problem import KernelProblem, KernelResult
from slidesparse.kernels.config import Config, candidates, default_config
from slidesparse.kernels.warm import JOBS_PER_PROCESS, Job, compile_parallel, distinct_jobs
from slidesparse.worker import Worker, WorkerDied, WorkerOutOfMemory, WorkerTimeout

SESSION = "slidesparse.kernels.tune_session:KernelSession"
TIMEOUT = 180.0
"""Seconds for one configuration: compiling takes one or two, a wrong grid may hang."""

FINALISTS = 4
CLOSE = 1.10
"""Configurations within this factor of the best screening time race for the win."""

ROUNDS = 9

OVERLAP_SM = 90
"""Compute capability from which launches can overlap."""

OVERLAP_M = 4096
"""Above it a launch is under one percent of a kernel's time, and overlap changes nothing."""


@dataclass(frozen=True)
class TuneOptions:
    """How to tune.

    Args:
        full: try loops over rows, persistent grids and software pipelines too.
        fresh: tune again what the cache has.
        budget_s: seconds for everything, or None.
        seed: of the random operands; None draws one.
    """

    full: bool = False
    fresh: bool = False
    budget_s: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Tuned:
    """A result and where it comes from."""

    result: KernelResult
    provenance: Provenance


@dataclass
class TuneOutcome:
    """What tuning ended with.

    Args:
        found: results by problem.
        skipped: problems without one, with the reason.
        interrupted: whether it was stopped by hand.
        seconds: wall time; compile_seconds: the part of it before the first measurement.
        seed: of the random operands.
    """

    found: dict[KernelProblem, Tuned] = field(default_factory=dict)
    skipped: dict[KernelProblem, str] = field(default_factory=dict)
    interrupted: bool = False
    seconds: float = 0.0
    compile_seconds: float = 0.0
    seed: int = 0


class TuneListener:
    """What a user interface overrides."""

    def compiling(self, done: int, total: int) -> None:
        """So many kernels of so many are compiled."""

    def started(self, problem: KernelProblem, configs: int) -> None:
        """A problem is being tuned."""

    def finished(self, problem: KernelProblem, tuned: Tuned | None, reason: str) -> None:
        """A problem is through: with a result, or skipped for `reason`."""


class Tuner:
    """Tune problems on one GPU and file the results.

    Args:
        problems: to tune, one per cache key.
        device: a GPU.
        cache: where results are looked up and filed.
        options: how to tune.
        worker: that runs them; None starts one for the device.
    """

    def __init__(
        self,
        problems: Sequence[KernelProblem],
        device: Device,
        cache: TuningCache,
        options: TuneOptions,
        worker: Worker | None = None,
    ) -> None:
        """Note the work; nothing starts before `run`."""
        self.problems, self.device, self.cache = tuple(problems), device, cache
        self._options = options
        seed = secrets.randbelow(2**31) if options.seed is None else options.seed
        self.outcome = TuneOutcome(seed=seed)
        self._worker = worker or Worker(device, SESSION, seed)
        self._ahead = worker is None

    def space(self, problem: KernelProblem) -> list[Config]:
        """The configurations that are tried, the default first."""
        return candidates(problem, self._options.full)

    def run(self, listener: TuneListener | None = None) -> TuneOutcome:
        """Tune everything; Ctrl-C ends it with what is finished."""
        listener = listener or TuneListener()
        start = time.monotonic()
        deadline = None if self._options.budget_s is None else start + self._options.budget_s
        try:
            open_ = [problem for problem in self.problems if not self._cached(problem, listener)]
            if open_:
                self._compile(open_, listener)
                self.outcome.compile_seconds = round(time.monotonic() - start, 3)
            for problem in open_:
                if deadline is not None and time.monotonic() > deadline:
                    spent = f"the budget of {self._options.budget_s:g} s is spent"
                    self._skip(problem, spent, listener)
                    continue
                listener.started(problem, len(self.space(problem)))
                try:
                    result = self._tune(problem)
                except WorkerOutOfMemory as error:
                    self._skip(problem, f"out of memory: {error}", listener)
                    continue
                self._file(result, listener)
            self._overlap(deadline)
        except KeyboardInterrupt:
            self.outcome.interrupted = True
            self._worker.cancel()
        finally:
            self._worker.stop()
        found = self.outcome.found
        self.outcome.found = {
            problem: found[problem] for problem in self.problems if problem in found
        }
        self.outcome.seconds = round(time.monotonic() - start, 3)
        return self.outcome

    def _cached(self, problem: KernelProblem, listener: TuneListener) -> bool:
        hit = None if self._options.fresh else self.cache.get_kernel(problem)
        if hit is None or hit.result.problem != problem or not _readable(hit.result):
            return False
        tuned = Tuned(hit.result, hit.provenance)
        self.outcome.found[problem] = tuned
        listener.finished(problem, tuned, "")
        return True

    def _compile(self, problems: Sequence[KernelProblem], listener: TuneListener) -> None:
        jobs = distinct_jobs(
            (problem, config) for problem in problems for config in self.space(problem)
        )
        self._compile_ahead(jobs, lambda done: listener.compiling(done, len(jobs)))

    def _compile_ahead(
        self, jobs: Sequence[Job], done: Callable[[int], None] = lambda count: None
    ) -> None:
        """Compile in several processes; the worker alone does a few jobs as fast."""
        if self._ahead and len(jobs) >= 2 * JOBS_PER_PROCESS:
            compile_parallel(jobs, self.device, done)

    def _tune(self, problem: KernelProblem) -> KernelResult:
        start = time.monotonic()
        screened: list[Measurement] = []
        failures: list[Failure] = []
        configs = [config.candidate for config in self.space(problem)]
        for candidate in configs:
            outcome = self._screen(problem, candidate)
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                screened.append(outcome)
        ranked, default = self._race(problem, screened)
        return KernelResult(
            problem=problem,
            ranked=ranked,
            default=default,
            failures=tuple(failures),
            tried=len(configs),
            seed=self.outcome.seed,
            seconds=round(time.monotonic() - start, 3),
            tuned_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def _overlap(self, deadline: float | None) -> None:
        """Second pass: does overlapping its launch with the kernel before it help a winner?"""
        if self.cache.fingerprint.sm < OVERLAP_SM:
            return
        pairs: dict[KernelProblem, tuple[Config, Config]] = {}
        for problem, tuned in self.outcome.found.items():
            best = tuned.result.best
            if tuned.provenance is Provenance.MEASURED and problem.m <= OVERLAP_M and best:
                config = Config.of(best.candidate)
                if not config.overlap:
                    pairs[problem] = (config, replace(config, overlap=True))
        if deadline is None or time.monotonic() <= deadline:
            self._compile_ahead(distinct_jobs((p, pair[1]) for p, pair in pairs.items()))
        for problem, pair in pairs.items():
            if deadline is not None and time.monotonic() > deadline:
                return
            self._try_overlap(problem, *pair)

    def _try_overlap(self, problem: KernelProblem, plain: Config, overlapped: Config) -> None:
        """Race a winner against its overlapped self, and file the order if that changed it."""
        result = self.outcome.found[problem].result
        try:
            outcome = self._screen(problem, overlapped.candidate)
            if isinstance(outcome, Failure):
                new = replace(result, failures=(*result.failures, outcome), tried=result.tried + 1)
            else:
                new = self._race_overlap(problem, result, plain.candidate, overlapped.candidate)
        except (WorkerDied, WorkerTimeout, WorkerOutOfMemory):
            return
        self.cache.put_kernels([new])
        self.outcome.found[problem] = Tuned(new, Provenance.MEASURED)

    def _race_overlap(
        self, problem: KernelProblem, result: KernelResult, plain: Candidate, overlapped: Candidate
    ) -> KernelResult:
        """The result after a race of these two and the default, whose times go together."""
        default = () if result.default is None else (result.default.candidate,)
        runners = tuple(dict.fromkeys((plain, overlapped, *default)))
        raced = self._worker.call("race", problem, runners, ROUNDS, timeout=TIMEOUT)
        times = {measurement.candidate: measurement for measurement in raced}
        tried = result.tried + 1
        if len(times) < len(runners):
            return replace(result, tried=tried)
        # Only a gain that shows is worth another way of launching.
        usual, other = times[plain], times[overlapped]
        spread = max(usual.spread_us, other.spread_us) / 2
        helps = other.median_us < usual.median_us - spread
        first = (other, usual) if helps else (usual, other)
        rest = tuple(times.get(m.candidate, m) for m in result.ranked[1:])
        usual_default = times[default[0]] if default else None
        return replace(result, ranked=(*first, *rest), default=usual_default, tried=tried)

    def _screen(self, problem: KernelProblem, candidate: Candidate) -> Measurement | Failure:
        try:
            outcome = self._worker.call("screen", problem, candidate, timeout=TIMEOUT)
        except WorkerDied as error:
            return Failure(candidate, "crash", str(error))
        except WorkerTimeout as error:
            return Failure(candidate, "timeout", str(error))
        assert isinstance(outcome, Measurement | Failure)
        return outcome

    def _race(
        self, problem: KernelProblem, screened: list[Measurement]
    ) -> tuple[tuple[Measurement, ...], Measurement | None]:
        """Race the close ones and the default; if that fails their screening times count."""
        if not screened:
            return (), None
        ranked = sorted(screened, key=lambda m: m.median_us)
        usual = default_config(problem.op, problem.k, problem.m).candidate
        near = [m for m in ranked if m.median_us <= CLOSE * ranked[0].median_us][:FINALISTS]
        runners = list(dict.fromkeys(m.candidate for m in near))
        if usual in {m.candidate for m in ranked} and usual not in runners:
            runners.append(usual)
        try:
            raced = self._worker.call("race", problem, tuple(runners), ROUNDS, timeout=TIMEOUT)
        except (WorkerDied, WorkerTimeout, WorkerOutOfMemory):
            raced = [m for m in ranked if m.candidate in runners]
        ranked = sorted(raced, key=lambda m: m.median_us)
        default = next((m for m in ranked if m.candidate == usual), None)
        return tuple(ranked), default

    def _file(self, result: KernelResult, listener: TuneListener) -> None:
        problem = result.problem
        if result.best is None:
            reason = result.failures[0].reason if result.failures else "none could be timed again"
            self._skip(problem, f"no configuration works: {reason}", listener)
            return
        self.cache.put_kernels([result])
        tuned = Tuned(result, Provenance.MEASURED)
        self.outcome.found[problem] = tuned
        listener.finished(problem, tuned, "")

    def _skip(self, problem: KernelProblem, reason: str, listener: TuneListener) -> None:
        self.outcome.skipped[problem] = reason
        listener.finished(problem, None, reason)


def _readable(result: KernelResult) -> bool:
    """Whether the winner is a configuration that a launch can take."""
    if result.best is None:
        return False
    try:
        Config.of(result.best.candidate)
    except CandidateError:
        return False
    return True


def gain(result: KernelResult) -> float | None:
    """The default's time over the winner's, where both were timed in one race."""
    if result.best is None or result.default is None:
        return None
    return result.default.median_us / result.best.median_us
