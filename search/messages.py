"""What a worker answers; plain values, so that the parent needs no torch to read them."""

from __future__ import annotations

from dataclasses import dataclass

from slidesparse.candidate import Candidate


@dataclass(frozen=True)
class Opening:
    """What a session offers for a problem.

    Args:
        candidates: to try, each backend's default first.
        defaults: keys of the candidates that a backend would have run unasked.
        left_out: backends that do not take part, with their reason.
        backends: identities of those of the problem's kind, whether they take part or not, sorted.
    """

    candidates: tuple[Candidate, ...]
    defaults: tuple[str, ...]
    left_out: dict[str, str]
    backends: tuple[str, ...] = ()


@dataclass(frozen=True)
class Race:
    """Samples of several candidates, taken in turn.

    Args:
        samples: microseconds per launch, one row per candidate, one column per round.
        clock_mhz: SM clock while they ran, where the driver tells.
        power_w: board power while they ran, where the driver tells.
    """

    samples: tuple[tuple[float, ...], ...]
    clock_mhz: int | None
    power_w: float | None
