"""An engine of `bench agreement` that misbehaves where it is told to, made in worker processes."""

from __future__ import annotations

import json
import os
import signal
import time

from slidesparse.bench.agreement.numbers import Scores
from slidesparse.bench.agreement.requests import Request
from slidesparse.bench.agreement.vllm import Answered, Built, Task
from slidesparse.devices import Device
from slidesparse.errors import UsageError

SCRIPT = "AGREEMENT_SCRIPT"
"""Variable of the environment: what to do where, as JSON {"ours graphs score": "kill"}."""

FACTORY = "agreement_engines:Scripted"
LOAD_S = {"stock": 2.0, "ours": 2.5}


class Scripted:
    """Finds each token itself the likeliest and answers with what the prompt ends in."""

    def __init__(self, device: Device, task: Task) -> None:
        self.task = task

    def build(self) -> Built:
        self._act("build")
        ran = {"linears": f"{self.task.system} kernel", "longest": str(self.task.longest)}
        return Built(ran, LOAD_S[str(self.task.system)], 10.0)

    def score(self, windows: tuple[tuple[tuple[int, ...], int], ...]) -> Scores:
        done = self._act("score")
        tokens = [token for window, scored in windows for token in window[-scored:]]
        first = list(tokens)
        if done == "differ":
            first[::10] = [token + 1 for token in first[::10]]
        logprob = -1.1 if done == "worse" else -1.0
        return Scores((logprob,) * len(tokens), tuple(first), (0.05,) * len(tokens))

    def together(self, requests: tuple[Request, ...]) -> Answered:
        done = self._act("together")
        whole = [i for i, it in enumerate(requests) if it.abort_after is None]
        answers = {i: answer(requests[i]) for i in whole}
        broken = {whole[0]: "ended (abort) early"} if done == "break" else {}
        return Answered(answers, broken, len(requests) - len(whole))

    def alone(self, requests: dict[int, Request]) -> dict[int, tuple[int, ...]]:
        done = self._act("alone")
        found = {index: answer(request) for index, request in requests.items()}
        if done == "differ":
            found = {index: (*tokens[:-1], -1) for index, tokens in found.items()}
        return found

    def _act(self, where: str) -> str:
        script = json.loads(os.environ.get(SCRIPT, "{}"))
        what: str = script.get(f"{self.task.system} {self.task.mode} {where}", "")
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "hang":
            time.sleep(3600)
        elif what == "refuse":
            raise UsageError("vLLM did not load the plug-in")
        elif what == "raise":
            raise ZeroDivisionError("a defect\nin two lines")
        return what


def answer(request: Request) -> tuple[int, ...]:
    return (request.prompt[-1],) * request.outputs
