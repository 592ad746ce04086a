"""Tuning of a model's kernels on one GPU: which configuration is fastest for every problem."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Failure, Measurement, Provenance, timestamp
from slidesparse.devices import OVERLAP_SM, Device
from slidesparse.errors import CandidateError
from slidesparse.kernel_problem import KernelProblem, KernelResult
from slidesparse.kernels.config import Config, candidates, default_config
from slidesparse.kernels.warm import JOBS_PER_PROCESS, compile_parallel, distinct_jobs
from slidesparse.worker import Worker, WorkerDied, WorkerOutOfMemory, WorkerTimeout

SESSION = "slidesparse.kernels.tune_session:KernelSession"
TIMEOUT = 180.0
"""Seconds for one configuration: compiling takes one or two, a wrong grid may hang."""

FINALISTS = 4
CLOSE = 1.10
"""Configurations within this factor of the best screening time race for the win."""

ROUNDS = 9

AHEAD_SHARE = 0.5
"""Of the time that a budget leaves; what is not compiled ahead by then the worker compiles."""

OVERLAP_M = 4096
"""Above it a launch is under one percent of a kernel's time, and overlap changes nothing."""


@dataclass(frozen=True)
class TuneOptions:
    """How to tune.

    Args:
        full: try loops over rows, persistent grids and software pipelines too.
        fresh: tune again what the cache has.
        budget_s: seconds for everything, or None; what has begun to be tuned is finished.
        seed: of the random operands; None draws one.
    """

    full: bool = False
    fresh: bool = False
    budget_s: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Tuned:
    """A result and where its times come from."""

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

    def overlapping(self, done: int, total: int) -> None:
        """The second pass, after all are finished: so many winners of so many tried overlapped."""


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
                launches = ((p, config) for p in open_ for config in self.space(p))
                self._compile_ahead(launches, deadline, listener)
                self.outcome.compile_seconds = round(time.monotonic() - start, 3)
            for problem in open_:
                if _is_past(deadline):
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
            self._overlap(deadline, listener)
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

    def _compile_ahead(
        self,
        launches: Iterable[tuple[KernelProblem, Config]],
        deadline: float | None,
        listener: TuneListener,
    ) -> None:
        """Compile in several processes; the worker alone does a few jobs as fast."""
        jobs = distinct_jobs(launches)
        if not self._ahead or len(jobs) < 2 * JOBS_PER_PROCESS:
            return
        until, now = None, time.monotonic()
        if deadline is not None:
            until = now + AHEAD_SHARE * (deadline - now)
        compile_parallel(jobs, self.device, lambda done: listener.compiling(done, len(jobs)), until)

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
            tuned_at=timestamp(),
        )

    def _overlap(self, deadline: float | None, listener: TuneListener) -> None:
        """Second pass: does overlapping its launch with the kernel before it help a winner?

        A run that was stopped before it leaves it to the next, which finds the winners cached.
        """
        pairs = self._untried()
        if not pairs or _is_past(deadline):
            return
        listener.overlapping(0, len(pairs))
        launches = ((problem, overlapped) for problem, (_, overlapped) in pairs.items())
        self._compile_ahead(launches, deadline, listener)
        for number, (problem, pair) in enumerate(pairs.items(), start=1):
            if _is_past(deadline):
                return
            self._try_overlap(problem, *pair)
            listener.overlapping(number, len(pairs))

    def _untried(self) -> dict[KernelProblem, tuple[Config, Config]]:
        """The winners that the second pass has to see, each with its overlapped self."""
        pairs: dict[KernelProblem, tuple[Config, Config]] = {}
        if self.cache.fingerprint.sm < OVERLAP_SM:
            return pairs
        for problem, tuned in self.outcome.found.items():
            result = tuned.result
            # What comes with the package is not ours to complete.
            ours = tuned.provenance is not Provenance.BUNDLED
            if ours and problem.m <= OVERLAP_M and result.best and not _saw_overlap(result):
                config = Config.of(result.best.candidate)
                pairs[problem] = (config, replace(config, overlap=True))
        return pairs

    def _try_overlap(self, problem: KernelProblem, plain: Config, overlapped: Config) -> None:
        """Race a winner against its overlapped self and file what came of it."""
        start = time.monotonic()
        tuned = self.outcome.found[problem]
        result = tuned.result
        try:
            screened = self._screen(problem, overlapped.candidate)
            raced = (
                screened
                if isinstance(screened, Failure)
                else self._race_overlap(result, plain.candidate, overlapped.candidate)
            )
        except WorkerOutOfMemory:
            # Other processes may hold it; the next run tries again.
            return
        tried, seconds = result.tried + 1, round(result.seconds + time.monotonic() - start, 3)
        if isinstance(raced, Failure):
            # The times stay those that they were.
            failures = (*result.failures, raced)
            new = replace(result, failures=failures, tried=tried, seconds=seconds)
            self.outcome.found[problem] = replace(tuned, result=new)
        else:
            new = replace(raced, tried=tried, seconds=seconds)
            self.outcome.found[problem] = Tuned(new, Provenance.MEASURED)
        self.cache.put_kernels([new])

    def _race_overlap(
        self, result: KernelResult, plain: Candidate, overlapped: Candidate
    ) -> KernelResult | Failure:
        """The result after a race of these two and the default.

        It holds the runners of this race alone, whose times go together: fastest first, but that
        the overlapped one comes first only for a gain beyond the spread.
        """
        default = None if result.default is None else result.default.candidate
        runners = tuple(dict.fromkeys(c for c in (plain, overlapped, default) if c is not None))
        raced = self._ask(overlapped, "race", result.problem, runners, ROUNDS)
        if isinstance(raced, Failure):
            return raced
        times: dict[Candidate, Measurement] = {m.candidate: m for m in raced}
        if plain not in times or overlapped not in times:
            return Failure(overlapped, "refused", "it could not be timed beside the winner")
        other = times.pop(overlapped)
        first, *rest = sorted(times.values(), key=_median)
        # Only a gain that shows is worth another way of launching.
        spread = max(first.spread_us, other.spread_us) / 2
        if other.median_us < first.median_us - spread:
            ranked = (other, first, *rest)
        else:
            ranked = (first, *sorted((other, *rest), key=_median))
        return replace(
            result,
            ranked=ranked,
            default=None if default is None else times.get(default),
            seed=self.outcome.seed,
            tuned_at=timestamp(),
        )

    def _screen(self, problem: KernelProblem, candidate: Candidate) -> Measurement | Failure:
        outcome = self._ask(candidate, "screen", problem, candidate)
        assert isinstance(outcome, Measurement | Failure)
        return outcome

    def _ask(self, blamed: Candidate, method: str, *arguments: Any) -> Any:
        """What the worker answers, or the Failure of `blamed` if it dies or hangs over it."""
        try:
            return self._worker.call(method, *arguments, timeout=TIMEOUT)
        except WorkerDied as error:
            return Failure(blamed, "crash", str(error))
        except WorkerTimeout as error:
            return Failure(blamed, "timeout", str(error))

    def _race(
        self, problem: KernelProblem, screened: list[Measurement]
    ) -> tuple[tuple[Measurement, ...], Measurement | None]:
        """Race the close ones and the default: their times, fastest first, and the default's.

        If the race fails the screening times of the same ones count, the default's too.
        """
        if not screened:
            return (), None
        ranked = sorted(screened, key=_median)
        usual = default_config(problem.op, problem.k, problem.m).candidate
        near = [m for m in ranked if m.median_us <= CLOSE * ranked[0].median_us][:FINALISTS]
        runners = list(dict.fromkeys(m.candidate for m in near))
        if usual in {m.candidate for m in ranked} and usual not in runners:
            runners.append(usual)
        try:
            raced = self._worker.call("race", problem, tuple(runners), ROUNDS, timeout=TIMEOUT)
        except (WorkerDied, WorkerTimeout, WorkerOutOfMemory):
            raced = [m for m in ranked if m.candidate in runners]
        ranked = sorted(raced, key=_median)
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


def _median(measurement: Measurement) -> float:
    return measurement.median_us


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline


def _saw_overlap(result: KernelResult) -> bool:
    """Whether an overlapped configuration was tried, with success or without."""
    tried = [item.candidate for item in result.ranked]
    tried += [failure.candidate for failure in result.failures]
    return any(candidate.params.get("overlap") is True for candidate in tried)


def gain(result: KernelResult) -> float | None:
    """The default's time over the winner's: of one race, or of one screening if the race failed."""
    if result.best is None or result.default is None:
        return None
    return result.default.median_us / result.best.median_us
