"""The worker's side of tuning: one problem at a time, its configurations verified and timed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch

from slidesparse.candidate import Candidate, Failure, Measurement
from slidesparse.devices import Device, l2_bytes
from slidesparse.kernel_problem import KernelProblem
from slidesparse.kernels.case import Case
from slidesparse.kernels.config import Config
from slidesparse.stats import interquartile
from slidesparse.timing import GpuTimed, Runner
from slidesparse.worker import first_line, is_device_fault

SCREEN_SAMPLES = 3
PATIENCE = 2.0
"""A configuration that takes this many times the best one's time in its first sample is out."""


class KernelSession:
    """Operands and prepared configurations of the problem in hand, on one GPU.

    A request names its problem, so that a new process after a crash knows what to open.

    Args:
        device: to run on.
        seed: of all random operands.
    """

    def __init__(self, device: Device, seed: int) -> None:
        """Bind the GPU."""
        torch.cuda.set_device(device.index)
        self._device = torch.device(str(device))
        self._l2 = l2_bytes(device)
        self._seed = seed
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._case: Case | None = None
        self._ready: dict[Candidate, GpuTimed] = {}
        self._best = math.inf

    def screen(self, problem: KernelProblem, candidate: Candidate) -> Measurement | Failure:
        """Verify a configuration on poisoned outputs and time it briefly."""
        case = self._open(problem)
        config = Config.of(candidate)
        try:
            wrong = case.wrong(config)
            if wrong is not None:
                return Failure(candidate, "wrong", wrong)
            return self._time(case, candidate, config)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            # Compilers and launchers have error classes of their own; a lost device is not theirs.
            if is_device_fault(error):
                raise
            return Failure(candidate, "refused", f"{type(error).__name__}: {first_line(error)}")

    def race(
        self, problem: KernelProblem, candidates: Sequence[Candidate], rounds: int
    ) -> tuple[Measurement, ...]:
        """Time screened configurations in turn, `rounds` samples each.

        One that has to be screened again and fails then is left out.
        """
        self._open(problem)
        for candidate in candidates:
            if candidate not in self._ready:
                # Another process screened it, or it was too slow to be kept then.
                self._best = math.inf
                self.screen(problem, candidate)
        ready = {c: self._ready[c] for c in candidates if c in self._ready}
        for _ in range(rounds):
            for timed in ready.values():
                timed.enqueue()
        return tuple(
            self._measurement(candidate, timed.collect(), timed)
            for candidate, timed in ready.items()
        )

    def _time(self, case: Case, candidate: Candidate, config: Config) -> Measurement:
        runner = Runner(lambda index, _stream: case.run(config, index))
        patience = PATIENCE * self._best
        timed, first = GpuTimed.make(runner, len(case.sets), self._stream, patience)
        if first > patience:
            return self._measurement(candidate, [first], timed)
        for _ in range(SCREEN_SAMPLES):
            timed.enqueue()
        measurement = self._measurement(candidate, timed.collect(), timed)
        self._best = min(self._best, measurement.median_us)
        self._ready[candidate] = timed
        return measurement

    def _open(self, problem: KernelProblem) -> Case:
        if self._case is None or self._case.problem != problem:
            self._case, self._ready, self._best = None, {}, math.inf
            torch.cuda.empty_cache()
            self._case = Case(problem, self._device, self._seed, self._l2)
        return self._case

    def _measurement(
        self, candidate: Candidate, samples: Sequence[float], timed: GpuTimed
    ) -> Measurement:
        return Measurement(
            candidate=candidate,
            median_us=statistics.median(samples),
            spread_us=interquartile(samples),
            samples=len(samples),
            launches=timed.launches,
            # Verified value by value against the reference, not by a norm.
            error=0.0,
            worst=0.0,
            cold_l2=timed.sets > 1,
        )
