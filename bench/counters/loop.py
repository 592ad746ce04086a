"""A closed loop: exactly C requests are in the engine all the time, and a window of it is measured.

**The load.** Each request has `prompt` tokens and generates `outputs`, no more and no fewer (random
tokens; the end-of-text token is ignored). As one ends the next is added, so C are always there;
vLLM runs as many of them as its KV cache holds, and the rest waits.

**The steady state.** If all C began together they would end together, again and again: tokens per
second would depend on where in that wave the window lies. So the first C requests stand for
sequences that are under way: number i of C is as old as a request of a running service would be
(ages spread evenly over 0 to `outputs`), with that many more tokens in its prompt and that many
fewer to generate. This is the stationary state of a loop of requests of one length (in an
equilibrium renewal process the density of an age is the survivor function over the mean lifetime,
so it is uniform where lifetimes are all alike: D. R. Cox, Renewal Theory, 1962), and it needs no
warm-up of a whole generation. What is cut off at the start is one short request, the prefill of
the first C and `settle` seconds after the number of running sequences has stopped growing; at the
end everything that is unfinished is dropped. How much both were is part of the result.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from slidesparse.bench.counters.samples import EngineLoad
from slidesparse.bench.counters.window import (
    PAIRS,
    SLICES,
    FlowStep,
    Stretch,
    slices,
    stretch,
    switching,
)
from slidesparse.bench.sweep.vllm_cells import random_prompts
from slidesparse.bench.sweep.vllm_compat import MOST_IDLE
from slidesparse.bench.sweep.vllm_steps import StepError

LONGEST_LEAD = 300.0
"""Seconds after which a load that still grows is given up."""

CROWDED = 0.9
"""Share of the KV cache above which an engine may admit one more now and then for ever."""

AFTER_SWITCH = 2
"""Steps that are left out after sampling was switched on or off."""


class Loop(Protocol):
    """What a closed loop asks of an engine."""

    flow: list[FlowStep]

    def enqueue_each(self, prompts: Sequence[Sequence[int]], outputs: Sequence[int]) -> None:
        """Add requests."""

    def step(self) -> None:
        """Let the engine do its next step."""

    def load(self) -> EngineLoad:
        """What it has in hand."""

    @property
    def outstanding(self) -> int:
        """Requests that have not ended."""


class Switch(Protocol):
    """What a closed loop asks of a sampler."""

    def resume(self) -> None:
        """Sample from now on."""

    def pause(self) -> None:
        """Sample no more."""

    def joules(self) -> float | None:
        """Energy counted so far."""


@dataclass(frozen=True)
class Request:
    """The sizes of a request.

    Args:
        prompt: its tokens.
        outputs: tokens that it generates.
    """

    prompt: int
    outputs: int


@dataclass(frozen=True)
class Window:
    """What a closed loop did while it was measured.

    Args:
        stretches: that were measured, in order; those with `sampled` carry the figures.
        parts: of the sampled time, whose rates give the spread.
        joules: that the GPUs used from the first stretch to the last; None where not told.
        tokens: generated in that time.
        seconds: of that time.
        finished: requests that ended in it.
        preemptions: in it.
        lead_s: seconds before it.
        lead_tokens: generated before it.
        dropped: requests that were unfinished after it.
    """

    stretches: tuple[Stretch, ...]
    parts: tuple[Stretch, ...]
    joules: float | None
    tokens: int
    seconds: float
    finished: int
    preemptions: int
    lead_s: float
    lead_tokens: int
    dropped: int

    @property
    def sampled(self) -> tuple[Stretch, ...]:
        """The stretches with sampling."""
        return tuple(it for it in self.stretches if it.sampled)


def first_requests(count: int, request: Request) -> list[Request]:
    """The requests that a loop begins with: under way, ages spread evenly, none of them done.

    Args:
        count: of requests.
        request: the sizes of a whole one.
    """
    ages = [(2 * index + 1) * request.outputs // (2 * count) for index in range(count)]
    return [Request(request.prompt + age, request.outputs - age) for age in ages]


class ClosedLoop:
    """Runs one load.

    Args:
        engine: that is empty; it holds unfinished requests afterwards.
        concurrency: requests that are there all the time.
        request: their sizes.
        vocab: tokens of prompts are below it.
        seed: of these tokens.
    """

    def __init__(
        self, engine: Loop, concurrency: int, request: Request, vocab: int, seed: int
    ) -> None:
        """Nothing runs yet."""
        self._engine, self._concurrency, self._request = engine, concurrency, request
        self._vocab, self._seed, self._added = vocab, seed, 0

    def measure(
        self, sampler: Switch, seconds: float, settle: float, compare: bool = False
    ) -> Window:
        """Run up to the steady state, then measure.

        Args:
            sampler: that is paused; it is paused again afterwards.
            seconds: of sampled time.
            settle: seconds that pass after the number of running sequences stopped growing.
            compare: whether as much time without sampling alternates with it.

        Raises:
            StepError: the engine stopped, or no step fitted into the window.
        """
        engine, begun = self._engine, time.perf_counter()
        self._warm_up()
        engine.flow.clear()
        self._add(first_requests(self._concurrency, self._request))
        self._lead(settle, begun)
        first = len(engine.flow) - 1
        before = sampler.joules()
        order = switching(PAIRS) if compare else (True,)
        each = 2 * seconds / len(order) if compare else seconds
        ranges = [(on, *self._stretch(sampler, on, each)) for on in order]
        after, last = sampler.joules(), len(engine.flow) - 1
        flow = engine.flow
        inside = flow[first + 1 : last + 1]
        stretches = tuple(stretch(flow, a, b, on) for on, a, b in ranges)
        parts = [it for it in stretches if it.sampled]
        if not compare:
            parts = slices(flow, ranges[0][1], ranges[0][2], SLICES)
        return Window(
            stretches=stretches,
            parts=tuple(parts),
            joules=None if before is None or after is None else after - before,
            tokens=sum(step.generated for step in inside),
            seconds=flow[last].time - flow[first].time,
            finished=sum(step.finished for step in inside),
            preemptions=sum(step.preempted for step in inside),
            lead_s=flow[first].time - begun,
            lead_tokens=sum(step.generated for step in flow[: first + 1]),
            dropped=engine.outstanding,
        )

    def _warm_up(self) -> None:
        """Run one short request, so that what prefill compiles is not compiled in the window.

        One sequence alone may decode for longer than the window before the next one is prefilled.
        """
        self._add([Request(self._request.prompt, min(2, self._request.outputs))])
        for _ in range(MOST_IDLE):
            if not self._engine.outstanding:
                return
            self._engine.step()
        raise StepError(f"one request of {self._request.prompt} tokens did not end: {self._load()}")

    def _lead(self, settle: float, begun: float) -> None:
        """Run until the number of running sequences has not grown for `settle` seconds.

        With a full KV cache, one in a hundred more is no growth.

        Raises:
            StepError: it goes on growing.
        """
        most, grown = 0, time.perf_counter()
        while True:
            self._step()
            load, now = self._engine.load(), time.perf_counter()
            if load.running > most + (most // 100 if load.kv_used > CROWDED else 0):
                most, grown = load.running, now
            if now - grown >= settle:
                return
            if now - begun >= LONGEST_LEAD + settle:
                raise StepError(
                    f"no steady state after {now - begun:.0f} s, sequences still begin: "
                    f"{self._load()}; use shorter prompts or a smaller --concurrency"
                )

    def _stretch(self, sampler: Switch, on: bool, seconds: float) -> tuple[int, int]:
        """Run for a while; the indices of the steps with whose arrival it began and ended."""
        if on:
            sampler.resume()
        for _ in range(AFTER_SWITCH):
            self._step()
        flow = self._engine.flow
        first = len(flow) - 1
        end = flow[first].time + seconds
        while flow[-1].time < end:
            self._step()
        if on:
            sampler.pause()
        return first, len(flow) - 1

    def _step(self) -> None:
        """Let the engine step until tokens arrive, and fill up what has ended.

        Raises:
            StepError: no tokens arrive.
        """
        engine, before, idle = self._engine, len(self._engine.flow), 0
        while len(engine.flow) == before:
            engine.step()
            missing = self._concurrency - engine.outstanding
            if missing > 0:
                self._add([self._request] * missing)
            idle += 1
            if idle > MOST_IDLE:
                raise StepError(f"the engine gave no tokens in {MOST_IDLE} steps: {self._load()}")

    def _load(self) -> str:
        """What the engine has in hand, for messages."""
        load = self._engine.load()
        return (
            f"{load.running} requests running and {load.waiting} waiting, "
            f"{100 * load.kv_used:.0f} % of its KV cache in use"
        )

    def _add(self, requests: Sequence[Request]) -> None:
        lengths = [request.prompt for request in requests]
        prompts = random_prompts(lengths, self._vocab, self._seed, self._added)
        self._added += len(requests)
        self._engine.enqueue_each(prompts, [request.outputs for request in requests])
