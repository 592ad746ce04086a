"""The worker's side of a search: one problem at a time, one candidate at a time, on one device."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from slidesparse.candidate import Candidate, Failure, Measurement
from slidesparse.devices import Device, l2_bytes
from slidesparse.errors import CandidateError
from slidesparse.monitor import GpuMonitor
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.search.backend import Backend, Effort
from slidesparse.search.backends import load_backend
from slidesparse.search.messages import Opening, Race
from slidesparse.search.operands import Operands, Weight, make_weight
from slidesparse.search.reference import Check, Reference, poison
from slidesparse.stats import interquartile
from slidesparse.timing import CpuTimed, GpuTimed, Runner, Timed, one_launch

SCREEN_SAMPLES = 3
GLANCE_US = 200.0
"""A single launch outside a graph says something from this time on: launching takes about 10."""


@dataclass
class _Ready:
    timed: Timed
    measurement: Measurement


class Session:
    """Operands, reference and prepared candidates of the problem in hand.

    Args:
        device: to run on.
        specs: of the backends that take part.
        seed: of all random operands.
    """

    def __init__(self, device: Device, specs: Sequence[str], seed: int) -> None:
        """Bind the device; backends are made once, for all problems."""
        self._device = device
        self._torch_device = torch.device(str(device))
        self._seed = seed
        self._backends: list[Backend] = [load_backend(spec) for spec in specs]
        self._by_name = {backend.name: backend for backend in self._backends}
        self._weights: dict[tuple[int, int, DType, Scales, Pattern], Weight] = {}
        self._monitor = GpuMonitor(device)
        self._operands: Operands | None = None
        self._reference: Reference | None = None
        self._ready: dict[str, _Ready] = {}
        self._stream: torch.cuda.Stream | None = None
        if device.is_gpu:
            torch.cuda.set_device(device.index)
            torch.backends.cuda.matmul.allow_tf32 = False
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def offer(self, problem: GemmProblem, effort: Effort) -> Opening:
        """List the candidates of every backend that takes part, without any operand."""
        candidates: list[Candidate] = []
        defaults: list[str] = []
        left_out: dict[str, str] = {}
        own = [b for b in self._backends if b.sparse is not problem.pattern.dense]
        for backend in own:
            found, reason = self._listed(backend, problem, effort)
            if found:
                candidates += found
                defaults.append(found[0].key)
            else:
                left_out[backend.name] = reason
        names = tuple(sorted(backend.identity for backend in own))
        return Opening(tuple(candidates), tuple(defaults), left_out, names)

    def _listed(
        self, backend: Backend, problem: GemmProblem, effort: Effort
    ) -> tuple[list[Candidate], str]:
        """The candidates of one backend, or why there are none."""
        refused = self._refusal(backend, problem)
        if refused is not None:
            return [], refused
        try:
            return backend.candidates(problem, effort), "it has no candidates"
        except CandidateError as error:
            return [], str(error)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # A library's own error classes; it costs that library only.
            return [], f"listing its candidates failed: {type(error).__name__}: {error}"

    def open(self, problem: GemmProblem, effort: Effort) -> Opening:
        """Make the operands of `problem` and list its candidates."""
        self.close()
        opening = self.offer(problem, effort)
        if opening.candidates:
            weight = self._weight(problem)
            cache = l2_bytes(self._device) if self._device.is_gpu else 0
            seed = self._seed + problem.m
            self._operands = Operands(problem, weight, self._torch_device, seed, cache)
            self._reference = Reference(self._operands)
        return opening

    def neighbours(self, candidate: Candidate, effort: Effort) -> list[Candidate]:
        """Variations of a candidate that its backend knows."""
        backend = self._by_name[candidate.backend]
        return backend.neighbours(self._need_operands().problem, candidate, effort)

    def screen(
        self, candidate: Candidate, patience_us: float | None = None
    ) -> Measurement | Failure:
        """Prepare a candidate, verify its whole output, and time it briefly.

        Args:
            candidate: to try.
            patience_us: a candidate that takes longer than this in its first sample is out of the
                question: that sample is its measurement, and it is not made ready to race.
        """
        operands = self._need_operands()
        backend = self._by_name.get(candidate.backend)
        if backend is None:
            return Failure(candidate, "refused", f"backend {candidate.backend} takes no part")
        try:
            runner = backend.prepare(operands.problem, candidate, operands)
        except CandidateError as error:
            return Failure(candidate, "refused", str(error))
        assert self._reference is not None
        check = self._reference.check(self._output_of(runner, operands))
        wrong = check.failure(operands.problem)
        if wrong is not None:
            return Failure(candidate, "wrong", wrong)
        timed: Timed
        patience = math.inf if patience_us is None else patience_us
        if self._stream is None:
            timed = CpuTimed(runner)
        elif (glance := one_launch(runner, self._stream)) > max(patience, GLANCE_US):
            return self._measurement(candidate, check, [glance], runner)
        else:
            timed, first = GpuTimed.make(runner, operands.sets, self._stream, patience)
            if first > patience:
                return self._measurement(candidate, check, [first], runner, timed)
        for _ in range(SCREEN_SAMPLES if self._stream else 1):
            timed.enqueue()
        samples = timed.collect()
        measurement = self._measurement(candidate, check, samples, runner, timed)
        self._ready[candidate.key] = _Ready(timed, measurement)
        return measurement

    def _measurement(
        self,
        candidate: Candidate,
        check: Check,
        samples: Sequence[float],
        runner: Runner,
        timed: Timed | None = None,
    ) -> Measurement:
        operands = self._need_operands()
        return Measurement(
            candidate=candidate,
            median_us=statistics.median(samples),
            spread_us=interquartile(samples),
            samples=len(samples),
            launches=timed.launches if timed is not None else 1,
            error=check.error,
            worst=check.worst,
            cold_l2=self._stream is not None and operands.sets > 1,
            graph=timed is not None and timed.graph,
            workspace=runner.workspace,
        )

    def _output_of(self, runner: Runner, operands: Operands) -> torch.Tensor:
        """Run once onto poisoned memory."""
        if self._stream is None:
            poison(operands.out(0))
            runner.launch(0, 0)
            return operands.out(0)
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            # A runner that makes its output gets this memory back from the allocator.
            out = torch.empty_like(operands.out(0)) if runner.makes_output else operands.out(0)
            poison(out)
            if runner.makes_output:
                del out
                made: torch.Tensor = runner.launch(0, self._stream.cuda_stream)
            else:
                runner.launch(0, self._stream.cuda_stream)
                made = out
        torch.cuda.synchronize()
        return made

    def race(self, candidates: Sequence[Candidate], rounds: int) -> Race:
        """Sample candidates in turn, `rounds` times each; all of them must have been screened."""
        ready = [self._ready[candidate.key].timed for candidate in candidates]
        for timed in ready:
            timed.collect()  # What an earlier race left behind when it failed does not count.
        for _ in range(rounds):
            for timed in ready:
                timed.enqueue()
        reading = self._monitor.read()
        samples = tuple(tuple(timed.collect()) for timed in ready)
        clock, power = reading if reading is not None else (None, None)
        return Race(samples, clock, power)

    def screened(self, candidate: Candidate) -> bool:
        """Whether a candidate is prepared and can race."""
        return candidate.key in self._ready

    def forget(self, keep: Sequence[Candidate]) -> None:
        """Drop the graphs and workspaces of all screened candidates but `keep`."""
        keys = {candidate.key for candidate in keep}
        self._ready = {key: ready for key, ready in self._ready.items() if key in keys}

    def close(self) -> None:
        """Drop the problem in hand and its memory; the weight stays for the next M."""
        self._ready = {}
        self._reference = None
        self._operands = None
        if self._device.is_gpu:
            torch.cuda.empty_cache()

    def _refusal(self, backend: Backend, problem: GemmProblem) -> str | None:
        available = backend.availability(self._device)
        if not available.ok:
            return (
                f"{available.reason}; {available.remedy}"
                if available.remedy
                else (available.reason)
            )
        return backend.refusal(problem, self._device)

    def _weight(self, problem: GemmProblem) -> Weight:
        key = (problem.n, problem.k, problem.dtype, problem.scales, problem.pattern)
        weight = self._weights.get(key)
        if weight is None:
            self._weights.clear()
            weight = make_weight(problem, self._torch_device, self._seed)
            self._weights[key] = weight
        return weight

    def _need_operands(self) -> Operands:
        if self._operands is None:
            raise CandidateError("no problem is open")
        return self._operands
