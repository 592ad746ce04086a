"""Compile kernels ahead: in parallel for the tuner, and for serving before the first request."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

from slidesparse.devices import Device
from slidesparse.kernel_problem import KernelProblem
from slidesparse.kernels.config import Config, chosen
from slidesparse.problem import bucket_m

log = logging.getLogger(__name__)

Job = tuple[KernelProblem, Config]

FEW_ROWS = 2
"""Rows of the launch that compiles: the code of a kernel does not depend on their number."""

MOST_PROCESSES = 16
MIB_PER_PROCESS = 1024
"""Device memory that a process with a CUDA context takes, generously."""

JOBS_PER_PROCESS = 4
"""Starting a process with torch takes as long as compiling this many kernels."""


def warm(problems: Sequence[KernelProblem], device: Device) -> int:
    """Compile and load, in this process, what launches of `problems` will take; how many kernels.

    Afterwards such launches neither compile nor read files, so that they can be captured in a CUDA
    graph. What is compiled stays in Triton's cache on disk for other processes.
    """
    jobs = distinct_jobs((problem, launch_config(problem, device)) for problem in problems)
    for job in jobs:
        _compile(job, device)
    return len(jobs)


def launch_config(problem: KernelProblem, device: Device) -> Config:
    """The configuration that a launch of the problem takes on the device, tuned or default."""
    return chosen(
        device.index,
        problem.op,
        bucket_m(problem.m),
        problem.k,
        problem.source,
        problem.out,
        problem.pattern,
        problem.residual,
    )


def distinct_jobs(jobs: Iterable[Job]) -> list[Job]:
    """Jobs without repetitions: what differs in M only compiles to the same code."""
    return list(dict.fromkeys((replace(problem, m=FEW_ROWS), config) for problem, config in jobs))


def compile_parallel(
    jobs: Sequence[Job], device: Device, done: Callable[[int], None] = lambda count: None
) -> list[str]:
    """Compile into Triton's cache on disk, with several processes where that pays.

    A kernel that cannot be compiled, or a process that dies of it, costs the others nothing.

    Args:
        jobs: distinct ones.
        device: whose code is made.
        done: told how many jobs are through.

    Returns:
        One line per kernel that was not compiled, with the reason.
    """
    pool = ProcessPoolExecutor(
        _processes(len(jobs), device),
        mp_context=multiprocessing.get_context("spawn"),
        # Ctrl-C reaches the whole group of processes; only the parent decides what to do about it.
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    failed = []
    try:
        futures = {pool.submit(_try_compile, job, device): job for job in jobs}
        for number, future in enumerate(as_completed(futures), start=1):
            try:
                reason = future.result()
            except BrokenProcessPool as error:
                reason = f"{futures[future]}: {error}"
            if reason:
                log.info("not compiled ahead: %s", reason)
                failed.append(reason)
            done(number)
    except BrokenProcessPool as error:
        failed.append(str(error))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return failed


def _processes(jobs: int, device: Device) -> int:
    import torch

    cores = len(os.sched_getaffinity(0))
    free, _ = torch.cuda.mem_get_info(device.index)
    fitting = int(free / 2**20 / 2 / MIB_PER_PROCESS)
    return max(1, min(MOST_PROCESSES, cores - 1, fitting, jobs // JOBS_PER_PROCESS))


def _try_compile(job: Job, device: Device) -> str:
    """Compile one job in a process of the pool; why it failed, or ""."""
    try:
        _compile(job, device)
    except Exception as error:  # Whatever a compiler throws; the tuner files it.
        return f"{job[0]} {job[1]}: {type(error).__name__}: {error}"[:500]
    return ""


def _compile(job: Job, device: Device) -> None:
    import torch

    from slidesparse.kernels.case import Case

    problem, config = job
    with torch.cuda.device(device.index):
        Case(problem, torch.device(str(device)), 0, 0).run(config, 0)
        torch.cuda.synchronize()
