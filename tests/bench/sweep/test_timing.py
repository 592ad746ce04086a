"""Samples of whole steps on the CPU; those of a GPU have tests under tests/gpu."""

from __future__ import annotations

import time

import torch

from slidesparse.bench.sweep.job import Mode
from slidesparse.bench.sweep.timing import kernel_shares, prepare, sample
from slidesparse.devices import CPU


def test_every_sample_is_one_step_and_the_first_run_is_none_of_them() -> None:
    calls: list[float] = []

    def step() -> torch.Tensor:
        # The first run is slow, as where something is compiled.
        time.sleep(1.0 if not calls else 0.01)
        calls.append(time.monotonic())
        return torch.zeros(1)

    timed = prepare(step, Mode.EAGER, None)
    assert len(calls) == 1
    found = sample(timed, 4, CPU)
    assert len(calls) == 5
    assert found.steps == len(found.step_us) == 4
    assert all(10_000 <= us < 1_000_000 for us in found.step_us), found.step_us
    assert found.watched == (None, None, None)


def test_a_cpu_has_no_kernels() -> None:
    assert kernel_shares(lambda: torch.zeros(1), None) == {}
