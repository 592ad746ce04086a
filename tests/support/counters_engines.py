"""An engine of load benchmarks that misbehaves where it is told to, and the command on it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from counters_records import found
from sweep_engines import Scripted

from slidesparse.bench.counters import book as counters_book
from slidesparse.bench.counters.job import LoadFound
from slidesparse.bench.sweep.job import Job, Mode
from slidesparse.cli import bench_counters
from slidesparse.devices import Device

FACTORY = "counters_engines:ScriptedLoad"

RATES = {Mode.EAGER: 100.0, Mode.GRAPHS: 250.0}
"""Tokens per second of one request."""


class ScriptedLoad(Scripted):
    """Serves RATES times C tokens per second, unless the script says otherwise."""

    def __init__(self, device: Device, job: Job) -> None:
        super().__init__(device, job)

    def build(self) -> dict[str, str]:
        self._log(f"{self.job.mode} build {','.join(map(str, self.job.ms))}")
        self._act(f"{self.job.mode} build")
        return {"linears": "scripted", "cudagraph mode": str(self.job.mode)}

    def run(self, m: int) -> Any:
        self._log(f"{self.job.mode} C={m}")
        done = self._act(f"{self.job.mode} C={m}")
        if done == "nothing":
            return None
        made: LoadFound = found(
            m,
            RATES[self.job.mode] * m,
            cost=2.5
            if done == "dear"
            else 0.5
            if m in getattr(self.job, "compare_at", ())
            else None,
            running=m / 2 if done == "crowded" else float(m),
            waiting=m / 2 if done == "crowded" else 0.0,
            kv=99.9 if done == "crowded" else 30.0,
            preemptions=7 if done == "crowded" else 0,
        )
        return made if done != "blind" else replace(made, summaries={}, why="")


def serve_scripted() -> None:
    """Have `bench decode --counters` of this process run on a CPU with the scripted engine."""
    bench_counters._check_vllm = lambda device: None
    bench_counters.check_gpus = lambda tp, device: None
    bench_counters.version_of = lambda name: "0.25.1"
    counters_book.LOAD_ENGINE = replace(counters_book.LOAD_ENGINE, factory=FACTORY)


if __name__ == "__main__":
    from slidesparse.cli.main import main

    serve_scripted()
    os.environ.setdefault("COLUMNS", "120")
    main()
