"""From the arrivals of steps to the times of a cell: what counts, is cut off or is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidesparse.bench.sweep.vllm_steps import (
    FEWEST_DECODED,
    LEAD_DECODE,
    LEAD_PREFILL,
    MOST_STEPS,
    SPARE,
    Step,
    StepError,
    StepLog,
    check_decode,
    check_prefill,
    decode_samples,
    decoded_per_sample,
    lead_prefill,
    prefill_samples,
    prompt_lengths,
    steps_per_sample,
)


@given(m=st.integers(1, 70000), prompt=st.integers(1, 5000))
def test_prompts_hold_exactly_m_tokens(m: int, prompt: int) -> None:
    lengths = prompt_lengths(m, prompt)
    assert sum(lengths) == m
    assert set(lengths[:-1]) <= {prompt}
    assert 1 <= lengths[-1] <= prompt


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [(0.0, MOST_STEPS), (0.001, MOST_STEPS), (0.01, 30), (0.14, 2), (0.94, 1)],
)
def test_a_sample_fills_its_time_with_a_few_steps(seconds: float, steps: int) -> None:
    assert steps_per_sample(seconds) == steps


def made(times: list[float], m: int = 64, sequences: int = 2) -> list[Step]:
    return [Step(time, m, sequences) for time in times]


def test_prefill_samples_are_wall_time_over_steps() -> None:
    # The first arrivals include the filling of the queue; what comes after the last is not timed.
    times = [0.0, 9.0, 10.0, 10.5, 12.0, 13.0, 14.0, 99.0, 100.0]
    assert LEAD_PREFILL == 3
    assert [lead_prefill(s) for s in (0.25, 0.06, 2.0)] == [4, 17, LEAD_PREFILL]
    assert prefill_samples(made(times), per_sample=2, repeats=2) == pytest.approx((1e6, 1e6))


def test_decode_samples_are_medians_of_their_own_steps() -> None:
    # Two steps of prefill, then one a second; a pause in the second sample does not count.
    first, per_sample, repeats = 2, 5, 2
    start = first + LEAD_DECODE
    times = [0.5 * index for index in range(start)]
    for index in range(per_sample * repeats + SPARE):
        pause = 5.0 if index == 7 else 0.0
        times.append(times[-1] + (1.0 if index < per_sample else 2.0) + pause)
    found = decode_samples(made(times), first, per_sample, repeats)
    assert found == pytest.approx((1e6, 2e6))


def test_all_steps_that_decode_together_are_used() -> None:
    steps = [Step(0.0, 512, 16), Step(1.0, 500, 20), Step(2.0, 32, 32)]
    outputs = 2 + LEAD_DECODE + SPARE + 3 * FEWEST_DECODED
    assert decoded_per_sample(steps, 32, outputs, 3) == FEWEST_DECODED
    assert decoded_per_sample(steps, 32, outputs + 2, 3) == FEWEST_DECODED
    assert decoded_per_sample(steps, 32, outputs + 3, 3) == FEWEST_DECODED + 1


def test_too_few_tokens_say_how_many_there_must_be() -> None:
    steps = [Step(0.0, 512, 16), Step(1.0, 500, 20), Step(2.0, 32, 32)]
    least = 2 + LEAD_DECODE + SPARE + 3 * FEWEST_DECODED
    with pytest.raises(StepError, match=rf"took 2 steps.*need {least} tokens per sequence"):
        decoded_per_sample(steps, 32, least - 1, 3)
    assert decoded_per_sample(steps, 32, least, 3) == FEWEST_DECODED


def test_a_step_that_was_cut_is_refused() -> None:
    steps = [Step(0.0, 4096, 4), Step(1.0, 3072, 3)]
    with pytest.raises(
        StepError, match=r"step 1 ran 3072 tokens of 3 prompts instead of 4096 of 4"
    ):
        check_prefill(steps, 4096, 4, "the KV cache has 3 blocks")
    check_prefill(steps[:1], 4096, 4, "")


def test_a_decode_step_without_all_sequences_is_refused() -> None:
    with pytest.raises(StepError, match=r"decode step 1 ran 15 tokens of 15 sequences"):
        check_decode([Step(0.0, 16, 16), Step(1.0, 15, 15)], 16, "")
    with pytest.raises(StepError, match=r"decode step 0 ran 47 tokens of 16 sequences"):
        check_decode([Step(0.0, 47, 16)], 16, "")


def test_the_log_leaves_out_steps_without_tokens() -> None:
    log = StepLog()
    log.note(0, 0)
    log.note(7, 2)
    assert len(log) == 1
    assert (log.steps[0].tokens, log.steps[0].sequences) == (7, 2)
    steps = log.steps
    log.clear()
    assert len(log) == 0
    assert log.steps is steps
