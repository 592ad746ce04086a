"""The cells of a sweep in a vLLM that is built: which requests run, and what their steps took."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from slidesparse.bench.sweep.job import Job, Stage
from slidesparse.bench.sweep.vllm_compat import MOST_IDLE, LiveEngine
from slidesparse.bench.sweep.vllm_steps import (
    LEAD_DECODE,
    SPARE,
    StepError,
    check_decode,
    check_prefill,
    decode_samples,
    decoded_per_sample,
    lead_prefill,
    prefill_samples,
    prompt_lengths,
    steps_per_sample,
)
from slidesparse.bench.watch import Watch, Watched
from slidesparse.devices import Device

TRIAL = 2
"""Prefill steps that warm a cell up and tell how long one takes."""


class Measured(NamedTuple):
    """What was measured of a cell.

    Args:
        step_us: microseconds of a step, one per sample.
        kernels: GPU time of a step or two, by name of the kernel.
        watched: clock, power and energy meanwhile.
        tokens: that ran while the GPUs were watched.
    """

    step_us: tuple[float, ...]
    kernels: Mapping[str, float]
    watched: Watched
    tokens: int


class Cells:
    """Runs the cells of one job.

    Args:
        job: what they measure.
        live: the engine, built for the job.
        vocab: tokens of prompts are below it.
        devices: on which it runs.
    """

    def __init__(self, job: Job, live: LiveEngine, vocab: int, devices: Sequence[Device]) -> None:
        """Bind the engine."""
        self._job, self._live, self._vocab, self._devices = job, live, vocab, devices
        self._log = live.log

    def run(self, m: int) -> Measured:
        """Measure one cell. The engine is empty afterwards; after other errors it is of no use.

        Args:
            m: tokens of a prefill step, or sequences of a decode step.

        Raises:
            StepError: the engine cannot run it, or did not run what was asked for.
        """
        self._log.clear()
        try:
            found = self._prefill(m) if self._job.stage is Stage.PREFILL else self._decode(m)
        except StepError:
            self._live.abort()
            raise
        self._live.abort()
        return found

    def _prefill(self, m: int) -> Measured:
        live, steps, repeats = self._live, self._log.steps, self._job.repeats
        lengths = prompt_lengths(m, self._job.prompt)
        self._check_room(len(lengths) * live.in_flight, max(lengths))
        with live.at_most(m):
            self._enqueue(lengths * TRIAL, 1, seed=m)
            self._advance(TRIAL)
            check_prefill(steps, m, len(lengths), self._capacity())
            one = steps[-1].time - steps[-2].time
            per_sample, lead = steps_per_sample(one), lead_prefill(one)
            live.abort()  # Nothing is left but what the engine keeps of it.
            self._log.clear()
            timed = per_sample * repeats
            self._enqueue(lengths * (lead + timed + SPARE), 1, seed=-m)
            self._advance(1)
            with Watch(self._devices) as watch:  # Opening it takes longer than a short step.
                self._advance(lead + timed)
            kernels = self._profile(SPARE)
        check_prefill(steps, m, len(lengths), self._capacity())
        samples = prefill_samples(steps, per_sample, repeats, lead)
        return Measured(samples, kernels, watch.read(), (lead - 1 + timed) * m)

    def _decode(self, m: int) -> Measured:
        job, steps = self._job, self._log.steps
        self._check_room(m, job.prompt + job.outputs)
        self._enqueue((job.prompt,) * m, job.outputs, seed=m)
        while not steps or (steps[-1].tokens, steps[-1].sequences) != (m, m):
            if not self._live.unfinished:
                raise StepError(
                    f"the {m} sequences never decoded together in {len(steps)} steps: the first "
                    f"had its {job.outputs} tokens before the last was prefilled; generate more "
                    f"tokens per sequence; {self._capacity()}"
                )
            self._advance(len(steps) + 1)
        first = len(steps) - 1
        per_sample = decoded_per_sample(steps, m, job.outputs, job.repeats)
        timed = per_sample * job.repeats
        with Watch(self._devices) as watch:
            self._advance(first + LEAD_DECODE + timed)
        kernels = self._profile(SPARE)
        check_decode(steps[first:], m, self._capacity())
        samples = decode_samples(steps, first, per_sample, job.repeats)
        return Measured(samples, kernels, watch.read(), (LEAD_DECODE - 1 + timed) * m)

    def _advance(self, count: int) -> None:
        """Let the engine step until the log has `count` steps.

        Raises:
            StepError: nothing is left to run, or what is left cannot be scheduled.
        """
        idle = 0
        while len(self._log) < count:
            before = len(self._log)
            self._live.step()
            idle = 0 if len(self._log) > before else idle + 1
            if idle > MOST_IDLE:
                raise StepError(
                    f"the engine stopped after {before} of {count} steps; {self._capacity()}"
                )

    def _profile(self, count: int) -> Mapping[str, float]:
        """GPU time by kernel of the next `count` steps, less one that is launched already."""
        self._live.ask("slidesparse_start")
        self._advance(len(self._log) + count)
        kernels: Mapping[str, float] = self._live.ask("slidesparse_stop")
        return kernels

    def _enqueue(self, lengths: Sequence[int], outputs: int, seed: int) -> None:
        prompts = random_prompts(lengths, self._vocab, self._job.seed, seed)
        self._live.enqueue(prompts, outputs)

    def _check_room(self, sequences: int, tokens: int) -> None:
        """Refuse what the KV cache cannot hold: `sequences` of up to `tokens` tokens each.

        Raises:
            StepError: names what is there and what is needed.
        """
        blocks, size = self._live.kv_blocks
        needed = sequences * -(-tokens // size)
        if needed > blocks:
            raise StepError(
                f"{sequences} sequences of up to {tokens} tokens need {needed} blocks; "
                f"{self._capacity()}"
            )

    def _capacity(self) -> str:
        blocks, size = self._live.kv_blocks
        return f"the KV cache has {blocks} blocks of {size} tokens"


def random_prompts(lengths: Sequence[int], vocab: int, *seeds: int) -> list[list[int]]:
    """Prompts of random tokens, other ones for other seeds.

    Args:
        lengths: tokens of each prompt.
        vocab: tokens are below it.
        seeds: of the values.
    """
    generator = random.Random(repr(seeds))
    return [generator.choices(range(vocab), k=length) for length in lengths]
