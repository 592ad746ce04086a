"""Compile kernels ahead: in parallel for the tuner, and for serving before the first request."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from concurrent.futures import TimeoutError as FuturesTimeout
from contextlib import nullcontext, suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from slidesparse.candidate import ProblemResult
from slidesparse.devices import Device
from slidesparse.errors import CandidateError
from slidesparse.kernel_problem import KernelProblem
from slidesparse.kernels.config import Config, chosen
from slidesparse.kernels.workload import launched_problems
from slidesparse.problem import bucket_m
from slidesparse.worker import (
    Worker,
    WorkerDied,
    WorkerOutOfMemory,
    WorkerTimeout,
    first_line,
    is_device_fault,
)

if TYPE_CHECKING:
    from slidesparse.kernels.native.source import Variant

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """A kernel to compile.

    Args:
        problem: on FEW_ROWS rows.
        config: to launch it with.
        wide: with 64-bit row offsets.
        bias: with a bias, where the kernel scales a GEMM's output back.
        static: with a given scale, where the kernel takes one.
    """

    problem: KernelProblem
    config: Config
    wide: bool
    bias: bool = False
    static: bool = False


COMPILER = "slidesparse.kernels.warm:Compiler"
TIMEOUT = 180.0
"""Seconds for one kernel, the start of CUDA included; most take one or two."""

FEW_ROWS = 2
"""Rows of the launch that compiles: the code does not depend on their number."""

MOST_PROCESSES = 16
MIB_PER_PROCESS = 1024
"""Device memory that a process with a CUDA context takes, generously."""

JOBS_PER_PROCESS = 4
"""Starting a process with torch takes as long as compiling this many kernels."""

NATIVE = "native"
"""The search's backend whose candidates are configurations of kernels/native."""


def warm(problems: Sequence[KernelProblem], device: Device, static: bool = False) -> int:
    """Compile and load, in this process, what launches of `problems` will take; how many kernels.

    Afterwards such launches neither compile nor read files, so that they can be captured in a CUDA
    graph. What is compiled stays in Triton's cache on disk for other processes.

    Args:
        problems: of a model's layers.
        device: whose code is made.
        static: as `launch_jobs` has it.
    """
    jobs = launch_jobs(problems, device, static)
    for job in jobs:
        _compile(job, device)
    return len(jobs)


def launch_jobs(
    problems: Sequence[KernelProblem], device: Device, static: bool = False
) -> list[Job]:
    """What launches of a model's `problems` take: tuned or default, with a bias and without.

    Args:
        problems: of a model's layers.
        device: whose tuned configurations count.
        static: whether the model's activations have static scales, with which quantize,
            rmsnorm_quantize and silu_mul_quantize run other code; other kernels take none.
    """
    every = launched_problems(problems)
    launches = ((problem, launch_config(problem, device)) for problem in every)
    return distinct_jobs(launches, biased=True, static=static)


def launch_config(problem: KernelProblem, device: Device) -> Config:
    """The configuration that a launch of the problem takes on the device, tuned or default."""
    return chosen(
        device.index if device.is_gpu else -1,
        problem.op,
        bucket_m(problem.m),
        problem.k,
        problem.source,
        problem.out,
        problem.pattern,
        problem.residual,
    )


def distinct_jobs(
    launches: Iterable[tuple[KernelProblem, Config]], biased: bool = False, static: bool = False
) -> list[Job]:
    """The codes that launches take, without repetitions: of M only the width of offsets matters.

    Args:
        launches: problems with their configurations.
        biased: whether kernels that can add a bias are listed with one, too.
        static: whether kernels that can take a given scale are listed with one, and only so.
    """
    jobs: dict[Job, None] = {}
    for problem, config in launches:
        few = replace(problem, m=FEW_ROWS)
        for bias in (False, True) if biased and problem.op.dequantizes else (False,):
            given = static and not problem.op.dequantizes
            jobs[Job(few, config, problem.passes_int32, bias, given)] = None
    return list(jobs)


def compile_parallel(
    jobs: Sequence[Job],
    device: Device,
    done: Callable[[int], None] = lambda count: None,
    deadline: float | None = None,
) -> list[str]:
    """Compile into Triton's cache on disk, with several processes where that pays.

    A kernel that cannot be compiled, or a process that dies or hangs of it, costs the others
    nothing.

    Args:
        jobs: distinct ones.
        device: whose code is made.
        done: told how many jobs are through.
        deadline: by time.monotonic(), when to leave the rest, what is being compiled too; or None.

    Returns:
        One line per kernel that could not be compiled, with the reason; none for those left.

    Raises:
        SearchError: the processes do not start.
    """
    if not jobs or (deadline is not None and time.monotonic() >= deadline):
        return []
    workers = [Worker(device, COMPILER) for _ in range(_processes(len(jobs), device))]
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def compile_one(job: Job) -> str:
        worker = idle.get()
        try:
            return _ask(worker, job)
        finally:
            idle.put(worker)

    failed = []
    threads = ThreadPoolExecutor(len(workers))
    try:
        futures = [threads.submit(compile_one, job) for job in jobs]
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        with suppress(FuturesTimeout):
            for number, future in enumerate(as_completed(futures, left), start=1):
                reason = future.result()
                if reason:
                    log.info("not compiled ahead: %s", reason)
                    failed.append(reason)
                done(number)
    finally:
        # They have nothing left to say: what is compiled lies on disk.
        for worker in workers:
            worker.cancel()
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.stop()
    return failed


def native_variants(results: Iterable[ProblemResult]) -> list[Variant]:
    """What launches of the native GEMM take, distinct codes only, in the order of the results.

    Args:
        results: of searches. Of each counts the fastest native candidate, which is what runs where
            sparse is planned and no other sparse backend is faster; one that cannot run any more is
            warned of and left out.
    """
    from slidesparse.kernels.native.config import NativeConfig
    from slidesparse.kernels.native.gemm import variant_of

    found: dict[Variant, None] = {}
    for result in results:
        candidates = (measured.candidate for measured in result.ranked)
        best = next((candidate for candidate in candidates if candidate.backend == NATIVE), None)
        if best is None:
            continue
        problem = result.problem
        try:
            config = NativeConfig.from_params(best.params)
        except CandidateError as error:
            log.warning("the native GEMM of %s is not compiled: %s", problem.key, error)
            continue
        found[variant_of(config, problem.k_run, problem.dtype, problem.out)] = None
    return list(found)


class Compiler:
    """The worker's side: compiles one kernel at a time.

    Args:
        device: whose code is made.
    """

    def __init__(self, device: Device) -> None:
        """Note the device; the first kernel opens it."""
        self._device = device

    def compile(self, job: Job) -> str:
        """Compile; why that failed, or ""."""
        import torch

        try:
            _compile(job, self._device)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # Whatever a compiler throws; the tuner files it.
            if is_device_fault(error):
                raise
            return _failed(job, f"{type(error).__name__}: {first_line(error)}")
        return ""


def _ask(worker: Worker, job: Job) -> str:
    try:
        return str(worker.call("compile", job, timeout=TIMEOUT))
    except (WorkerDied, WorkerTimeout, WorkerOutOfMemory) as error:
        return _failed(job, str(error))


def _failed(job: Job, reason: str) -> str:
    return f"{job[0]} {job[1].candidate.label}: {reason}"


def _processes(jobs: int, device: Device) -> int:
    import torch

    most = min(MOST_PROCESSES, len(os.sched_getaffinity(0)) - 1, jobs // JOBS_PER_PROCESS)
    if device.is_gpu:
        free, _ = torch.cuda.mem_get_info(device.index)
        most = min(most, int(free / 2**20 / 2 / MIB_PER_PROCESS))
    return max(1, most)


def _compile(job: Job, device: Device) -> None:
    import torch

    from slidesparse.kernels.case import Case

    where = torch.device(str(device)) if device.is_gpu else torch.device("cpu")
    with torch.cuda.device(device.index) if device.is_gpu else nullcontext():
        case = Case(job.problem, where, 0, 0)
        case.run(job.config, 0, job.wide, job.bias, job.static)
        if device.is_gpu:
            torch.cuda.synchronize()
