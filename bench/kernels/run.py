"""Times of the row kernels of a model, against the machine's ceilings and the alternatives.

Of one problem everything is sampled in turn: our kernel, the same with 64-bit row offsets, every
alternative, and a copy of as many bytes. Our kernel is verified before its time counts, and the
alternatives have to agree with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict

import torch

from slidesparse.bench.alternatives import (
    Alternative,
    Outputs,
    checked_rows,
    differs,
    two_steps,
)
from slidesparse.bench.ceilings import CPU_BYTES, LARGE_BYTES, Copy, empty_runner
from slidesparse.bench.compiled import HOW, NAME, Compiled
from slidesparse.bench.fault import DeviceLost, guard
from slidesparse.bench.kernels.record import AlternativeTime, Ceilings, Row, Skipped
from slidesparse.bench.on_device import OnDevice
from slidesparse.bench.race import Time, race
from slidesparse.bench.vllm_kernels import vllm_alternatives
from slidesparse.devices import Device
from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.kernels.case import Case
from slidesparse.kernels.config import Config, Table, load
from slidesparse.kernels.launch import needs_wide
from slidesparse.kernels.warm import launch_config
from slidesparse.kernels.workload import model_problems, row_order
from slidesparse.models import ModelSpec
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.tensors import TORCH_DTYPES
from slidesparse.timing import CpuTimed, GpuTimed, Runner, Timed
from slidesparse.worker import first_line

ROUNDS = 21
FEWEST_ROUNDS = 7
RACE_US = 2e6
"""The samples of one problem take about this long; each has FEWEST_ROUNDS of them at least."""

MEMORY_FACTOR = 5
"""Two sets of operands, a copy of as many bytes and what the alternatives put beside them, each
times the bytes of the problem."""


def bench_problems(
    spec: ModelSpec,
    tp: int,
    dtype: DType,
    patterns: tuple[Pattern, ...],
    tokens: tuple[int, ...],
    ops: tuple[Op, ...],
) -> tuple[KernelProblem, ...]:
    """The kernels of a model at every M, of these patterns only; by operation, K, pattern, M.

    Raises:
        ModelError: `tp` does not divide what has to be divided.
    """
    found = dict.fromkeys(
        problem
        for count in tokens
        for problem in model_problems(spec, tp, dtype, patterns, (count,), ops=ops)
        if problem.pattern in patterns or not problem.op.quantizes
    )
    return tuple(sorted(found, key=row_order))


class KernelBench(OnDevice):
    """Times kernels on one device.

    Args:
        device: a GPU, or the CPU for the reference implementations.
        table: the tuned configurations that launches take.
        seed: of the random operands.
        compiles: whether torch.compile takes part.
    """

    def __init__(self, device: Device, table: Table, seed: int, compiles: bool = True) -> None:
        """Bind the device and use `table` for its launches from now on."""
        super().__init__(device)
        self._table, self._seed, self._compiles = table, seed, compiles
        self._compiled: Compiled | None = None
        if device.is_gpu:
            load(device.index, table)

    def ceilings(self) -> Ceilings:
        """Measure the bandwidth of a large copy and the time of an empty kernel.

        Raises:
            DeviceLost: the device did not survive it.
        """
        with guard(self._device, None, "a large copy or an empty kernel"):
            copy = Copy(LARGE_BYTES if self._device.is_gpu else CPU_BYTES, self._device)
            size = 2 * copy.half
            runners = [(copy.runner(), copy.sets)]
            if self._device.is_gpu:
                runners.append((empty_runner(self._device), 1))
            times = self._race([self._timed(runner, sets) for runner, sets in runners])
        empty = times[1].median_us if len(times) > 1 else 0.0
        return Ceilings(size / (times[0].median_us * 1e3), size, empty)

    def run(self, problems: Sequence[KernelProblem], ceilings: Ceilings) -> Iterator[Row | Skipped]:
        """Measure the problems; of each operation, K and pattern the largest M first.

        What torch.compile makes of a row count that it has not seen is tuned for the first one it
        saw, so that one is a large one, as where a server warms up.

        Raises:
            DeviceLost: the device is lost, with the problem and what ran; no more can be measured.
        """
        group: tuple[object, ...] | None = None
        for problem in sorted(problems, key=lambda p: (*row_order(p)[:3], -p.m)):
            key = (problem.op, problem.k, problem.pattern)
            if key != group:
                group, self._compiled = key, None
            with guard(self._device, problem, "preparing or cleaning up"):
                found = self._measure(problem, ceilings)
                self._tidy()
            yield found

    def _measure(self, problem: KernelProblem, ceilings: Ceilings) -> Row | Skipped:
        needed, free = MEMORY_FACTOR * problem_bytes(problem), self._free()
        if needed > free:
            return Skipped(
                problem,
                f"it needs about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB of memory "
                "are free; use a smaller --m",
            )
        try:
            case = Case(problem, self._where, self._seed + problem.m, self._l2)
            if not self._device.is_gpu:
                return self._reference_row(case, ceilings)
            return self._kernel_row(case, ceilings)
        except torch.cuda.OutOfMemoryError as error:
            return Skipped(problem, named(error))

    def _reference_row(self, case: Case, ceilings: Ceilings) -> Row:
        copy = Copy(case.bytes, self._device)
        runners = [Runner(lambda index, stream: case.reference_outputs(slice(None))), copy.runner()]
        ours, same = self._race([self._timed(runner, 1) for runner in runners])
        return _row(case, ceilings, None, False, ours=ours, same=same)

    def _kernel_row(self, case: Case, ceilings: Ceilings) -> Row:
        problem = case.problem
        config = launch_config(problem, self._device)
        tuned = self._table.find(problem) is not None
        mine = f"our kernel [{config.candidate.label}]"
        try:
            with guard(self._device, problem, mine):
                wrong = case.wrong(config)
        except (torch.cuda.OutOfMemoryError, DeviceLost):
            raise
        except Exception as error:  # A compiler's or the driver's own; the run goes on.
            wrong = named(error)
        if wrong is not None:
            return _row(case, ceilings, config, tuned, error=wrong)
        others, reasons = self._others(case)
        copy = Copy(case.bytes, self._device)
        narrow = _is_narrow(case)
        with guard(self._device, problem, f"{mine} or a copy"):
            timed = [
                self._timed(Runner(lambda index, stream: case.run(config, index)), len(case.sets)),
                self._timed(copy.runner(), copy.sets),
                *(timed for _, timed in others),
            ]
            if narrow:
                wide = Runner(lambda index, stream: case.run(config, index, wide=True))
                timed.append(self._timed(wide, len(case.sets)))
        # In the race a fault may come to light behind another's launch.
        racing = ", ".join([mine, "a copy", *(other.label for other, _ in others)])
        with guard(self._device, problem, f"one of {racing}"):
            times = self._race(timed)
        found = [
            AlternativeTime(other.name, other.how, time.median_us, time.spread_us, "")
            for (other, _), time in zip(others, times[2:], strict=False)
        ]
        return _row(
            case,
            ceilings,
            config,
            tuned,
            ours=times[0],
            same=times[1],
            wide_us=times[-1].median_us if narrow else None,
            alternatives=(*found, *reasons),
        )

    def _others(self, case: Case) -> tuple[list[tuple[Alternative, Timed]], list[AlternativeTime]]:
        """The alternatives that agree with our kernel, ready to race, and why others do not."""
        # Our verified outputs of set 0 are still there; alternatives write to the same memory.
        rows = checked_rows(case.problem.m, self._where)
        ours = tuple(tensor[rows] for tensor in case.sets[0].outputs)
        ready: list[tuple[Alternative, Timed]] = []
        reasons: list[AlternativeTime] = []
        for other in self._alternatives(case):
            reason = other.reason
            if other.run is not None:
                try:
                    with guard(self._device, case.problem, other.label):
                        reason = self._disagreement(case, other.run, ours, rows) or ""
                        if not reason:
                            runner = Runner(_launcher(other.run))
                            ready.append((other, self._timed(runner, len(case.sets))))
                            continue
                except DeviceLost:
                    raise
                except Exception as error:  # Someone else's code; it costs that alternative only.
                    reason = named(error)
                    self._tidy()
            reasons.append(AlternativeTime(other.name, other.how, None, None, reason))
        return ready, reasons

    def _alternatives(self, case: Case) -> Iterator[Alternative]:
        sources: dict[str, Callable[[], Iterable[Alternative]]] = {
            "vllm": lambda: vllm_alternatives(case),
            NAME: lambda: [self._compile(case)],
            "two-step": lambda: two_steps(case, self._device),
        }
        for name, source in sources.items():
            try:
                with guard(self._device, case.problem, name):
                    yield from source()
            except DeviceLost:
                raise
            except Exception as error:  # Out of memory, for one: it costs this source only.
                yield Alternative(name, "", None, named(error))

    def _compile(self, case: Case) -> Alternative:
        if not self._compiles:
            return Alternative(NAME, HOW, None, "left out by --no-compile")
        if self._compiled is None:
            self._compiled = Compiled(case.problem, self._where)
        return self._compiled.of(case)

    def _disagreement(
        self,
        case: Case,
        run: Callable[[int], Outputs],
        ours: Outputs,
        rows: torch.Tensor,
    ) -> str | None:
        for tensor in case.sets[0].outputs:
            tensor.view(torch.uint8).fill_(0xA5)
        self._wait()
        with torch.cuda.stream(self._stream):
            got = run(0)
        self._wait()
        return differs(got, ours, rows)

    def _timed(self, runner: Runner, sets: int) -> Timed:
        if self._stream is None:
            return CpuTimed(runner)
        self._wait()
        return GpuTimed.make(runner, sets, self._stream, float("inf"))[0]

    def _race(self, timed: Sequence[Timed]) -> list[Time]:
        return race(timed, ROUNDS, FEWEST_ROUNDS, RACE_US)


def problem_bytes(problem: KernelProblem) -> int:
    """Bytes that a problem moves at least, before there are any operands."""
    op = problem.op
    size = {name: dtype.itemsize for name, dtype in TORCH_DTYPES.items()}
    row = problem.width * size[problem.source]
    row += problem.pattern.expanded_k(problem.k) * size[problem.out]
    if problem.residual:
        row += 2 * problem.k * (2 if op.dequantizes else size[problem.source])
    return problem.m * row


def _launcher(run: Callable[[int], Outputs]) -> Callable[[int, int], object]:
    return lambda index, stream: run(index)


def _is_narrow(case: Case) -> bool:
    """Whether a launch does with 32-bit row offsets."""
    first = case.sets[0]
    rows = (first.x, first.residual, first.hidden, first.q)
    return not needs_wide(*(tensor for tensor in rows if tensor is not None))


def _row(
    case: Case,
    ceilings: Ceilings,
    config: Config | None,
    tuned: bool,
    *,
    ours: Time | None = None,
    same: Time | None = None,
    wide_us: float | None = None,
    alternatives: tuple[AlternativeTime, ...] = (),
    error: str | None = None,
) -> Row:
    size = case.bytes
    gbs = size / (ours.median_us * 1e3) if ours is not None else None
    return Row(
        problem=case.problem,
        config=asdict(config) if config is not None else None,
        tuned=tuned,
        bytes=size,
        median_us=ours.median_us if ours is not None else None,
        spread_us=ours.spread_us if ours is not None else None,
        gbs=gbs,
        percent_of_copy=100 * gbs / ceilings.copy_gbs if gbs is not None else None,
        percent_of_copy_same_size=100 * same.median_us / ours.median_us if same and ours else None,
        floor_us=ceilings.floor_us(size),
        wide_us=wide_us,
        alternatives=alternatives,
        error=error,
    )


def named(error: BaseException) -> str:
    """The class and the first line of an error."""
    return f"{type(error).__name__}: {first_line(error)}"
