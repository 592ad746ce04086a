"""What the benchmark knows of vLLM's inside, and what may differ between its versions.

Read from vLLM 0.25.1. The engine core runs in the process of the caller, so that its scheduler can
be watched; the model runs there, too, or in one process per tensor-parallel rank.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from slidesparse.bench.sweep.vllm_steps import StepLog
from slidesparse.errors import UsageError

EXTENSION = "slidesparse.bench.sweep.vllm_worker.Probe"
"""What vLLM's worker_extension_cls has to be."""

DEFAULT_SEQUENCES = 256
"""The least that vLLM's own max_num_seqs is, whatever the GPU."""

MOST_IDLE = 200
"""Calls of step() in a row without tokens, after which the engine counts as stuck."""

_MEMORY = (
    "No available memory for the cache blocks",
    "available KV cache memory",
    "Free memory on device",
)
"""Words of errors that vLLM raises where the GPU's memory does not suffice."""


def prepare() -> None:
    """Set what vLLM reads from the environment; call it before vLLM is imported.

    Raises:
        UsageError: vLLM is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UsageError("vLLM is not installed: pip install 'slidesparse[vllm]'")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # The engine core in this process.
    for name, value in (
        ("VLLM_LOGGING_LEVEL", "WARNING"),
        ("VLLM_NO_USAGE_STATS", "1"),
        ("VLLM_HOST_IP", "127.0.0.1"),  # All ranks are on this host, which may have no network.
        ("TQDM_DISABLE", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)
    if importlib.util.find_spec("flashinfer") is None:
        # vLLM takes it for granted. Greedy sampling, which is all that runs here, needs no sampler.
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")


def start_llm(arguments: Mapping[str, Any]) -> Any:
    """A vllm.LLM with these arguments.

    Raises:
        torch.OutOfMemoryError: the GPU's memory does not suffice; vLLM has other errors for it too.
    """
    import torch
    from vllm import LLM

    try:
        return LLM(**arguments)
    except (ValueError, RuntimeError) as error:
        if any(sign in str(error) for sign in _MEMORY):
            raise torch.OutOfMemoryError(str(error)) from error
        raise


def greedy(tokens: int) -> Any:
    """Sampling parameters: exactly `tokens` tokens, the likeliest ones, not turned into text."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)


class LiveEngine:
    """A built vLLM whose steps are taken one by one and watched.

    Args:
        llm: a vllm.LLM with its engine core in this process.

    Attributes:
        log: of every step from now on.
    """

    def __init__(self, llm: Any) -> None:
        """Watch the scheduler from now on."""
        self._llm, self.log = llm, StepLog()
        self._core = llm.llm_engine.engine_core.engine_core
        self._scheduler = self._core.scheduler
        update = self._scheduler.update_from_output

        def watched(scheduled: Any, output: Any) -> Any:
            # The engine has just waited for this step's tokens and does nothing else before.
            self.log.note(scheduled.total_num_scheduled_tokens, len(scheduled.num_scheduled_tokens))
            return update(scheduled, output)

        self._scheduler.update_from_output = watched

    @property
    def config(self) -> Any:
        """The configuration of vLLM."""
        return self._llm.llm_engine.vllm_config

    def enqueue(self, prompts: Sequence[Sequence[int]], outputs: int) -> None:
        """Add prompts of token ids that generate `outputs` tokens each; nothing runs yet."""
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        self._llm.enqueue(given, greedy(outputs), use_tqdm=False)

    def step(self) -> None:
        """Let the engine do its next step; one that schedules ahead waits for the one before."""
        self._llm.llm_engine.step()

    @property
    def unfinished(self) -> bool:
        """Whether requests wait or run."""
        return bool(self._llm.llm_engine.has_unfinished_requests())

    def abort(self) -> None:
        """Drop every request and what the engine has in flight."""
        engine = self._llm.llm_engine
        engine.abort_request(list(engine.output_processor.request_states), internal=True)
        for _ in range(MOST_IDLE):
            if not self._scheduler.has_requests() and not self._core.batch_queue:
                return
            engine.step()

    @contextmanager
    def at_most(self, tokens: int) -> Iterator[None]:
        """Have the scheduler give each step at most `tokens` tokens."""
        before = self._scheduler.max_num_scheduled_tokens
        self._scheduler.max_num_scheduled_tokens = tokens
        try:
            yield
        finally:
            self._scheduler.max_num_scheduled_tokens = before

    @property
    def in_flight(self) -> int:
        """Steps that are scheduled before the first of them is done."""
        return int(self._core.batch_queue_size)

    @property
    def kv_blocks(self) -> tuple[int, int]:
        """Blocks of the KV cache, and tokens of one."""
        cache = self.config.cache_config
        # One block stands for none.
        return int(cache.num_gpu_blocks) - 1, int(cache.block_size)

    def ask(self, method: str) -> Any:
        """What a method of the worker extension gives, on the first rank; it runs on all."""
        return self._llm.collective_rpc(method)[0]


def facts(config: Any) -> dict[str, str]:
    """What vLLM's configuration says of how it runs, one line each."""
    compilation, scheduler = config.compilation_config, config.scheduler_config
    runner = "v2" if getattr(config, "use_v2_model_runner", False) else "v1"
    return {
        "vllm": str(sys.modules["vllm"].__version__),
        "compile mode": _word(compilation.mode),
        "cudagraph mode": _word(compilation.cudagraph_mode),
        "model runner": runner,
        "async scheduling": "on" if scheduler.async_scheduling else "off",
        "max batched tokens": str(scheduler.max_num_batched_tokens),
        "max sequences": str(scheduler.max_num_seqs),
    }


def linear_kernel(module: Any) -> Any:
    """The object that runs a quantised linear layer, None for a module of another kind."""
    scheme = getattr(module, "scheme", None)
    if scheme is None:
        return None
    found = (getattr(scheme, name, None) for name in ("fp8_linear", "kernel"))
    return next((kernel for kernel in found if kernel is not None), scheme)


def expert_kernel(module: Any) -> str:
    """What runs the experts of a layer, "" for a module of another kind.

    The class of its quantisation and, where it chose one of several, the kernels' name.
    """
    method = getattr(module, "quant_method", None)
    if method is None or not hasattr(module, "w13_weight"):
        return ""
    method = getattr(method, "old_quant_method", method)  # Wrapped, where ranks share experts.
    chosen = getattr(method, "fp8_backend", getattr(method, "int8_backend", None))
    name = type(method).__name__
    return name if chosen is None else f"{name} ({getattr(chosen, 'value', chosen)})"


def attention_backend(module: Any) -> str:
    """The name of an attention layer's backend, "" for a module of another kind."""
    backend = getattr(module, "attn_backend", None)
    if backend is None:
        return ""
    name = getattr(backend, "get_name", None)
    return str(name()) if callable(name) else getattr(backend, "__name__", str(backend))


def plugin_options(off: bool) -> Mapping[str, Any]:
    """What goes into additional_config: our plug-in off, or on as it is by default."""
    return {"slidesparse": {"off": True} if off else {}}


def _word(value: Any) -> str:
    """An enumeration's member by its name."""
    return str(getattr(value, "name", value)).lower()
