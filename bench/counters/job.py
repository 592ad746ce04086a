"""What one process of a load benchmark measures and gives, and how long everything will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from slidesparse.bench.counters.loop import Window
from slidesparse.bench.counters.sampler import Source
from slidesparse.bench.counters.samples import Summary
from slidesparse.bench.counters.window import PAIRS, SamplingCost
from slidesparse.bench.sweep.job import Job, Mode, Stage, System, Variant
from slidesparse.bench.sweep.plan import Key, Known, Turn
from slidesparse.problem import DType

BUILD_S: Mapping[Mode, float] = {Mode.EAGER: 90.0, Mode.GRAPHS: 150.0}
"""Seconds that building a model in vLLM is taken to take: a guess before the fact, for one line."""

PREFILL_RATE = 50_000.0
"""Tokens per second at which first requests are taken to be prefilled; a guess likewise."""

STEP_TOKENS = 16
"""Graphs of steps that also prefill are captured at multiples of this many tokens."""


class LoadKey(NamedTuple):
    """One cell of a load benchmark.

    Args:
        model: as it was given.
        dtype: FP8 or INT8.
        mode: eager or graphs.
        concurrency: requests that are there all the time.
    """

    model: str
    dtype: DType
    mode: Mode
    concurrency: int

    @property
    def comparison(self) -> tuple[str, DType]:
        """Eager and graphs of a model stand side by side: one GPU has to measure both."""
        return self.model, self.dtype

    def __str__(self) -> str:
        """One line for messages."""
        return f"{self.model} {self.dtype} {self.mode} C={self.concurrency}"


@dataclass(frozen=True)
class LoadJob(Job):
    """What one process measures: its `ms` are concurrencies, `prompt` and `outputs` of a request.

    Args:
        seconds: of sampled time in each window.
        settle: seconds that pass after the number of running sequences stopped growing.
        sample_ms: milliseconds between samples.
        source: of hardware counters.
        compare_at: concurrencies at which the cost of sampling is measured.
    """

    seconds: float
    settle: float
    sample_ms: int
    source: Source
    compare_at: tuple[int, ...]


@dataclass(frozen=True)
class LoadFound:
    """What one cell gave.

    Args:
        concurrency: of the load.
        window: what the loop did.
        summaries: of every quantity that was sampled, by name.
        samples: that the figures are made of.
        source: of the hardware counters, "none" without any.
        why: there are none, "" where there are.
        power_limit_w: of the GPUs together, None where not told.
        kv_tokens: that the KV cache holds.
        cost: of sampling, None where it was not measured.
    """

    concurrency: int
    window: Window
    summaries: Mapping[str, Summary]
    samples: int
    source: Source
    why: str
    power_limit_w: float | None
    kv_tokens: int
    cost: SamplingCost | None


@dataclass(frozen=True)
class Load:
    """All that one command measures.

    Args:
        models: presets' names or folders.
        dtypes: FP8, INT8 or both.
        concurrencies: requests that are there all the time, one cell each.
        modes: eager, graphs or both.
        tp: tensor-parallel size.
        prompt: tokens of a request's prompt.
        outputs: tokens that it generates.
        seconds: of sampled time in each window.
        settle: seconds that pass before a window.
        sample_ms: milliseconds between samples.
        source: of hardware counters.
        seed: of weights and tokens.
    """

    models: tuple[str, ...]
    dtypes: tuple[DType, ...]
    concurrencies: tuple[int, ...]
    modes: tuple[Mode, ...]
    tp: int
    prompt: int
    outputs: int
    seconds: float
    settle: float
    sample_ms: int
    source: Source
    seed: int

    def turns(self) -> tuple[Turn, ...]:
        """All processes, in order; each measures its cells from the smallest on."""
        return tuple(
            Turn(self._job(model, dtype, mode))
            for model in self.models
            for dtype in self.dtypes
            for mode in self.modes
        )

    def _job(self, model: str, dtype: DType, mode: Mode) -> LoadJob:
        return LoadJob(
            stage=Stage.DECODE,
            model=model,
            tp=self.tp,
            dtype=dtype,
            variant=Variant(System.STOCK),
            mode=mode,
            ms=tuple(sorted(self.concurrencies)),
            prompt=self.prompt,
            outputs=self.outputs,
            repeats=PAIRS,
            seed=self.seed,
            seconds=self.seconds,
            settle=self.settle,
            sample_ms=self.sample_ms,
            source=self.source,
            compare_at=ends(self.concurrencies),
        )


def ends(concurrencies: Sequence[int]) -> tuple[int, ...]:
    """Where the cost of sampling is measured: steps are shortest at the least, longest at the most.

    Args:
        concurrencies: of the cells.
    """
    return tuple(sorted({min(concurrencies), max(concurrencies)}))


def load_key(key: Key) -> LoadKey:
    """The cell of a load benchmark that a turn's key names."""
    return LoadKey(*key.block, key.m)


def due(turns: Sequence[Turn], known: Known[LoadKey]) -> tuple[Turn, ...]:
    """What is left of them.

    Args:
        turns: of the whole run.
        known: of its cells.
    """
    left, done = [], known.done(load_key(key) for turn in turns for key in turn.keys)
    for turn in turns:
        ms = [m for m in turn.job.ms if load_key(turn.key(m)) not in done]
        if ms:
            left.append(turn.with_ms(ms))
    return tuple(left)


def expected_seconds(turns: Sequence[Turn]) -> float:
    """About how long these processes take: an estimate made before anything runs."""
    return sum(_expected(turn.job) for turn in turns)


def _expected(job: Job) -> float:
    assert isinstance(job, LoadJob)
    cells = 0.0
    for concurrency in job.ms:
        windows = 2 if concurrency in job.compare_at else 1
        lead = concurrency * (job.prompt + job.outputs / 2) / PREFILL_RATE
        cells += windows * job.seconds + job.settle + lead
    return BUILD_S[job.mode] + cells


def capture_sizes(concurrencies: Sequence[int], prompt: int, outputs: int) -> list[int]:
    """Numbers of tokens for which CUDA graphs are captured.

    vLLM's own list ends at 512 tokens (CompilationConfig.max_cudagraph_capture_size in 0.25.1): a
    step with more of them runs eagerly, and a comparison of eager with graphs at 1,024 sequences
    would compare eager with eager. This list has each concurrency, and above it what a step has
    when requests begin in it: on average concurrency / outputs of them, each with its prompt in
    place of one token. Powers of two serve smaller steps.

    Args:
        concurrencies: of the cells.
        prompt: tokens of a request's prompt.
        outputs: tokens that it generates.
    """
    largest = max(concurrencies)
    sizes = {2**power for power in range(largest.bit_length()) if 2**power <= largest}
    for concurrency in concurrencies:
        sizes.add(concurrency)
        mean = max(1, -(-concurrency // outputs))
        for begun in (mean, mean + 1, 2 * mean + 1, 4 * mean):
            tokens = concurrency + begun * (prompt - 1)
            sizes.add(-(-tokens // STEP_TOKENS) * STEP_TOKENS)
    return sorted(sizes)
