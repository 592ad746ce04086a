"""A real vLLM whose model is a hash: requests, scheduler, caches and log probabilities are vLLM's.

Run as a script, since which platform vLLM sees is decided once per process:
    python vllm_agree_on_cpu.py FOLDER < a JSON object of settings
It scores and answers as the engine of `bench agreement` does and prints what came of it as JSON.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from vllm_on_cpu import choose_platform, clock_executor

VOCAB = 1000


def logits_of(history: Sequence[int], noise: int = 0) -> torch.Tensor:
    """[VOCAB] float32: what the model says after these tokens; other noise, other values."""
    seed = zlib.crc32(repr((tuple(history), noise)).encode())
    return 3 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))


def hash_executor(blocks: int, noisy: bool) -> type:
    """An executor that samples the likeliest token of `logits_of`.

    Args:
        blocks: of the KV cache.
        noisy: whether a token depends on how many sequences a step has.
    """
    from vllm.v1.outputs import LogprobsTensors, ModelRunnerOutput

    base: Any = clock_executor(blocks)

    class HashExecutor(base):  # type: ignore[misc]
        def _init_executor(self) -> None:
            super()._init_executor()
            self.history: dict[str, list[int]] = {}
            self.asked: dict[str, Any] = {}
            self.hits: list[int] = []

        def _run(self, scheduled: Any) -> Any:
            began = {}
            for request in scheduled.scheduled_new_reqs:
                self.history[request.req_id] = list(request.prompt_token_ids)
                asked = request.sampling_params.prompt_logprobs
                self.asked[request.req_id] = (len(request.prompt_token_ids), asked)
                began[request.req_id] = request.num_computed_tokens
                self.hits.append(request.num_computed_tokens)
            cached = scheduled.scheduled_cached_reqs
            began |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
            names, counts = list(scheduled.num_scheduled_tokens), scheduled.num_scheduled_tokens
            noise = len(names) if noisy else 0
            sampled, scored = [], {}
            for name in names:
                history = self.history[name]
                made: list[int] = []
                if began[name] + counts[name] >= len(history):
                    length, asked = self.asked[name]
                    if asked is not None and len(history) == length:
                        scored[name] = self._scored(history, asked)
                    made = [int(logits_of(history, noise).argmax())]
                    history += made
                sampled.append(made)
            order = {name: index for index, name in enumerate(names)}
            return ModelRunnerOutput(names, order, sampled, prompt_logprobs_dict=scored)

        def _scored(self, prompt: list[int], top: int) -> Any:
            rows = torch.stack([logits_of(prompt[:at]) for at in range(1, len(prompt))])
            logprobs, came = rows.log_softmax(-1), torch.tensor(prompt[1:])[:, None]
            own, best = logprobs.gather(1, came), logprobs.topk(top)
            return LogprobsTensors(
                torch.cat([came, best.indices], 1),
                torch.cat([own, best.values], 1),
                (logprobs >= own).sum(1),
            )

    return HashExecutor


def seconds_of_loading(folder: Path) -> dict[str, Any]:
    """What `timed_loading` notes of a model that vLLM loads on the CPU, and what it leaves."""
    import tempfile

    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    from slidesparse.bench.agreement.vllm import timed_loading

    args = EngineArgs(str(folder), skip_tokenizer_init=True, load_format="dummy", max_model_len=64)
    config = args.create_engine_config()
    before, noted = BaseModelLoader.load_model, []
    with set_current_vllm_config(config):
        place = f"file://{tempfile.mkdtemp()}/store"
        parallel_state.init_distributed_environment(1, 0, place, 0, "gloo")
        parallel_state.ensure_model_parallel_initialized(1, 1)
        with timed_loading(noted):
            loader = get_model_loader(config.load_config)
            model = loader.load_model(vllm_config=config, model_config=config.model_config)
    weights = sum(value.numel() for value in model.parameters())
    return {"noted": noted, "weights": weights, "left": BaseModelLoader.load_model is before}


def main(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Build the engine, score and answer."""
    from slidesparse.bench.sweep.vllm_compat import prepare

    prepare()
    choose_platform(settings["ahead"])
    if settings.get("load"):
        return seconds_of_loading(folder)
    from slidesparse.bench.agreement.requests import Request
    from slidesparse.bench.agreement.vllm import AgreementEngine, Task, engine_arguments
    from slidesparse.bench.sweep.job import Mode, System
    from slidesparse.devices import CPU

    task = Task(str(folder), System.STOCK, Mode.EAGER, 1, settings["longest"], 0)
    from vllm import LLM

    arguments = engine_arguments(task) | settings["more"]
    arguments["distributed_executor_backend"] = hash_executor(settings["blocks"], settings["noisy"])
    # The worker is what this executor stands for; it asks no extension.
    del arguments["worker_extension_cls"]
    llm = LLM(**arguments)
    engine = AgreementEngine(CPU, task)
    engine.use(llm)
    config = llm.llm_engine.vllm_config
    scores = engine.score([(tokens, scored) for tokens, scored in settings["windows"]])
    requests = [
        Request(tuple(it["prompt"]), it["outputs"], it["abort_after"])
        for it in settings["requests"]
    ]
    answered = engine.together(requests)
    hits = llm.llm_engine.engine_core.engine_core.model_executor.hits
    before = len(hits)
    alone = engine.alone({index: requests[index] for index in settings["alone"]})
    return {
        "prefix_caching": config.cache_config.enable_prefix_caching,
        "hits": sum(hits[:before]),
        "hits alone": sum(hits[before:]),
        "chunked": config.scheduler_config.enable_chunked_prefill,
        "scores": [scores.logprobs, scores.first, scores.gap],
        "answers": {str(index): tokens for index, tokens in answered.answers.items()},
        "broken": {str(index): text for index, text in answered.broken.items()},
        "aborted": answered.aborted,
        "alone": {str(index): tokens for index, tokens in alone.items()},
        "unfinished": llm.llm_engine.has_unfinished_requests(),
    }


if __name__ == "__main__":
    print("\n" + json.dumps(main(Path(sys.argv[1]), json.load(sys.stdin))))
