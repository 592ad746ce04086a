"""One vLLM of `slidesparse bench agreement`: stock or ours, made and used in a process of its own.

It runs with vLLM's defaults: chunked prefill, prefix caching, asynchronous scheduling, as many
tokens and sequences per step as vLLM takes by itself. Windows are scored one at a time, so that a
step has exactly a window's tokens in both systems; mixed requests are in the engine all at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from slidesparse.bench.agreement.numbers import TOP, Scores, read_scores
from slidesparse.bench.agreement.requests import Request, Trial
from slidesparse.bench.sweep.job import Mode, System
from slidesparse.bench.sweep.vllm import check_system
from slidesparse.bench.sweep.vllm_compat import (
    EXTENSION,
    facts,
    greedy,
    plugin_options,
    prepare,
    start_llm,
)
from slidesparse.devices import Device
from slidesparse.errors import UsageError

FACTORY = "slidesparse.bench.agreement.vllm:AgreementEngine"
"""For slidesparse.worker.Worker."""


@dataclass(frozen=True)
class Task:
    """What one process runs.

    Args:
        folder: of the checkpoint.
        system: stock vLLM, or with our plug-in.
        mode: eager or graphs.
        tp: tensor-parallel size.
        longest: tokens of the longest sequence, prompt and generated ones together.
        seed: of vLLM.
    """

    folder: str
    system: System
    mode: Mode
    tp: int
    longest: int
    seed: int


@dataclass(frozen=True)
class Built:
    """What came of starting vLLM.

    Args:
        ran: what runs, by name, one line each.
        load_s: seconds to make the model, read its weights and pack them; None where a process of
            vLLM's own did it, as with tensor parallelism.
        start_s: seconds until vLLM takes requests: loading, compiling, capturing and all else.
    """

    ran: Mapping[str, str]
    load_s: float | None
    start_s: float


@dataclass(frozen=True)
class Answered:
    """What came of requests that ran together.

    Args:
        answers: by index, the tokens of those that ended.
        broken: by index, why a request did not do what was asked of it.
        aborted: how many were aborted.
    """

    answers: Mapping[int, tuple[int, ...]]
    broken: Mapping[int, str]
    aborted: int


class AgreementEngine:
    """Serves a checkpoint in vLLM, scores text and answers requests.

    Args:
        device: the first GPU; vLLM finds it by itself.
        task: what it runs.
    """

    def __init__(self, device: Device, task: Task) -> None:
        """Note the task; nothing of vLLM is imported yet."""
        self.device, self.task = device, task
        self._llm: Any = None

    def build(self) -> Built:
        """Load the checkpoint into vLLM.

        Raises:
            UsageError: vLLM is missing, or the plug-in is not where it should be.
            torch.OutOfMemoryError: the GPU's memory does not suffice.
        """
        prepare()
        from vllm import LLM  # noqa: F401 - importing it takes seconds that are not those of starting.

        loading: list[float] = []
        start = time.perf_counter()
        with timed_loading(loading):
            llm = start_llm(engine_arguments(self.task))
        seconds = time.perf_counter() - start
        said = dict(llm.collective_rpc("slidesparse_describe")[0])
        check_system(self.task.system, said)
        self.use(llm)
        ran = {**facts(llm.llm_engine.vllm_config), **said}
        return Built(ran, sum(loading) if loading else None, seconds)

    def use(self, llm: Any) -> None:
        """Take a vllm.LLM that is there already."""
        self._llm = llm

    def score(self, windows: Sequence[tuple[Sequence[int], int]]) -> Scores:
        """Score windows of text, one after the other.

        Args:
            windows: tokens, and how many of the last ones count.

        Raises:
            AgreementError: vLLM did not give what was asked for.
        """
        llm = self._built()
        from vllm import SamplingParams

        asked = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=TOP, detokenize=False)
        parts = []
        for tokens, scored in windows:
            (done,) = llm.generate([_prompt(tokens)], asked, use_tqdm=False)
            parts.append(read_scores(done.prompt_logprobs, tokens, scored))
        return Scores.joined(parts)

    def together(self, requests: Sequence[Request]) -> Answered:
        """Answer requests that are all submitted at once; some are aborted on the way."""
        engine, trial = self._built().llm_engine, Trial(requests)
        for index, request in enumerate(requests):
            # An input with its type is what vLLM makes of a prompt before it comes to the engine.
            given = {"type": "token", **_prompt(request.prompt)}
            engine.add_request(str(index), given, greedy(request.outputs))
        while engine.has_unfinished_requests():
            for said in engine.step():
                answer = said.outputs[0]
                reason = answer.finish_reason if said.finished else None
                trial.note(int(said.request_id), list(answer.token_ids), reason)
            due = trial.due()
            if due:
                engine.abort_request([str(index) for index in due])
        trial.close()
        return Answered(trial.answers, trial.broken, len(trial.aborted))

    def alone(self, requests: Mapping[int, Request]) -> dict[int, tuple[int, ...]]:
        """Answer requests one at a time; nothing comes out of the prefix cache."""
        llm, found = self._built(), {}
        for index, request in requests.items():
            asked = greedy(request.outputs)
            asked.skip_reading_prefix_cache = True
            given = [_prompt(request.prompt)]
            (done,) = llm.generate(given, asked, use_tqdm=False)
            found[index] = tuple(done.outputs[0].token_ids)
        return found

    def _built(self) -> Any:
        if self._llm is None:
            raise UsageError("vLLM is not started; call build first")
        return self._llm


def engine_arguments(task: Task) -> dict[str, Any]:
    """What vllm.LLM is called with."""
    return {
        "model": task.folder,
        "skip_tokenizer_init": True,
        "tensor_parallel_size": task.tp,
        "seed": task.seed,
        "max_model_len": task.longest,
        "enforce_eager": task.mode is Mode.EAGER,
        "worker_extension_cls": EXTENSION,
        "additional_config": plugin_options(task.system is System.STOCK),
    }


@contextmanager
def timed_loading(seconds: list[float]) -> Iterator[None]:
    """Note how long vLLM takes to load a model in this process.

    Its loaders share one method that makes the model, reads its weights and has each layer pack
    them, which is where the plug-in does its work.

    Args:
        seconds: gets one entry per model.
    """
    import torch
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    before = BaseModelLoader.load_model

    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        model = before(*arguments, **named)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        return model

    BaseModelLoader.load_model = timed
    try:
        yield
    finally:
        BaseModelLoader.load_model = before


def _prompt(tokens: Sequence[int]) -> dict[str, Any]:
    return {"prompt_token_ids": list(tokens)}
