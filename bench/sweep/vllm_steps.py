"""What the steps of an engine were, and the times of those that a cell measures.

An engine that schedules ahead has a step in flight while it waits for the one before. So no single
step is timed from its start: the clock is read when the tokens of a step have arrived, which is
when the GPU is done with it, and a step's time is that from one arrival to the next.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from slidesparse.errors import SlideSparseError

LEAD_PREFILL = 3
"""Steps before the first that counts: the queue of the engine fills. After the first of them power
is watched, which begins with a pause."""

SETTLE_SECONDS = 1.0
"""How long prefill steps run before the first that counts: the clock of a GPU at its power limit
takes about so long to settle."""

LEAD_DECODE = 4
"""Likewise, of the steps in which all sequences decode."""

SPARE = 2
"""Steps after the last that counts, for the profiler. The engine never runs dry before."""

SAMPLE_SECONDS = 0.3
"""A sample of prefill steps holds as many as fill this."""

MOST_STEPS = 64
"""Of a sample of prefill steps; one is the least, timed like any other from arrival to arrival."""

FEWEST_DECODED = 4
"""Steps of a sample whose median is taken."""


class StepError(SlideSparseError):
    """The steps that ran are not what a cell measures, or there can be none; says why."""


@dataclass(frozen=True)
class Step:
    """One step that an engine has run.

    Args:
        time: in seconds, when its tokens had arrived.
        tokens: that it ran through the model.
        sequences: that these tokens belong to.
    """

    time: float
    tokens: int
    sequences: int


@dataclass
class StepLog:
    """The steps since the log was cleared, in order; steps without tokens are left out."""

    steps: list[Step] = field(default_factory=list)

    def note(self, tokens: int, sequences: int) -> None:
        """A step's tokens have arrived."""
        if tokens:
            self.steps.append(Step(time.perf_counter(), tokens, sequences))

    def clear(self) -> None:
        """Forget all steps."""
        self.steps.clear()

    def __len__(self) -> int:
        """How many steps there were."""
        return len(self.steps)


def prompt_lengths(m: int, prompt: int) -> tuple[int, ...]:
    """Lengths of prompts that hold `m` tokens together, all but the last `prompt` tokens."""
    whole, rest = divmod(m, prompt)
    return (prompt,) * whole + ((rest,) if rest else ())


def lead_prefill(seconds: float) -> int:
    """How many prefill steps of `seconds` each run before the first that counts."""
    return max(LEAD_PREFILL, min(MOST_STEPS, math.ceil(SETTLE_SECONDS / max(seconds, 1e-9))))


def steps_per_sample(seconds: float) -> int:
    """How many prefill steps of `seconds` each make a sample."""
    return max(1, min(MOST_STEPS, round(SAMPLE_SECONDS / max(seconds, 1e-9))))


def check_prefill(steps: Sequence[Step], m: int, sequences: int, capacity: str) -> None:
    """Make sure that every step ran M tokens of whole prompts.

    Args:
        steps: all that ran.
        m: tokens that each had to run.
        sequences: prompts that each had to run.
        capacity: what the engine can hold, for the message.

    Raises:
        StepError: a step ran something else.
    """
    for index, step in enumerate(steps):
        if (step.tokens, step.sequences) != (m, sequences):
            raise StepError(
                f"step {index} ran {step.tokens} tokens of {step.sequences} prompts instead of {m} "
                f"of {sequences}: the scheduler cut it; {capacity}"
            )


def prefill_samples(
    steps: Sequence[Step], per_sample: int, repeats: int, lead: int = LEAD_PREFILL
) -> tuple[float, ...]:
    """Microseconds of a step, one per sample: wall time of its steps over their number.

    Args:
        steps: at least lead + per_sample * repeats of them, back to back.
        per_sample: steps of a sample.
        repeats: samples.
        lead: steps before the first sample, at least one.
    """
    edges = [steps[lead - 1 + index * per_sample].time for index in range(repeats + 1)]
    return tuple(1e6 * (b - a) / per_sample for a, b in pairwise(edges))


def decoded_per_sample(steps: Sequence[Step], m: int, outputs: int, repeats: int) -> int:
    """How many steps each sample of a decode cell has.

    All sequences decode together after the step that prefills the last of them and until the first
    of them has its last token: in `outputs` minus the number of steps before.

    Args:
        steps: from the start to the first step in which all `m` decode.
        m: sequences.
        outputs: tokens that each generates.
        repeats: samples.

    Raises:
        StepError: too few are left; says how many there must be.
    """
    before = len(steps) - 1
    left = outputs - before - LEAD_DECODE - SPARE
    if left < repeats * FEWEST_DECODED:
        least = before + LEAD_DECODE + SPARE + repeats * FEWEST_DECODED
        raise StepError(
            f"prefilling {m} sequences took {before} steps, which leaves {max(left, 0)} steps in "
            f"which all of them decode; {repeats} samples need {least} tokens per sequence instead "
            f"of {outputs}: raise --outputs"
        )
    return left // repeats


def decode_samples(
    steps: Sequence[Step], first: int, per_sample: int, repeats: int
) -> tuple[float, ...]:
    """Microseconds of a step, one per sample: the median over its steps.

    Samples follow each other in one generation, so later ones attend to longer contexts.

    Args:
        steps: all of them.
        first: index of the first step in which all sequences decode.
        per_sample: steps of a sample.
        repeats: samples.
    """
    last_lead = first + LEAD_DECODE - 1
    samples = []
    for index in range(repeats):
        begin = last_lead + index * per_sample
        times = [step.time for step in steps[begin : begin + per_sample + 1]]
        samples.append(1e6 * statistics.median(b - a for a, b in pairwise(times)))
    return tuple(samples)


def check_decode(steps: Sequence[Step], m: int, capacity: str) -> None:
    """Make sure that every step gave all M sequences one token.

    Raises:
        StepError: a step ran something else, as when a sequence had to wait for memory.
    """
    for index, step in enumerate(steps):
        if (step.tokens, step.sequences) != (m, m):
            raise StepError(
                f"decode step {index} ran {step.tokens} tokens of {step.sequences} sequences "
                f"instead of one of each of {m}; {capacity}"
            )
