"""What a load leaves of a GPU for a second, co-scheduled one; and eager beside CUDA graphs.

Each figure of a headroom is what is left of one resource alone, of its peak:

* sm_percent = 100 - SM active: share of SM time in which an SM had no warp at all.
* dram_percent = 100 - DRAM active: share of the memory's theoretical bandwidth.
* power_w = enforced limit - mean power.
* kv_percent = 100 - KV-cache use, kv_tokens = that share of the tokens that the cache holds.

They do not add up, and none of them is a promise: an SM that is active may have room for warps of
another kernel, and one that is idle may be idle because the memory is busy; no kernel reaches 100 %
of the DRAM's bandwidth; at the power limit clocks fall, so that whatever is added slows both down.
"""

from __future__ import annotations

from dataclasses import dataclass

from slidesparse.bench.counters.record import CountersRecord, LoadCell, LoadFigures
from slidesparse.bench.sweep.job import Mode


@dataclass(frozen=True)
class Headroom:
    """What is left of each resource by itself; None where it was not told.

    Args:
        sm_percent: of SM time.
        dram_percent: of DRAM bandwidth.
        power_w: to the limit; below 0 where the load is above it for a moment.
        kv_percent: of the KV cache.
        kv_tokens: of the KV cache, in tokens.
    """

    sm_percent: float | None
    dram_percent: float | None
    power_w: float | None
    kv_percent: float | None
    kv_tokens: int | None


def headroom(figures: LoadFigures) -> Headroom:
    """What a cell leaves."""
    power, kv_left = figures.mean("power_w"), _left(figures.mean("kv_percent"))
    limit = figures.power_limit_w
    return Headroom(
        sm_percent=_left(figures.mean("sm_active")),
        dram_percent=_left(figures.mean("dram_active")),
        power_w=None if power is None or limit is None else limit - power,
        kv_percent=kv_left,
        kv_tokens=None if kv_left is None else round(figures.kv_tokens * kv_left / 100),
    )


def _left(percent: float | None) -> float | None:
    return None if percent is None else max(0.0, 100.0 - percent)


@dataclass(frozen=True)
class ModeRatio:
    """CUDA graphs over eager at one concurrency.

    Args:
        value: tokens per second with graphs over eager.
        clear: whether they differ by more than half the sum of their spreads.
    """

    value: float
    clear: bool


def graphs_over_eager(record: CountersRecord, cell: LoadCell) -> ModeRatio | None:
    """What graphs are worth where a cell and its counterpart were measured.

    Args:
        record: that holds both.
        cell: either of the two.
    """
    eager, graphs = (
        record.figures(cell.model, cell.dtype, mode, cell.concurrency)
        for mode in (Mode.EAGER, Mode.GRAPHS)
    )
    if eager is None or graphs is None:
        return None
    doubt = (eager.spread + graphs.spread) / 2
    apart = abs(graphs.tokens_per_s - eager.tokens_per_s)
    return ModeRatio(graphs.tokens_per_s / eager.tokens_per_s, apart > doubt)


def short_of(figures: LoadFigures, concurrency: int) -> str:
    """Why fewer sequences ran than requests were there; "" where as good as all of them ran.

    Requests that just ended and began are not counted: one in fifty may be missing.

    Args:
        figures: of the cell.
        concurrency: requests that were there.
    """
    running = figures.mean("running") or 0.0
    if running >= 0.98 * concurrency - 1:
        return ""
    kv = figures.mean("kv_percent") or 0.0
    held = f"{running:,.0f} of {concurrency:,} ran"
    if kv > 90 or figures.preemptions:
        return (
            f"{held}: the KV cache of {figures.kv_tokens:,} tokens was {kv:.0f} % full, "
            f"{figures.preemptions} preemptions"
        )
    return f"{held}, with {kv:.0f} % of the KV cache in use: the scheduler admitted no more"
