"""Successive halving over the candidates of one problem, up to a settled race of the finalists.

Every candidate is verified and timed briefly; the best bring in their neighbours; the field is
halved in interleaved races of growing length; the last few, with each backend's default and the
best dense way, race until their order is settled or a tie.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slidesparse.candidate import Candidate, Failure, Measurement, ProblemResult, timestamp
from slidesparse.errors import SlideSparseError
from slidesparse.problem import GemmProblem
from slidesparse.search.backend import Effort
from slidesparse.search.journal import Journal
from slidesparse.search.messages import Race
from slidesparse.stats import interquartile, settled
from slidesparse.worker import Worker, WorkerDied, WorkerOutOfMemory, WorkerTimeout

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """How long an effort looks.

    Args:
        neighbour_rounds: times that the leaders' neighbours are brought in.
        leaders: per backend, whose neighbours are brought in.
        field: candidates that enter the first race.
        within: and only those within this factor of the fastest.
        finalists: candidates that enter the last race.
        rounds: samples per candidate in the first race, more than doubled at each halving.
        most_rounds: samples per finalist at most.
        tie: finalists closer than this share of their time are a tie whatever the samples say.
    """

    neighbour_rounds: int
    leaders: int
    field: int
    within: float
    finalists: int
    rounds: int
    most_rounds: int
    tie: float = 0.003


SCHEDULES = {
    Effort.QUICK: Schedule(0, 0, field=6, within=1.15, finalists=2, rounds=3, most_rounds=15),
    Effort.NORMAL: Schedule(2, 3, field=12, within=1.2, finalists=3, rounds=5, most_rounds=45),
    Effort.FULL: Schedule(3, 6, field=48, within=1.3, finalists=4, rounds=7, most_rounds=90),
}
RACE_STEP = 15
RACE_ATTEMPTS = 3
SHED_EVERY = 100
PATIENCE = 2.0
"""A candidate that takes this many times as long as the best so far gets a single launch."""
SCREEN_TIMEOUT = 60.0
RACE_TIMEOUT = 120.0
OPEN_TIMEOUT = 600.0


class ProblemSkipped(Exception):
    """A problem that could not be searched at all; the reason is for the user."""


class OutOfTime(Exception):
    """The search's budget is spent."""


@dataclass(frozen=True)
class Tick:
    """Progress inside one problem.

    Args:
        problem: in hand.
        candidate: in hand.
        done: candidates that are through.
        total: candidates known so far.
        best_us: fastest verified time so far in microseconds.
    """

    problem: GemmProblem
    candidate: Candidate
    done: int
    total: int
    best_us: float | None


class ProblemSearch:
    """The search of one problem on one worker.

    Args:
        worker: that runs the candidates.
        problem: to search.
        effort: how long to look.
        seed: recorded with the result.
        journal: where outcomes go as they come.
        challengers: candidates of other backends that join the screening: the best dense ways.
        remembered: failures of earlier searches; these candidates are not tried again.
        deadline: of time.monotonic(), when screening stops; None for no limit.
        tick: called before each candidate.
    """

    def __init__(
        self,
        worker: Worker,
        problem: GemmProblem,
        effort: Effort,
        seed: int,
        journal: Journal,
        challengers: Sequence[Candidate] = (),
        remembered: Sequence[Failure] = (),
        deadline: float | None = None,
        tick: Callable[[Tick], None] = lambda _: None,
    ) -> None:
        """Bind everything; `run` does the work."""
        self._worker, self._problem, self._effort = worker, problem, effort
        self._schedule = SCHEDULES[effort]
        self._seed, self._journal, self._tick = seed, journal, tick
        self._challengers = tuple(challengers)
        self._deadline = deadline
        self._outcomes: dict[str, Measurement | Failure] = {}
        self._remembered = {failure.candidate.key: failure for failure in remembered}
        self._known: dict[str, Candidate] = {}
        self._defaults: tuple[str, ...] = ()
        self._left_out: dict[str, str] = {}
        self._backends: tuple[str, ...] = ()
        self._complete = True
        self._started = time.monotonic()
        self._since_forget = 0

    def run(self) -> ProblemResult:
        """Search; every way out but these returns a result.

        Raises:
            ProblemSkipped: no memory for the operands, no candidate, or none that works.
            OutOfTime: the deadline passed before any candidate was verified.
        """
        self._open()
        self._outcomes = {**self._journal.read(), **self._remembered}
        for candidate in list(self._known.values()):
            self._screen(candidate)
        for _ in range(self._schedule.neighbour_rounds):
            if not self._bring_neighbours():
                break
        ranked, tie = self._race()
        self._close()
        return self._result(ranked, tie)

    def _open(self) -> None:
        try:
            opening = self._call("open", self._problem, self._effort, timeout=OPEN_TIMEOUT)
        except WorkerOutOfMemory as error:
            raise ProblemSkipped(f"the operands do not fit the memory ({error})") from error
        except SlideSparseError as error:
            raise ProblemSkipped(f"the worker could not open it ({error})") from error
        self._left_out = opening.left_out
        self._backends = opening.backends
        self._defaults = opening.defaults
        if not opening.candidates:
            reasons = "; ".join(f"{name}: {why}" for name, why in opening.left_out.items())
            raise ProblemSkipped(f"no candidate supports it ({reasons or 'no backend takes part'})")
        for candidate in (*self._challengers, *opening.candidates):
            self._known.setdefault(candidate.key, candidate)

    def _screen(self, candidate: Candidate) -> None:
        """Verify and time a known candidate once; its outcome is on disk when this returns."""
        if candidate.key in self._outcomes:
            return
        measured = self._measured()
        if self._overdue() and measured:
            self._complete = False
            return
        best = min((m.median_us for m in measured), default=None)
        done, total = len(self._outcomes), len(self._known)
        self._tick(Tick(self._problem, candidate, done, total, best))
        outcome = self._try(candidate, None if best is None else best * PATIENCE)
        self._journal.add(outcome)
        self._outcomes[candidate.key] = outcome
        self._shed()

    def _try(self, candidate: Candidate, patience_us: float | None = None) -> Measurement | Failure:
        self._reopen()
        outcome = self._attempt(candidate, "screen", candidate, patience_us, timeout=SCREEN_TIMEOUT)
        assert isinstance(outcome, Measurement | Failure)
        return outcome

    def _attempt(self, candidate: Candidate, method: str, *arguments: Any, timeout: float) -> Any:
        """Call the worker on behalf of one candidate: whatever goes wrong is that one's failure."""
        try:
            return self._call(method, *arguments, timeout=timeout)
        except WorkerDied as error:
            return Failure(candidate, "crash", f"the worker died: {error}")
        except WorkerTimeout as error:
            return Failure(candidate, "timeout", str(error))
        except WorkerOutOfMemory as error:
            return Failure(candidate, "memory", str(error))
        except SlideSparseError as error:
            return Failure(candidate, "refused", str(error))

    def _shed(self) -> None:
        """Let the worker drop graphs of candidates that will not race: each holds memory."""
        self._since_forget += 1
        if self._since_forget >= SHED_EVERY and self._worker.alive:
            self._since_forget = 0
            keep = self._ranking()[: self._schedule.field]
            self._call("forget", keep, timeout=SCREEN_TIMEOUT)

    def _reopen(self) -> None:
        """Give a worker that was replaced its problem back."""
        if not self._worker.alive:
            self._call("open", self._problem, self._effort, timeout=OPEN_TIMEOUT)

    def _measured(self) -> list[Measurement]:
        known = (self._outcomes.get(key) for key in self._known)
        return [outcome for outcome in known if isinstance(outcome, Measurement)]

    def _ranking(self) -> list[Candidate]:
        return [m.candidate for m in sorted(self._measured(), key=lambda m: m.median_us)]

    def _contenders(self) -> list[Candidate]:
        """The verified candidates of the problem's own kind, fastest first.

        A sparse problem asks for its best sparse candidate, also where dense is faster: the
        challengers race beside it and must not push it out.
        """
        sparse = not self._problem.pattern.dense
        return [c for c in self._ranking() if c.sparse is sparse]

    def _bring_neighbours(self) -> bool:
        """Screen the variations of each backend's leaders; whether there were new ones."""
        if self._overdue():
            self._complete = False
            return False
        leaders: dict[str, list[Candidate]] = {}
        for candidate in self._contenders():
            group = leaders.setdefault(candidate.backend, [])
            if len(group) < self._schedule.leaders:
                group.append(candidate)
        new: dict[str, Candidate] = {}
        for candidate in (leader for group in leaders.values() for leader in group):
            for other in self._neighbours(candidate):
                if other.key not in self._known:
                    new[other.key] = other
        self._known.update(new)
        for candidate in new.values():
            self._screen(candidate)
        return bool(new)

    def _neighbours(self, candidate: Candidate) -> list[Candidate]:
        """The variations of a candidate; none if listing them fails, which costs only them."""
        self._reopen()
        found = self._attempt(
            candidate, "neighbours", candidate, self._effort, timeout=SCREEN_TIMEOUT
        )
        if isinstance(found, Failure):
            log.warning("no variations of %s: %s", candidate.label, found.reason)
            return []
        return list(found)

    def _race(self) -> tuple[list[Measurement], bool]:
        ranking = self._ranking()
        if not ranking:
            if self._overdue():
                raise OutOfTime
            raise ProblemSkipped(f"none of {len(self._outcomes)} candidates works: {self._why()}")
        seeded = self._seeded(ranking)
        own = self._contenders()
        limit = self._time_of(own[0]) * self._schedule.within if own else 0.0
        field = [c for c in own if self._time_of(c) <= limit][: self._schedule.field]
        rounds = self._schedule.rounds
        while len(field) > self._schedule.finalists:
            times = self._heat(field, rounds)
            field = sorted(times, key=lambda c: statistics.median(times[c]))
            field = field[: max(self._schedule.finalists, len(field) // 2)]
            rounds *= 2
        return self._final([*field, *(c for c in seeded if c not in field)])

    def _seeded(self, ranking: Sequence[Candidate]) -> list[Candidate]:
        """Who races to the end whatever the screening said: defaults and the best dense ways."""
        dense = {c.key for c in self._challengers}
        best_dense = [c for c in ranking if c.key in dense][:2]
        defaults = [c for c in ranking if c.key in self._defaults]
        return list(dict.fromkeys([*best_dense, *defaults]))

    def _final(self, finalists: list[Candidate]) -> tuple[list[Measurement], bool]:
        """Race until the first two are told apart, or the rounds are spent."""
        if not finalists:
            raise ProblemSkipped(f"no candidate survives a race: {self._why()}")
        samples: dict[Candidate, list[float]] = {c: [] for c in finalists}
        attempts = 0
        while True:
            heat = self._sample(finalists, RACE_STEP)
            if heat is None:
                attempts += 1
                finalists = self._survivors(finalists)
                if not finalists or attempts >= RACE_ATTEMPTS:
                    raise ProblemSkipped(
                        f"the finalists do not survive a race of {attempts}: {self._why()}"
                    )
                samples = {c: [] for c in finalists}
                continue
            for candidate, times in zip(finalists, heat.samples, strict=True):
                samples[candidate].extend(times)
            order = sorted(finalists, key=lambda c: statistics.median(samples[c]))
            ties = [self._is_tie(samples[a], samples[b]) for a, b in self._questions(order)]
            spent = len(samples[order[0]]) >= self._schedule.most_rounds
            if not any(ties) or spent or self._overdue():
                break
        tie = bool(ties) and ties[0]
        return [self._raced(c, samples[c], heat) for c in order], tie

    def _questions(self, order: Sequence[Candidate]) -> list[tuple[Candidate, Candidate]]:
        """The pairs that a race has to tell apart: its own first two, and sparse from dense."""
        sparse = not self._problem.pattern.dense
        own = [c for c in order if c.sparse is sparse]
        other = [c for c in order if c.sparse is not sparse]
        pairs = [(own[0], own[1])] if len(own) > 1 else []
        if own and other:
            first, second = sorted((own[0], other[0]), key=order.index)
            pairs.append((first, second))
        return pairs

    def _raced(self, candidate: Candidate, samples: Sequence[float], heat: Race) -> Measurement:
        """The measurement of a finalist: the race's time, the screening's checks."""
        return replace(
            self._outcomes_of(candidate),
            median_us=statistics.median(samples),
            spread_us=interquartile(samples),
            samples=len(samples),
            clock_mhz=heat.clock_mhz,
            power_w=heat.power_w,
        )

    def _is_tie(self, first: Sequence[float], second: Sequence[float]) -> bool:
        gap = statistics.median(second) - statistics.median(first)
        close = gap < self._schedule.tie * statistics.median(first)
        return close or not settled(first, second)

    def _heat(self, field: Sequence[Candidate], rounds: int) -> dict[Candidate, Sequence[float]]:
        heat = self._sample(field, rounds)
        if heat is None:
            field = self._survivors(field)
            heat = self._sample(field, rounds)
        if heat is None:
            return {c: (self._time_of(c),) for c in field}
        return dict(zip(field, heat.samples, strict=True))

    def _sample(self, field: Sequence[Candidate], rounds: int) -> Race | None:
        """Samples in turn, or None if the worker did not survive them."""
        try:
            field_ready = all(self._ready(candidate) for candidate in field)
            if not field_ready:
                return None
            timeout = self._race_timeout(field, rounds)
            race = self._call("race", list(field), rounds, timeout=timeout)
            assert isinstance(race, Race)
            return race
        except (WorkerDied, WorkerTimeout, WorkerOutOfMemory, SlideSparseError) as error:
            log.info("a race of %s was lost: %s", self._problem, error)
            return None

    def _survivors(self, field: Sequence[Candidate]) -> list[Candidate]:
        """Who gets through a race alone: whoever brought the last one down is out."""
        return [c for c in field if self._ready(c) and self._survives(c)]

    def _race_timeout(self, field: Sequence[Candidate], rounds: int) -> float:
        """Seconds for a race: a fixed grace, and three times what its launches took before."""
        outcomes = (self._outcomes_of(candidate) for candidate in field)
        return RACE_TIMEOUT + 3e-6 * rounds * sum(o.median_us * o.launches for o in outcomes)

    def _survives(self, candidate: Candidate) -> bool:
        timeout = self._race_timeout([candidate], RACE_STEP)
        alone = self._attempt(candidate, "race", [candidate], RACE_STEP, timeout=timeout)
        if isinstance(alone, Failure):
            self._outcomes[candidate.key] = alone
            self._journal.add(alone)
        return not isinstance(alone, Failure)

    def _ready(self, candidate: Candidate) -> bool:
        """Prepare a candidate that a replaced worker or a resumed search has not prepared."""
        self._reopen()
        if self._call("screened", candidate, timeout=SCREEN_TIMEOUT):
            return True
        outcome = self._try(candidate)
        self._outcomes[candidate.key] = outcome
        if isinstance(outcome, Failure):
            self._journal.add(outcome)
        return isinstance(outcome, Measurement)

    def _call(self, method: str, *arguments: Any, timeout: float) -> Any:
        return self._worker.call(method, *arguments, timeout=timeout)

    def _close(self) -> None:
        if self._worker.alive:
            self._call("close", timeout=SCREEN_TIMEOUT)

    def _outcomes_of(self, candidate: Candidate) -> Measurement:
        outcome = self._outcomes[candidate.key]
        assert isinstance(outcome, Measurement)
        return outcome

    def _time_of(self, candidate: Candidate) -> float:
        return self._outcomes_of(candidate).median_us

    def _overdue(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _failures(self) -> tuple[Failure, ...]:
        return tuple(o for o in self._outcomes.values() if isinstance(o, Failure))

    def _why(self) -> str:
        failures = self._failures()
        return failures[0].reason if failures else "nothing was tried"

    def _result(self, ranked: list[Measurement], tie: bool) -> ProblemResult:
        dense = [m for m in ranked if not m.candidate.sparse]
        return ProblemResult(
            problem=self._problem,
            ranked=tuple(ranked),
            defaults=tuple(m for m in ranked if m.candidate.key in self._defaults),
            baseline=dense[0] if dense else None,
            failures=self._failures(),
            left_out=self._left_out,
            backends=self._backends,
            complete=self._complete,
            tried=len(self._outcomes),
            tie=tie,
            effort=self._effort.value,
            seed=self._seed,
            seconds=round(time.monotonic() - self._started, 3),
            searched_at=timestamp(),
        )
