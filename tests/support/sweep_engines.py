"""An engine of sweeps that misbehaves for real where it is told to, made in worker processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from slidesparse.bench.sweep.job import CellTime, Engine
from slidesparse.errors import CandidateError

SCRIPT, LOG = "SWEEP_SCRIPT", "SWEEP_LOG"
"""Variables of the environment: what to do where, as JSON {"ours 6:8 M=4": "exit"} with "build" or
"*" in place of the cell or the variant; and the file that says what was called."""

WIDE = 2**31

STEP_US = {"stock": 100.0, "ours dense": 90.0, "ours 6:8": 80.0, "stock 6:8": 95.0}


class Scripted(Engine):
    """Takes STEP_US times M for a step, unless the script says otherwise."""

    def build(self) -> dict[str, str]:
        self._log(f"build {','.join(map(str, self.job.ms))}")
        self._act("build")
        return {"engine": "scripted", "pid": str(os.getpid()), "variant": str(self.job.variant)}

    def run(self, m: int) -> Any:
        self._log(f"M={m}")
        done = self._act(f"M={m}")
        if done == "nothing":
            return None
        us = STEP_US[str(self.job.variant)] * m
        steps = (us, float("nan")) if done == "nan" else (us, 1.01 * us, 0.99 * us)
        largest = WIDE if done == "wide" else m
        shares = {"gemm": 0.75, "fused": 0.25}
        return CellTime(m, steps, shares, 1980.0, 650.0, 0.01, largest)

    def _log(self, text: str) -> None:
        if LOG in os.environ:
            with Path(os.environ[LOG]).open("a") as file:
                file.write(f"{self.job.variant} {text} {os.getpid()}\n")

    def _act(self, where: str) -> str:
        script = json.loads(os.environ.get(SCRIPT, "{}"))
        what: str = script.get(f"{self.job.variant} {where}", script.get(f"* {where}", ""))
        if what == "exit":
            os._exit(3)
        elif what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "hang":
            time.sleep(3600)
        elif what == "raise":
            raise ZeroDivisionError("a defect of the engine\nin two lines")
        elif what == "refuse":
            raise CandidateError("sequences of 9 tokens are too long; use a smaller --prompt")
        elif what == "memory":
            import torch

            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 TiB")
        elif what == "memory above 2" and max(self.job.ms) > 2:
            raise MemoryError("9 TiB are not there")
        elif what == "child":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
            self._log(f"child {child.pid}")
            time.sleep(3600)
        elif what == "slow":
            time.sleep(0.5)
        return what


def calls(log: Path) -> list[str]:
    """What was called, in order, without process ids."""
    return [line.rsplit(" ", 1)[0] for line in log.read_text().splitlines()]


def pids(log: Path) -> list[int]:
    """The processes that called, in order."""
    return [int(line.rsplit(" ", 1)[1]) for line in log.read_text().splitlines()]
