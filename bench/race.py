"""Races: samples of several ways in turn, and CUDA graphs that share their memory."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from slidesparse.stats import interquartile
from slidesparse.timing import GpuTimed, Runner, Timed


@dataclass(frozen=True)
class Time:
    """Median and interquartile range of samples in microseconds."""

    median_us: float
    spread_us: float


def race(timed: Sequence[Timed], rounds: int, fewest: int, budget_us: float) -> list[Time]:
    """Sample in turn: a GPU at its power limit drifts, and so all of them meet the same drift.

    Args:
        timed: ready to be sampled.
        rounds: samples of each at most.
        fewest: samples of each at least.
        budget_us: no further round starts once the samples took so many microseconds.
    """
    samples: list[list[float]] = [[] for _ in timed]
    done, spent = 0, 0.0
    while done < fewest or (done < rounds and spent < budget_us):
        for each in timed:
            each.enqueue()
        for each, taken in zip(timed, samples, strict=True):
            new = each.collect()
            taken += new
            spent += sum(new) * each.launches
        done += 1
    return [Time(statistics.median(taken), interquartile(taken)) for taken in samples]


@dataclass(frozen=True)
class PooledRunner(Runner):
    """A runner that allocates what it makes, from memory that a whole race shares.

    Args:
        pool: from torch.cuda.graph_pool_handle(). Only for runners whose results nobody reads:
            each graph of the pool writes over what the others made.
    """

    pool: Any = None


class PooledTimed(GpuTimed):
    """Samples of a PooledRunner: otherwise each graph would keep outputs of gigabytes."""

    def _capture(self) -> None:
        pool = self.runner.pool if isinstance(self.runner, PooledRunner) else None
        try:
            self._graph = self._captured(pool)
        except Exception:
            self._close(pool)
            raise

    def _close(self, pool: Any) -> None:
        """End what a capture that the driver refused has left open in torch before 2.12.

        There torch still takes the pool for one that is being captured into: every later capture
        into it fails, and so does giving back memory (pytorch issue 180395).
        """
        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if pool is not None and end is not None:
            # Torch raises where the capture had ended as it should.
            with suppress(RuntimeError):
                end(self.stream.device_index, pool)
