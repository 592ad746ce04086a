"""The engine of `slidesparse bench prefill|decode --engine vllm`: stock vLLM, with or without us.

Both systems run the same model in the same vLLM under the same options. These differ from vLLM's
defaults: prefix caching is off, sequences are limited to what the cells need, a prefill engine may
batch as many tokens as its largest cell has, and eager jobs set enforce_eager. torch.compile, CUDA
graphs and asynchronous scheduling are as vLLM has them.

**A prefill cell** of M runs steps of exactly M tokens: whole prompts of distinct random tokens, one
token generated for each. All prompts of the cell are queued first. A step's time then is what the
engine takes per step while prompts are waiting: scheduling, inputs, the model, sampling and the
bookkeeping of requests that end, as far as the engine does not hide them behind the GPU's work;
neither tokenising nor queueing. That each step really ran M tokens is checked.

**A decode cell** of M prefills M sequences and times steps in which each of them gets one token.
What comes before all of them decode is cut off, and so is what comes after the first has ended.

Times are read when the tokens of a step arrive (see vllm_steps). The window that is timed is
entered and left with the engine's queue full: no synchronisation drains it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from slidesparse.bench.kernel_kinds import shares
from slidesparse.bench.sweep.job import CellTime, Engine, Job, Mode, Stage, System
from slidesparse.bench.sweep.vllm_cells import Cells
from slidesparse.bench.sweep.vllm_compat import (
    DEFAULT_SEQUENCES,
    EXTENSION,
    LiveEngine,
    facts,
    plugin_options,
    prepare,
    start_llm,
)
from slidesparse.bench.sweep.vllm_model import Served, serve
from slidesparse.bench.sweep.vllm_steps import prompt_lengths
from slidesparse.bench.sweep.vllm_weights import LOAD_FORMAT
from slidesparse.devices import Device
from slidesparse.errors import UsageError
from slidesparse.pattern import DENSE

SLACK = 16
"""Tokens that max_model_len has beyond the longest sequence; vLLM keeps one for what comes next."""

MODEL_LENGTH = 2048
"""Of every engine, if the model takes it: vLLM's compiled graphs are cached by it, and those of
prefill and decode are the same."""


class VllmEngine(Engine):
    """Serves a model in vLLM and times its steps.

    Attributes:
        live: the engine, once it is built.
    """

    def __init__(self, device: Device, job: Job) -> None:
        """Note the job; nothing of vLLM is imported yet."""
        super().__init__(device, job)
        self.live: LiveEngine | None = None
        self._cells: Cells | None = None
        self._served: Served | None = None

    def build(self) -> Mapping[str, str]:
        """Load the model into vLLM.

        Raises:
            UsageError: vLLM or the GPU is missing, the model cannot be had, or the plug-in is not
                where it should be, with the remedy.
            torch.OutOfMemoryError: the GPU's memory does not suffice.
        """
        self._check_device()
        prepare()
        self._served = served = serve(self.job)
        self.live = live = self._start(engine_arguments(self.job, served))
        said = live.ask("slidesparse_describe")
        check_system(self.job.variant.system, said)
        self._cells = Cells(self.job, live, served.spec.vocab, self._devices())
        blocks, size = live.kv_blocks
        return {
            **facts(live.config),
            **said,
            "weights": f"random, seed {self.job.seed}" if served.random else str(served.folder),
            "kv cache": f"{blocks * size} tokens in blocks of {size}",
        }

    def run(self, m: int) -> CellTime:
        """Measure one cell.

        Raises:
            StepError: the engine cannot run it, or did not run what was asked for.
        """
        if self._cells is None or self._served is None:
            raise UsageError("the model is not built; call build first")
        step_us, kernels, watched, tokens = self._cells.run(m)
        return CellTime(
            m=m,
            step_us=step_us,
            shares=shares(kernels),
            clock_mhz=watched.clock_mhz,
            power_w=watched.power_w,
            joules_per_token=None if watched.joules is None else watched.joules / tokens,
            largest=largest_tensor(self.job, self._served, m),
        )

    def _start(self, arguments: dict[str, Any]) -> LiveEngine:
        return LiveEngine(start_llm(arguments))

    def _devices(self) -> tuple[Device, ...]:
        return tuple(Device(self.device.kind, index) for index in range(self.job.tp))

    def _check_device(self) -> None:
        if not self.device.is_gpu:
            raise UsageError("vLLM's engine needs an NVIDIA GPU; use --engine linear")
        if self.device.index:
            raise UsageError(
                f"vLLM runs on the first GPUs that it sees, not on {self.device}; set "
                f"CUDA_VISIBLE_DEVICES={self.device.index} and use --device cuda:0"
            )


def engine_arguments(job: Job, served: Served) -> dict[str, Any]:
    """What vllm.LLM is called with.

    Raises:
        UsageError: the model does not take sequences as long as the job's.
    """
    largest = max(job.ms)
    if job.stage is Stage.PREFILL:
        longest = min(job.prompt, largest) + 1
        # A step is scheduled while the prompts of the one before still count.
        sequences = 2 * len(prompt_lengths(largest, job.prompt))
    else:
        longest, sequences = job.prompt + job.outputs, largest
    if longest > served.longest:
        raise UsageError(
            f"sequences of {longest} tokens are longer than the {served.longest} that "
            f"{job.model} takes; use shorter prompts"
        )
    arguments: dict[str, Any] = {
        "model": str(served.folder),
        "skip_tokenizer_init": True,
        "tensor_parallel_size": job.tp,
        "seed": job.seed,
        "max_model_len": min(max(longest + SLACK, MODEL_LENGTH), served.longest),
        "enable_prefix_caching": False,
        "enforce_eager": job.mode is Mode.EAGER,
        "worker_extension_cls": EXTENSION,
        "additional_config": plugin_options(job.variant.system is System.STOCK),
    }
    if sequences > DEFAULT_SEQUENCES:
        arguments["max_num_seqs"] = sequences
    if job.stage is Stage.PREFILL:
        arguments["max_num_batched_tokens"] = max(largest, sequences)
    if served.random:
        arguments["load_format"] = LOAD_FORMAT
        extra = {"seed": job.seed, "pattern": str(job.variant.pattern)}
        arguments["model_loader_extra_config"] = extra
    return arguments


def check_system(system: System, said: Mapping[str, str]) -> None:
    """Make sure that the plug-in runs layers for ours, and is off for stock.

    Args:
        system: that was asked for.
        said: what the worker says that it runs.

    Raises:
        UsageError: it is not so, with the remedy.
    """
    there = "slidesparse" in said
    if system is System.OURS and not there:
        raise UsageError(
            f"vLLM did not load the plug-in: its linears run {said['linears']}; reinstall "
            "slidesparse in this environment, so that its entry point is known, and leave "
            "VLLM_PLUGINS unset"
        )
    counted = re.search(r"(\d+) of \d+ W8A8 linears taken", said.get("slidesparse", ""))
    if system is System.OURS and counted is not None and int(counted[1]) == 0:
        raise UsageError(f"the plug-in took no layer, which would be stock again: {counted.string}")
    if system is System.STOCK and there:
        raise UsageError(f"the plug-in is on in what should be stock vLLM: {said['slidesparse']}")


def largest_tensor(job: Job, served: Served, m: int) -> int:
    """Elements of the largest tensor of a step around the linear layers of one rank.

    A lifted activation counts for ours, although a plan may run the layer dense.
    """
    pattern = job.variant.pattern if job.variant.system is System.OURS else DENSE
    return max(
        layer.grouped_rows(m) * max(layer.n, pattern.expanded_k(layer.k))
        for layer in served.spec.linears(job.tp)
    )
