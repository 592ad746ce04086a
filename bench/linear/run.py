"""Times of whole linear layers, ours against torch's, BF16 in and BF16 out on both sides.

Both sides get the same pruned weights: a GPU at its power limit runs faster on zeros. Of one layer
and M everything is sampled in turn: ours of every pattern and torch's on the weights of that
pattern, each verified against float64 before. Which of its ways torch runs is settled by a race
before that one, on the weight of the first pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from slidesparse.bench.fault import DeviceLost, guard
from slidesparse.bench.kernels.run import named
from slidesparse.bench.linear.case import (
    BUILD_BYTES,
    WEIGHT_BYTES,
    LinearCase,
    Weights,
    count_sets,
    make_weights,
)
from slidesparse.bench.linear.record import LinearRow, LinearTime, SkippedLinear, Ways, WayTime
from slidesparse.bench.linear.torch_ways import Linear, TorchWays, quiet
from slidesparse.bench.on_device import OnDevice
from slidesparse.bench.race import Time, race
from slidesparse.devices import Device
from slidesparse.models import LinearLayer
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.timing import CpuTimed, GpuTimed, GraphPool, Runner, Timed

ROUNDS, FEWEST_ROUNDS, MOST_ROUNDS = 21, 7, 126
RACE_US = 5e5
"""The samples of one race take about this long; each way has FEWEST_ROUNDS of them at least, and
more than ROUNDS where a GPU at its power limit scatters them."""

CHOICE_ROUNDS = 5
"""Samples of each way of torch's in the race that settles which one runs."""

AUTOTUNE = (4096,)
"""Row counts that max-autotune of torch.compile chooses the GEMM for."""

SETS_SHARE = 0.4
"""All copies of the weights of one layer take at most this share of the memory that is free."""

Run = Callable[[int], torch.Tensor]
"""One call on operand set `index`."""


@dataclass(frozen=True)
class Measured:
    """One layer at one M: a row per pattern, and how torch's way was settled."""

    rows: tuple[LinearRow, ...]
    ways: Ways


@dataclass(frozen=True)
class _Entrant:
    """A verified linear that is ready to race."""

    timed: Timed
    error: float


class LinearBench(OnDevice):
    """Times linear layers on one device.

    Args:
        device: a GPU, or the CPU for the reference implementations.
        seed: of the random weights and activations.
        compiles: whether torch.compile takes part; not on the CPU.
        autotune: row counts that its max-autotune chooses the GEMM for.

    Attributes:
        compile_seconds: that first calls of compiled code took so far.
    """

    def __init__(
        self,
        device: Device,
        seed: int,
        compiles: bool = True,
        autotune: tuple[int, ...] = AUTOTUNE,
    ) -> None:
        """Bind the device."""
        super().__init__(device)
        self._seed = seed
        self._compiles, self._autotune = compiles and device.is_gpu, autotune
        self.compile_seconds = 0.0

    def run(
        self,
        layers: Sequence[LinearLayer],
        dtypes: Sequence[DType],
        patterns: Sequence[Pattern],
        tokens: Sequence[int],
    ) -> Iterator[Measured | SkippedLinear]:
        """Measure every layer in every dtype at every M, by dtype, layer and M.

        Raises:
            DeviceLost: the device is lost, with what ran; no more can be measured.
        """
        for dtype in dtypes:
            for layer in layers:
                yield from self._layer(layer, dtype, patterns, tokens)

    def _layer(
        self,
        layer: LinearLayer,
        dtype: DType,
        patterns: Sequence[Pattern],
        tokens: Sequence[int],
    ) -> Iterator[Measured | SkippedLinear]:
        reason, weights = "", []
        try:
            with guard(self._device, None, f"{dtype} {layer.name}: packing its weights"):
                weights = self._weights(layer, dtype, patterns)
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            reason = str(error) if isinstance(error, MemoryError) else named(error)
        ways = None
        if weights:
            ways = TorchWays(dtype, weights[0].theirs[0], self._compiles, self._autotune)
        for count in tokens:
            if ways is None:
                yield _skipped(layer, dtype, patterns[0], count, reason)
                continue
            before = ways.seconds
            with guard(self._device, None, f"{dtype} {layer.name} M={count}: preparing"):
                found = self._measure(layer, dtype, weights, ways, count)
                self._tidy()
            self.compile_seconds += ways.seconds - before
            yield found

    @torch.no_grad()
    def _weights(
        self, layer: LinearLayer, dtype: DType, patterns: Sequence[Pattern]
    ) -> list[Weights]:
        size, free = layer.n * layer.k, self._free()
        fit = int(SETS_SHARE * free / (len(patterns) * WEIGHT_BYTES * size))
        if not fit or BUILD_BYTES * size > free:
            needed = size * max(BUILD_BYTES, len(patterns) * WEIGHT_BYTES / SETS_SHARE)
            raise MemoryError(f"{_memory(needed, free)}; use fewer --patterns")
        sets = min(fit, count_sets(size, self._l2))
        where, seed = self._where, self._seed
        return [make_weights(layer, dtype, pattern, sets, where, seed) for pattern in patterns]

    @torch.no_grad()
    def _measure(
        self,
        layer: LinearLayer,
        dtype: DType,
        weights: Sequence[Weights],
        ways: TorchWays,
        tokens: int,
    ) -> Measured | SkippedLinear:
        needed, free = _bytes(layer, layer.rows(tokens)), self._free()
        if needed > free:
            reason = f"{_memory(needed, free)}; use a smaller --m"
            return _skipped(layer, dtype, weights[0].pattern, tokens, reason)
        try:
            sets, seed = len(weights[0].theirs), self._seed + tokens
            case = LinearCase(layer, tokens, dtype, self._where, seed, sets, self._l2)
            self._wait()
            return self._race_all(case, weights, ways)
        except torch.cuda.OutOfMemoryError as error:
            return _skipped(layer, dtype, weights[0].pattern, tokens, named(error))

    def _race_all(self, case: LinearCase, weights: Sequence[Weights], ways: TorchWays) -> Measured:
        pool = GraphPool()
        ours = [self._ours(case, it, pool) for it in weights]
        how, theirs, settled = self._theirs(case, weights, ways, pool)
        ready = [it for it in (*ours, *theirs) if isinstance(it, _Entrant)]
        label = f"{case.dtype} {case.layer.name} M={case.tokens}"
        with guard(self._device, None, f"{label}: one of ours or torch's ({how})"):
            taken = iter(
                race([it.timed for it in ready], ROUNDS, FEWEST_ROUNDS, RACE_US, MOST_ROUNDS)
            )
        rows = []
        for it, own in zip(weights, ours, strict=True):
            rows.append(_row(case, it, own, _time(own, taken)))
        # In the race all of ours come first, then torch's.
        for place, other in enumerate(theirs):
            found = _time(other, taken)
            rows[place] = replace(rows[place], torch=found, torch_how=how if found else "")
        return Measured(tuple(rows), settled)

    def _ours(self, case: LinearCase, it: Weights, pool: GraphPool) -> _Entrant | str:
        if it.error:
            return it.error

        def run(index: int) -> torch.Tensor:
            place = index % len(case.xs)
            made: torch.Tensor = it.ours[place](case.xs[place])
            return made

        return self._entrant(case, it, f"our linear ({it.pattern})", lambda: run, pool)

    def _theirs(
        self,
        case: LinearCase,
        weights: Sequence[Weights],
        ways: TorchWays,
        pool: GraphPool,
    ) -> tuple[str, list[_Entrant | str], Ways]:
        """Torch's fastest way on the weights of every pattern, and what its ways took."""
        first, found = weights[0], []
        for way in ways.of(case.m):
            make = _torchs(case, first, way.make)
            found.append((way, self._entrant(case, first, f"torch's ({way.how})", make, pool)))
        ready = [(way, it) for way, it in found if isinstance(it, _Entrant)]
        times: dict[str, Time] = {}
        if len(ready) > 1:
            with guard(self._device, None, f"one of {', '.join(way.how for way, _ in ready)}"):
                taken = race([it.timed for _, it in ready], CHOICE_ROUNDS, CHOICE_ROUNDS, RACE_US)
            times = {way.how: time for (way, _), time in zip(ready, taken, strict=True)}
            ready.sort(key=lambda each: times[each[0].how].median_us)
        settled = Ways(
            case.problem(first.pattern),
            tuple(_way_time(way.how, it, times.get(way.how)) for way, it in found),
        )
        if not ready:
            return "", ["no way of torch's ran"] * len(weights), settled
        way, best = ready[0]
        others = [
            self._entrant(case, it, f"torch's ({way.how})", _torchs(case, it, way.make), pool)
            for it in weights[1:]
        ]
        return way.how, [best, *others], settled

    def _entrant(
        self,
        case: LinearCase,
        it: Weights,
        label: str,
        make: Callable[[], Run],
        pool: GraphPool,
    ) -> _Entrant | str:
        """Verify a linear and make it ready to race, or say why it cannot."""
        where = f"{case.dtype} {case.layer.name} M={case.tokens}: {label}"
        try:
            with guard(self._device, None, where):
                run = make()
                found = self._verified(case, it, run)
                if isinstance(found, str):
                    return found
                return _Entrant(self._timed(case, run, pool), found)
        except DeviceLost:
            raise
        except Exception as error:  # A compiler's, the driver's, no memory: it costs this one only.
            self._tidy()
            return named(error)

    def _verified(self, case: LinearCase, it: Weights, run: Run) -> float | str:
        """Call it once on every set, so that nothing is left for the capture; its error."""
        with self._on_stream(), quiet():
            # The allocator hands this memory out again: what is not written shows as NaN.
            shape = (case.m, case.layer.n)
            torch.full(shape, float("nan"), dtype=torch.bfloat16, device=self._where)
            y = run(0)
            self._wait()
            found = case.check(y, it)
            del y
            wrong = found.failure(case.problem(it.pattern))
            if wrong is not None:
                return wrong
            for index in range(1, len(case.xs)):
                run(index)
        self._wait()
        return found.error

    def _timed(self, case: LinearCase, run: Run, pool: GraphPool) -> Timed:
        runner = Runner(lambda index, stream: run(index), makes_output=True, pool=pool)
        if self._stream is None:
            return CpuTimed(runner)
        return GpuTimed.make(runner, len(case.xs), self._stream, float("inf"))[0]


def _torchs(case: LinearCase, it: Weights, make: Callable[[], Linear]) -> Callable[[], Run]:
    def made() -> Run:
        way = make()

        def run(index: int) -> torch.Tensor:
            place = index % len(case.xs)
            return it.theirs[place].run(way, case.xs[place])

        return run

    return made


def _row(case: LinearCase, it: Weights, own: _Entrant | str, taken: LinearTime | None) -> LinearRow:
    """What is known of ours, torch's side empty."""
    return LinearRow(
        layer=case.layer,
        tokens=case.tokens,
        problem=case.problem(it.pattern),
        plan=it.ours[0].describe(case.m) if it.ours else "",
        sparse=bool(it.ours) and it.ours[0].plan.at(case.m).candidate.sparse,
        ours=taken,
        torch=None,
        torch_how="",
        sets=len(case.xs),
        error=own if isinstance(own, str) else None,
    )


def _time(it: _Entrant | str, taken: Iterator[Time]) -> LinearTime | None:
    """The next time of a race, if this one was in it."""
    if isinstance(it, str):
        return None
    time = next(taken)
    return LinearTime(time.median_us, time.spread_us, it.error)


def _way_time(how: str, it: _Entrant | str, time: Time | None) -> WayTime:
    reason = it if isinstance(it, str) else ""
    if time is None:
        return WayTime(how, None, None, reason)
    return WayTime(how, time.median_us, time.spread_us, reason)


def _skipped(
    layer: LinearLayer, dtype: DType, pattern: Pattern, tokens: int, reason: str
) -> SkippedLinear:
    problem = GemmProblem(
        *(layer.rows(tokens), layer.n, layer.k, dtype, DType.BF16, Scales.ROWCOL, pattern),
        bias=layer.bias,
    )
    return SkippedLinear(layer, tokens, problem, reason)


def _bytes(layer: LinearLayer, m: int) -> int:
    # x twice, quantised and lifted rows, INT32 sums, two outputs, and a weight in float64.
    return m * (8 * layer.k + 8 * layer.n) + 8 * layer.n * layer.k


def _memory(needed: float, free: int) -> str:
    return f"it needs about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB of memory are free"
