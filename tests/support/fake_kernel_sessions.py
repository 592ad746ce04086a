"""A tuning session and a compiler that misbehave as told, made by worker processes.

A plan is a dictionary:
    log: file that gets one line per request.
    times: microseconds by "BLOCK/WARPS", "+" behind it if overlapped; 50 unless told.
    deeds: what to do instead, by "M BLOCK/WARPS" or "BLOCK/WARPS", or "M race" or "race".
"""

import os
import signal
import time
from pathlib import Path

import torch  # noqa: F401  (Here and not in the first request, whose time is limited.)

from slidesparse.candidate import Failure, Measurement
from slidesparse.kernels.config import Config

USUAL_US = 50.0
SPREAD_US = 0.2


def name_of(candidate):
    config = Config.of(candidate)
    return f"{config.block}/{config.warps}{'+' if config.overlap else ''}"


def note(plan, line):
    with Path(plan["log"]).open("a") as file:
        file.write(line + "\n")


def do(deed):
    """Carry out a deed; returns for those that are an answer."""
    match deed:
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(3600)
        case "memory":
            raise MemoryError("no 96 GiB")
        case "defect":
            raise ZeroDivisionError("a defect of the session")
        case "slow":
            time.sleep(0.1)


class Session:
    """Answers as slidesparse.kernels.tune_session does, from a plan."""

    def __init__(self, device, plan):
        self._plan = plan

    def screen(self, problem, candidate):
        name = name_of(candidate)
        note(self._plan, f"{problem.m} {name}")
        deeds = self._plan.get("deeds", {})
        deed = deeds.get(f"{problem.m} {name}", deeds.get(name))
        do(deed)
        if deed in ("refused", "wrong"):
            return Failure(candidate, deed, f"{name} is {deed}")
        return self._measured(candidate, 3)

    def race(self, problem, candidates, rounds):
        note(self._plan, f"{problem.m} race {' '.join(map(name_of, candidates))}")
        deeds = self._plan.get("deeds", {})
        deed = deeds.get(f"{problem.m} race", deeds.get("race"))
        do(deed)
        kept = candidates[:-1] if deed == "forgetful" else candidates
        return tuple(self._measured(candidate, rounds) for candidate in kept)

    def _measured(self, candidate, samples):
        us = self._plan.get("times", {}).get(name_of(candidate), USUAL_US)
        return Measurement(candidate, us, SPREAD_US, samples, 8, 0.0, 0.0)


class Compiler:
    """Compiles as slidesparse.kernels.warm does; the width of the problem says what happens."""

    def __init__(self, device):
        pass

    def compile(self, job):
        problem = job.problem
        do({65: "exit", 66: "hang", 67: "memory", 69: "slow"}.get(problem.k))
        return f"K={problem.k} does not compile" if problem.k == 68 else ""
