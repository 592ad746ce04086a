"""A closed loop on an engine that is a few lines of arithmetic; a real vLLM is in _vllm."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import pytest

from slidesparse.bench.counters import loop as counters_loop
from slidesparse.bench.counters.loop import ClosedLoop, Request, first_requests
from slidesparse.bench.counters.samples import EngineLoad
from slidesparse.bench.counters.window import PAIRS, SLICES, FlowStep
from slidesparse.bench.sweep.vllm_cells import random_prompts
from slidesparse.bench.sweep.vllm_steps import StepError

STEP_S = 0.0005


class Tiny:
    """Gives every running request a token per step; `room` of them run at a time."""

    def __init__(self, room: int = 1000, stuck_after: int | None = None) -> None:
        self.flow: list[FlowStep] = []
        self.requests: list[list[int]] = []
        self.added: list[tuple[int, int]] = []
        self.seen: Counter[int] = Counter()
        self.room, self.stuck_after = room, stuck_after

    def enqueue_each(self, prompts: Sequence[Sequence[int]], outputs: Sequence[int]) -> None:
        for prompt, count in zip(prompts, outputs, strict=True):
            self.added.append((len(prompt), count))
            self.requests.append([count])

    def step(self) -> None:
        if self.stuck_after is not None and len(self.flow) >= self.stuck_after:
            return
        time.sleep(STEP_S)
        self.seen[len(self.requests)] += 1
        running = self.requests[: self.room]
        for request in running:
            request[0] -= 1
        finished = sum(not request[0] for request in running)
        self.requests = [request for request in self.requests if request[0]]
        self.flow.append(FlowStep(time.perf_counter(), len(running), finished, 0))

    def load(self) -> EngineLoad:
        running = min(self.room, len(self.requests))
        return EngineLoad(running, len(self.requests) - running, 0.5)

    @property
    def outstanding(self) -> int:
        return len(self.requests)


class Growing(Tiny):
    """Has room for one more every twenty steps."""

    def __init__(self, kv: float = 0.5, first: int = 1) -> None:
        super().__init__(room=first)
        self.kv = kv

    def step(self) -> None:
        super().step()
        self.room += len(self.flow) % 20 == 0

    def load(self) -> EngineLoad:
        return super().load()._replace(kv_used=self.kv)


class Meter:
    """Counts joules by the clock, 100 W, and notes when it was switched."""

    def __init__(self) -> None:
        self.switches: list[str] = []

    def resume(self) -> None:
        self.switches.append("on")

    def pause(self) -> None:
        self.switches.append("off")

    def joules(self) -> float | None:
        return 100 * time.perf_counter()


def loop(engine: Tiny, concurrency: int = 8, outputs: int = 16) -> ClosedLoop:
    return ClosedLoop(engine, concurrency, Request(4, outputs), vocab=50, seed=1)


@pytest.mark.parametrize(("count", "outputs"), [(1, 512), (7, 16), (256, 512), (1024, 512), (5, 1)])
def test_the_first_requests_are_under_way_evenly(count: int, outputs: int) -> None:
    made = first_requests(count, Request(30, outputs))
    assert len(made) == count
    # Each is one whole request, seen at some age; none is done, and none holds more than a whole.
    assert {it.prompt + it.outputs for it in made} == {30 + outputs}
    assert min(it.outputs for it in made) >= 1
    assert min(it.prompt for it in made) >= 30
    ages = Counter(it.prompt - 30 for it in made)
    # Every age about as often as any other.
    assert max(ages.values()) <= -(-count // outputs) + 1
    assert sum(age * n for age, n in ages.items()) / count == pytest.approx(outputs / 2, abs=1)


def test_the_loop_keeps_exactly_so_many_requests() -> None:
    engine = Tiny()
    window = loop(engine).measure(Meter(), seconds=0.1, settle=0.02)
    # One alone, whose prefill compiles what prefill needs; it is no part of the load.
    assert engine.added[0] == (4, 2)
    assert engine.seen.pop(1) == 2
    assert set(engine.seen) == {8}
    # After the first generation every request is a whole one.
    assert set(engine.added[9:]) == {(4, 16)}
    # Eight requests of 16 tokens: one ends every other step.
    assert window.finished == pytest.approx(window.tokens / 16, abs=2)
    assert window.dropped == 8


def test_the_window_is_cut_out_of_the_flow() -> None:
    engine = Tiny()
    window = loop(engine).measure(Meter(), seconds=0.1, settle=0.02)
    (only,) = window.stretches
    assert only.sampled
    # It ends with the step that passes its time, which takes longer on a busy machine.
    assert 0.1 <= only.seconds < 1.0
    assert len(window.parts) == SLICES
    assert sum(it.tokens for it in window.parts) == only.tokens == 8 * only.steps
    assert window.lead_s >= 0.02
    # Two steps pass between the lead and the stretch.
    assert window.lead_tokens + window.tokens == sum(step.generated for step in engine.flow)
    assert 0 <= window.tokens - only.tokens <= 3 * 8
    # The meter is read a little before and after.
    assert 100 * only.seconds <= window.joules < 100 * (window.seconds + 0.5)


def test_sampling_is_compared_in_turn() -> None:
    engine, meter = Tiny(), Meter()
    window = loop(engine).measure(meter, seconds=0.12, settle=0.01, compare=True)
    assert len(window.stretches) == 2 * PAIRS
    assert [it.sampled for it in window.stretches[:4]] == [True, False, False, True]
    assert len(window.sampled) == PAIRS
    assert window.parts == window.sampled
    assert meter.switches == ["on", "off"] * PAIRS
    # A stretch ends with the step that passes its time, which takes longer on a busy machine.
    assert 0.119 < sum(it.seconds for it in window.sampled) < 1.0
    assert window.seconds > sum(it.seconds for it in window.stretches)


def test_what_does_not_fit_waits_and_the_loop_goes_on() -> None:
    engine = Tiny(room=5)
    window = loop(engine).measure(Meter(), seconds=0.05, settle=0.01)
    assert engine.load().running == 5
    assert engine.load().waiting == 3
    assert window.stretches[0].rate == pytest.approx(
        5 * window.stretches[0].steps / window.stretches[0].seconds
    )


def test_a_load_that_goes_on_growing_is_no_steady_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more sequence begins every twenty steps; no figure may come of it."""
    monkeypatch.setattr(counters_loop, "LONGEST_LEAD", 0.1)
    engine = Growing()
    with pytest.raises(StepError, match=r"no steady state after .* sequences still begin: .* wait"):
        loop(engine, concurrency=900).measure(Meter(), seconds=0.1, settle=0.05)
    # With a full cache one more among hundreds is no growth.
    crowded = Growing(kv=0.95, first=400)
    window = loop(crowded, concurrency=900).measure(Meter(), seconds=0.05, settle=0.05)
    assert window.lead_s < 1.0


def test_an_engine_that_stops_is_an_error() -> None:
    with pytest.raises(StepError, match="no tokens in 200 steps: 8 requests running and 0 w"):
        loop(Tiny(stuck_after=5)).measure(Meter(), seconds=0.1, settle=0.01)
    with pytest.raises(StepError, match="one request of 4 tokens did not end: 1 requests running"):
        loop(Tiny(stuck_after=1)).measure(Meter(), seconds=0.1, settle=0.01)


def test_no_two_prompts_are_alike() -> None:
    prompts = [tuple(it) for it in random_prompts((30,) * 50, 1000, 3, 0)]
    later = [tuple(it) for it in random_prompts((30,) * 50, 1000, 3, 50)]
    assert len({*prompts, *later}) == 100
