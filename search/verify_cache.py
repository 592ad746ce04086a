"""Re-time cached results: does the stored winner still win?"""

from __future__ import annotations

import random
import secrets
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slidesparse.candidate import Failure, Measurement, ProblemResult
from slidesparse.devices import Device
from slidesparse.search.backend import Effort
from slidesparse.search.driver import specs_for
from slidesparse.search.stats import settled
from slidesparse.search.strategy import OPEN_TIMEOUT, RACE_TIMEOUT, SCREEN_TIMEOUT
from slidesparse.search.worker import Worker, WorkerDied, WorkerOutOfMemory, WorkerTimeout

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
    worker = Worker(device, specs_for(None, device), secrets.randbelow(2**31))
    verified = []
    try:
        for number, result in enumerate(drawn, start=1):
            progress(f"{number}/{len(drawn)} {result.problem}")
            verified.append(_verify(worker, result))
    finally:
        worker.stop()
    return verified


def _verify(worker: Worker, result: ProblemResult) -> VerifiedEntry:
    winner = result.ranked[0]
    key, stored = result.problem.key, winner.median_us
    try:
        worker.call("open", result.problem, Effort.QUICK, timeout=OPEN_TIMEOUT)
        outcomes = [
            worker.call("screen", m.candidate, timeout=SCREEN_TIMEOUT) for m in result.ranked
        ]
        if isinstance(outcomes[0], Failure):
            return VerifiedEntry(key, stored, None, False, f"now fails: {outcomes[0].reason}")
        runs = [o.candidate for o in outcomes if isinstance(o, Measurement)]
        race = worker.call("race", runs, ROUNDS, timeout=RACE_TIMEOUT)
    except (WorkerDied, WorkerTimeout, WorkerOutOfMemory) as error:
        return VerifiedEntry(key, stored, None, False, f"now fails: {error}")
    medians = [statistics.median(samples) for samples in race.samples]
    best = min(range(len(runs)), key=medians.__getitem__)
    now = medians[0]
    near = now <= medians[best] * (1 + TOLERANCE)
    if best == 0 or near or not settled(race.samples[best], race.samples[0]):
        return VerifiedEntry(key, stored, now, True)
    note = f"{runs[best].label} is now faster: {medians[best]:.1f} us"
    return VerifiedEntry(key, stored, now, False, note)
