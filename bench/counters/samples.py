"""Samples taken beside a running engine, and the figures that they come to.

A sample holds what counted between two moments (hardware counters) and what held at the second of
them (power, temperature, clocks, the engine's queues). Counters therefore are weighted by the time
that they cover; the rest is, too, since samples come at even times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from slidesparse.errors import UsageError
from slidesparse.monitor import Telemetry
from slidesparse.stats import interquartile

QUIET = Telemetry(None, None, None, None)
"""Of a GPU that tells nothing."""


class EngineLoad(NamedTuple):
    """What an engine has in hand at one moment.

    Args:
        running: sequences that hold KV cache and take part in steps.
        waiting: sequences that wait to be admitted, for the first time or after preemption.
        kv_used: share of the KV cache's blocks that are in use, 0 to 1.
    """

    running: int
    waiting: int
    kv_used: float


@dataclass(frozen=True)
class Sample:
    """One sample.

    Args:
        time: in seconds, when it was taken.
        seconds: since the sample before, or since sampling was switched on: what counters cover.
        load: of the engine.
        telemetry: of the GPUs: power of all together, means of the rest.
        counters: percent by name, mean over GPUs; empty where there are none.
    """

    time: float
    seconds: float
    load: EngineLoad
    telemetry: Telemetry = QUIET
    counters: Mapping[str, float] = field(default_factory=dict)


class Summary(NamedTuple):
    """One quantity over the samples of a window.

    Args:
        mean: weighted by the time that each sample covers.
        spread: interquartile range.
        least: smallest sample.
        most: largest sample.
    """

    mean: float
    spread: float
    least: float
    most: float


def within(samples: Sequence[Sample], windows: Sequence[tuple[float, float]]) -> list[Sample]:
    """The samples that cover time inside one of the windows only.

    Args:
        samples: any.
        windows: (begin, end) of each, on the samples' clock.
    """
    return [
        sample
        for sample in samples
        if any(
            begin <= sample.time - sample.seconds and sample.time <= end for begin, end in windows
        )
    ]


def summarize(samples: Sequence[Sample]) -> dict[str, Summary]:
    """Every quantity that any of the samples has, by name.

    Counters keep their names. The others are power_w, temperature_c, sm_mhz, memory_mhz, running,
    waiting and kv_percent. A quantity that some samples lack is summed up over the others.

    Raises:
        UsageError: there is no sample.
    """
    if not samples:
        raise UsageError("no sample fell into the window; take them more often or measure longer")
    series: dict[str, list[tuple[float, float]]] = {}
    for sample in samples:
        for name, value in _quantities(sample).items():
            if value is not None and math.isfinite(value):
                series.setdefault(name, []).append((value, sample.seconds))
    return {name: _summary(pairs) for name, pairs in series.items()}


def _quantities(sample: Sample) -> dict[str, float | None]:
    load = sample.load
    return {
        **sample.counters,
        **sample.telemetry._asdict(),
        "running": float(load.running),
        "waiting": float(load.waiting),
        "kv_percent": 100 * load.kv_used,
    }


def _summary(pairs: Sequence[tuple[float, float]]) -> Summary:
    values = [value for value, _ in pairs]
    time = sum(seconds for _, seconds in pairs)
    # Rounding must not put the mean of equal values outside them.
    mean = math.fsum(value * seconds for value, seconds in pairs) / time
    least, most = min(values), max(values)
    return Summary(min(max(mean, least), most), interquartile(values), least, most)


def mean_telemetry(found: Sequence[Telemetry]) -> Telemetry:
    """Of GPUs that work together: power of all, means of the rest; None where one does not tell."""
    powers, temperatures, sm, memory = zip(*found, strict=True)
    count = len(found)

    def total(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == count else None

    def mean(values: Sequence[float | None]) -> float | None:
        whole = total(values)
        return None if whole is None else whole / count

    return Telemetry(total(powers), mean(temperatures), mean(sm), mean(memory))


def mean_counters(found: Sequence[Mapping[str, float] | None]) -> dict[str, float]:
    """Means over GPUs of the counters that all of them gave."""
    given = [counters for counters in found if counters]
    if len(given) < len(found) or not given:
        return {}
    return {
        name: sum(counters[name] for counters in given) / len(given)
        for name in given[0]
        if all(name in counters for counters in given)
    }
