"""Records of load benchmarks with figures that are easy to check by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

from slidesparse.bench.counters.book import LoadBook, LoadHeading
from slidesparse.bench.counters.job import Load, LoadFound
from slidesparse.bench.counters.loop import Window
from slidesparse.bench.counters.record import CountersRecord
from slidesparse.bench.counters.sampler import Source
from slidesparse.bench.counters.samples import Summary
from slidesparse.bench.counters.window import Stretch, sampling_cost, switching
from slidesparse.bench.sweep.job import Mode, System, Variant
from slidesparse.bench.sweep.plan import Block, Key
from slidesparse.bench.sweep.runner import Failure, Kind, Outcome
from slidesparse.devices import Fingerprint
from slidesparse.models import load_model
from slidesparse.problem import DType

MODEL = "qwen3-30b-a3b"

H200 = Fingerprint("NVIDIA H200", 90, 132, 143771, "580.159", "13.1.0", "0.8.0", "2.11.0", "3.6.0")

LOAD = Load(
    models=(MODEL,),
    dtypes=(DType.FP8,),
    concurrencies=(1, 256, 1024),
    modes=(Mode.EAGER, Mode.GRAPHS),
    tp=1,
    prompt=30,
    outputs=512,
    seconds=15.0,
    settle=3.0,
    sample_ms=100,
    source=Source.AUTO,
    seed=7,
)

MEANS = {
    "sm_active": 60.0,
    "sm_occupancy": 20.0,
    "tensor_active": 10.0,
    "hmma_active": 10.0,
    "imma_active": 0.0,
    "dram_active": 25.0,
    "power_w": 450.0,
    "temperature_c": 55.0,
    "sm_mhz": 1980.0,
    "memory_mhz": 3201.0,
}
"""Of a GPU in the middle of its work."""


def heading(**changes: Any) -> LoadHeading:
    """Of one model on an H200."""
    versions = {"slidesparse": "1", "vllm": "0.25.1"}
    made = LoadHeading("cuda:0", H200, versions, {MODEL: load_model(MODEL)}, ("card-a",), LOAD)
    return replace(made, **changes)


def stretches(rates: list[float], on: list[bool] | None = None) -> tuple[Stretch, ...]:
    """One of a second for each rate, one after the other."""
    sampled = on or [True] * len(rates)
    return tuple(
        Stretch(float(index), float(index + 1), round(rate), 10, flag)
        for index, (rate, flag) in enumerate(zip(rates, sampled, strict=True))
    )


def found(concurrency: int, rate: float, **changes: Any) -> LoadFound:
    """A cell of `rate` tokens per second, one in a hundred slower and faster.

    Args:
        concurrency: of the load.
        rate: tokens per second.
        changes: "cost" gives the percent that sampling costs; "means", "power_limit_w", "kv_tokens"
            and "why" replace what they name; "running", "waiting", "kv" and "preemptions" are the
            engine's.
    """
    cost = changes.pop("cost", None)
    if cost is None:
        measured = stretches([rate])
        parts = stretches([0.99 * rate, rate, 1.01 * rate])
    else:
        order = list(switching())
        with_it = rate * (1 - cost / 100)
        measured = stretches([with_it if on else rate for on in order], order)
        parts = tuple(it for it in measured if it.sampled)
    means = {
        **changes.pop("means", MEANS),
        "running": changes.pop("running", float(concurrency)),
        "waiting": changes.pop("waiting", 0.0),
        "kv_percent": changes.pop("kv", 30.0),
    }
    window = Window(
        stretches=measured,
        parts=parts,
        joules=450.0 * len(measured),
        tokens=sum(it.tokens for it in measured),
        seconds=float(len(measured)),
        finished=4,
        preemptions=changes.pop("preemptions", 0),
        lead_s=5.5,
        lead_tokens=1000,
        dropped=concurrency,
    )
    given = LoadFound(
        concurrency=concurrency,
        window=window,
        summaries={name: Summary(mean, 1.0, mean, mean) for name, mean in means.items()},
        samples=150,
        source=Source.GPM,
        why="",
        power_limit_w=700.0,
        kv_tokens=900_000,
        cost=None if cost is None else sampling_cost(measured),
    )
    return replace(given, **changes)


def outcome(mode: Mode, given: LoadFound | Failure, concurrency: int) -> Outcome[LoadFound]:
    """Of one cell."""
    ran = {"linears": "CutlassFP8ScaledMMLinearKernel x96", "cudagraph mode": str(mode)}
    key = Key(Block(MODEL, DType.FP8, mode), Variant(System.STOCK), False, concurrency)
    return Outcome(key, given, ran)


def record(**changes: Any) -> CountersRecord:
    """Six cells: graphs are 8 times as fast at 1, 2 times at 256, and fail at 1024."""
    book = LoadBook(heading())
    for mode, rates in ((Mode.EAGER, (25, 5000, 16000)), (Mode.GRAPHS, (200, 10000, None))):
        for concurrency, rate in zip(LOAD.concurrencies, rates, strict=True):
            if rate is None:
                given: LoadFound | Failure = Failure(Kind.MEMORY, "CUDA out of memory")
            else:
                cost = 0.5 if concurrency == 1024 else None
                given = found(concurrency, float(rate), cost=cost)
            book.add(outcome(mode, given, concurrency))
    return replace(book.record(interrupted=False), **changes)


def rising(values: list[float]) -> bool:
    """Whether each is larger than the one before."""
    return all(a < b for a, b in pairwise(values))
