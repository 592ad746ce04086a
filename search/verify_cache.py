"""Re-time cached results: does the stored winner still win?"""

from __future__ import annotations

import random
import secrets
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slidesparse.candidate import Candidate, Failure, ProblemResult
from slidesparse.devices import Device
from slidesparse.errors import SearchError
from slidesparse.problem import GemmProblem
from slidesparse.search.backend import Effort
from slidesparse.search.driver import make_worker, specs_for
from slidesparse.search.messages import Race
from slidesparse.search.strategy import OPEN_TIMEOUT, RACE_TIMEOUT, SCREEN_TIMEOUT
from slidesparse.stats import settled
from slidesparse.worker import Worker

ROUNDS = 30
TOLERANCE = 0.02
"""The stored winner still holds if it is at most this much slower than the fastest now."""


@dataclass(frozen=True)
class VerifiedEntry:
    """What re-timing one cached result showed.

    Args:
        key: of the problem.
        stored_us: median of the winner in the cache, in microseconds.
        now_us: its median now; None if it did not run.
        holds: whether it is still the fastest of the stored candidates, or as good as it.
        note: what changed, empty if nothing did.
    """

    key: str
    stored_us: float
    now_us: float | None
    holds: bool
    note: str = ""


def verify_entries(
    results: Sequence[ProblemResult],
    device: Device,
    sample: int,
    progress: Callable[[str], None],
) -> list[VerifiedEntry]:
    """Re-time the ranked candidates of a random sample of results, in turn, on fresh operands.

    Args:
        results: from the cache of this device.
        device: to time on.
        sample: results to draw; all if there are fewer.
        progress: called with one line before each.
    """
    ranked = [result for result in results if result.ranked]
    drawn = random.sample(ranked, min(sample, len(ranked)))
    worker = make_worker(device, specs_for(None, device), secrets.randbelow(2**31))
    verified = []
    try:
        for number, result in enumerate(drawn, start=1):
            progress(f"{number}/{len(drawn)} {result.problem}")
            verified.append(_verify(worker, result))
    finally:
        worker.stop()
    return verified


def race_again(
    worker: Worker, problem: GemmProblem, candidates: Sequence[Candidate], rounds: int = ROUNDS
) -> tuple[Race, list[Candidate]] | Failure:
    """Verify known candidates on fresh operands and race them in turn.

    Args:
        worker: that has their backends.
        problem: that they run.
        candidates: the first one must run; others that fail are left out.
        rounds: samples of each.

    Returns:
        The race and who ran in it, or why the first one does not run any more.

    Raises:
        SearchError: a candidate took the worker with it.
    """
    worker.call("open", problem, Effort.QUICK, timeout=OPEN_TIMEOUT)
    outcomes = [worker.call("screen", c, timeout=SCREEN_TIMEOUT) for c in candidates]
    if isinstance(outcomes[0], Failure):
        return outcomes[0]
    runs = [o.candidate for o in outcomes if not isinstance(o, Failure)]
    return worker.call("race", runs, rounds, timeout=RACE_TIMEOUT), runs


def _verify(worker: Worker, result: ProblemResult) -> VerifiedEntry:
    key, stored = result.problem.key, result.ranked[0].median_us
    try:
        again = race_again(worker, result.problem, [m.candidate for m in result.ranked])
    except SearchError as error:
        return VerifiedEntry(key, stored, None, False, f"now fails: {error}")
    if isinstance(again, Failure):
        return VerifiedEntry(key, stored, None, False, f"now fails: {again.reason}")
    race, runs = again
    medians = [statistics.median(samples) for samples in race.samples]
    best = min(range(len(runs)), key=medians.__getitem__)
    now = medians[0]
    near = now <= medians[best] * (1 + TOLERANCE)
    if best == 0 or near or not settled(race.samples[best], race.samples[0]):
        return VerifiedEntry(key, stored, now, True)
    note = f"{runs[best].label} is now faster: {medians[best]:.1f} us"
    return VerifiedEntry(key, stored, now, False, note)
