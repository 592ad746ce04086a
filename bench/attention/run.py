"""Times of attention: every backend that runs here, in one race, and each sustained for a while.

All backends of a problem get the same random operands, each checked on them before its time
counts. They are sampled in turn. Afterwards each runs alone, without a pause, for so long that the
GPU's counters, clock and power mean something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from slidesparse.bench.attention.backends import Backend, Refused, Way
from slidesparse.bench.attention.check import Checker, Errors, Operands
from slidesparse.bench.attention.problem import AttentionProblem
from slidesparse.bench.attention.record import AttentionRow, Kind, LeftOut, Sustained
from slidesparse.bench.fault import DeviceLost, guard
from slidesparse.bench.linear.case import count_sets
from slidesparse.bench.on_device import OnDevice
from slidesparse.bench.race import Time, race
from slidesparse.bench.watch import Watch
from slidesparse.counters import GpmSampler
from slidesparse.devices import Device
from slidesparse.tensors import TORCH_DTYPES
from slidesparse.timing import CpuTimed, GpuTimed, GraphPool, Runner, Timed
from slidesparse.worker import first_line

ROUNDS, FEWEST_ROUNDS = 21, 7
RACE_US = 1.5e6
"""The samples of one race take about this long; each backend has FEWEST_ROUNDS of them at least."""

SUSTAINED_S = 1.5
"""Each backend runs alone for so long: NVML averages power over about a second."""

ALONE_FACTOR = 16
"""One set of operands so many times larger than the L2 cache needs no second one: what is left of
it in the cache when the next launch begins is less than one part in so many."""

AHEAD = 32
"""Samples that are started before the first of them is waited for."""


@dataclass(frozen=True)
class _Entrant:
    """A verified backend that is ready to race."""

    backend: Backend
    how: str
    timed: Timed
    errors: Errors


class AttentionBench(OnDevice):
    """Times attention on one device.

    Args:
        device: a GPU, or the CPU.
        seed: of the operands.
        backends: that take part.
    """

    def __init__(self, device: Device, seed: int, backends: Sequence[Backend]) -> None:
        """Bind the device."""
        super().__init__(device)
        self._seed, self._backends = seed, tuple(backends)

    def run(
        self, problems: Sequence[AttentionProblem], say: Callable[[str], None] = lambda text: None
    ) -> Iterator[AttentionRow | LeftOut]:
        """Measure every backend on every problem.

        Args:
            problems: in their order.
            say: told what is in hand.

        Raises:
            DeviceLost: the device is lost, with what ran; no more can be measured.
        """
        for problem in problems:
            with guard(self._device, None, f"{problem}: preparing"):
                yield from self._problem(problem, say)
                self._tidy()

    @torch.no_grad()
    def _problem(
        self, problem: AttentionProblem, say: Callable[[str], None]
    ) -> Iterator[AttentionRow | LeftOut]:
        say(f"{problem}: operands and their reference")
        try:
            self._require(problem.bytes, "use a smaller --batch, --heads or --seq")
            sets = self._draw(problem)
            checker = Checker(problem, sets[0], self._seed)
            self._wait()
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            for backend in self._backends:
                yield LeftOut(problem, backend.name, Kind.MEMORY, first_line(error))
            return
        pool = GraphPool()
        ready: list[_Entrant] = []
        for backend in self._backends:
            say(f"{problem}: {backend.name}")
            found = self._entrant(problem, backend, sets, checker, pool)
            if isinstance(found, LeftOut):
                yield found
            else:
                ready.append(found)
        names = ", ".join(it.backend.name for it in ready)
        if not ready:
            return
        say(f"{problem}: racing {names}")
        with guard(self._device, None, f"{problem}: one of {names}"):
            times = race([it.timed for it in ready], ROUNDS, FEWEST_ROUNDS, RACE_US)
        for it, time in zip(ready, times, strict=True):
            if self._stream is not None:
                say(f"{problem}: {it.backend.name} alone")
            with guard(self._device, None, f"{problem}: {it.backend.name} alone"):
                long = self._sustained(it.timed, time)
            yield _row(problem, it, time, len(sets), checker, long)

    def _draw(self, problem: AttentionProblem) -> list[Operands]:
        """Operand sets of random values, as many as outrun the cache."""
        large = problem.bytes >= ALONE_FACTOR * self._l2
        wanted = 1 if large else count_sets(problem.bytes, self._l2)
        generator = torch.Generator(device=self._where).manual_seed(self._seed)
        it = problem

        def values(heads: int) -> torch.Tensor:
            shape = (it.batch, heads, it.seq, it.head_dim)
            dtype = TORCH_DTYPES[it.dtype]
            return torch.randn(shape, generator=generator, device=self._where, dtype=dtype)

        return [
            Operands(values(it.heads), values(it.kv_heads), values(it.kv_heads))
            for _ in range(wanted)
        ]

    def _entrant(
        self,
        problem: AttentionProblem,
        backend: Backend,
        sets: Sequence[Operands],
        checker: Checker,
        pool: GraphPool,
    ) -> _Entrant | LeftOut:
        """Verify a backend and make it ready to race, or say why it cannot."""
        kind, reason = Kind.REFUSED, ""
        try:
            self._require(backend.scratch(problem), "it keeps all scores; use a smaller --seq")
            with guard(self._device, None, f"{problem}: {backend.name}"), self._on_stream():
                for way in backend.ways(problem):
                    try:
                        return self._ready(problem, backend, way, sets, checker, pool)
                    except Refused as error:
                        # The last way's reason is the one about the operands in their plainest.
                        reason = first_line(error)
        except DeviceLost:
            raise
        except _Wrong as error:
            kind, reason = Kind.WRONG, first_line(error)
        except Refused as error:
            reason = first_line(error)
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            kind, reason = Kind.MEMORY, first_line(error)
        except Exception as error:  # Whatever a library throws costs this backend only.
            kind, reason = Kind.FAILED, f"{type(error).__name__}: {first_line(error)}"
        self._tidy()
        return LeftOut(problem, backend.name, kind, reason)

    def _ready(
        self,
        problem: AttentionProblem,
        backend: Backend,
        way: Way,
        sets: Sequence[Operands],
        checker: Checker,
        pool: GraphPool,
    ) -> _Entrant:
        mine = [way.prepare(each) for each in sets]
        self._poison(problem)
        out = way.run(mine[0])
        self._wait()
        errors = checker.check(out)
        del out
        failure = errors if isinstance(errors, str) else errors.failure
        if failure is not None or isinstance(errors, str):
            raise _Wrong(failure)
        self._wait()

        def launch(index: int, stream: int) -> torch.Tensor:
            return way.run(mine[index % len(mine)])

        return _Entrant(backend, way.how, self._timed(launch, len(mine), pool), errors)

    def _poison(self, problem: AttentionProblem) -> None:
        """Leave NaN where the output will be: the allocator hands this memory out again."""
        shape = (problem.batch, problem.heads, problem.seq, problem.head_dim)
        torch.full(shape, float("nan"), dtype=TORCH_DTYPES[problem.dtype], device=self._where)

    def _timed(
        self, launch: Callable[[int, int], torch.Tensor], sets: int, pool: GraphPool
    ) -> Timed:
        runner = Runner(launch, makes_output=True, pool=pool)
        if self._stream is None:
            return CpuTimed(runner)
        return _RoomyTimed.make(runner, sets, self._stream, float("inf"))[0]

    def _sustained(self, timed: Timed, time: Time) -> Sustained | None:
        """Run one backend without a pause, under the eyes of the counters; None on a CPU."""
        if self._stream is None:
            return None
        one_us = time.median_us * timed.launches
        left = samples = max(1, round(1e6 * SUSTAINED_S / one_us))
        spent = 0.0
        self._wait()
        with Watch([self._device]) as watch, GpmSampler(self._device) as sampler:
            while left:
                batch = min(left, AHEAD)
                for _ in range(batch):
                    timed.enqueue()
                spent += sum(timed.collect())
                left -= batch
            counters = sampler.read()
            why = sampler.why
        seen, calls = watch.read(), samples * timed.launches
        return Sustained(
            seconds=spent * timed.launches / 1e6,
            us=spent / samples,
            clock_mhz=seen.clock_mhz,
            power_w=seen.power_w,
            joules=None if seen.joules is None else seen.joules / calls,
            counters=dict(counters or {}),
            no_counters="" if counters else why or "the driver gave none",
        )

    def _require(self, needed: int, remedy: str) -> None:
        if needed > self._free():
            # What torch keeps for later is not free to NVIDIA's driver.
            self._tidy()
        free = self._free()
        if needed > free:
            gib = 2**30
            raise MemoryError(
                f"it needs at least {needed / gib:.1f} GiB and {free / gib:.1f} GiB of memory are "
                f"free; {remedy}"
            )


class _RoomyTimed(GpuTimed):
    """Captures with the memory that torch only keeps for later given back."""

    def _capture(self) -> None:
        # During a capture torch gives none of it back by itself: scores of half the memory, which
        # the launch before had left in torch's cache, would not fit a second time.
        torch.cuda.empty_cache()
        super()._capture()


class _Wrong(Exception):
    """A result that is wrong; says how."""


def _row(
    problem: AttentionProblem,
    it: _Entrant,
    time: Time,
    sets: int,
    checker: Checker,
    long: Sustained | None,
) -> AttentionRow:
    return AttentionRow(
        problem=problem,
        backend=it.backend.name,
        how=it.how,
        median_us=time.median_us,
        spread_us=time.spread_us,
        sets=sets,
        error=it.errors.error,
        plain_error=it.errors.plain,
        checked=len(checker.pairs),
        sustained=long,
    )
