"""`slidesparse plan --check`: a plan against what vLLM reports of the same model when it starts.

Each model is started in a process of its own, with realistic random weights unless the folder has
its own. Sizes do not depend on values.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slidesparse.bench.capacity.probe import EXTENSION
from slidesparse.bench.sweep.job import Job, Mode, Stage, System, Variant
from slidesparse.bench.sweep.vllm_compat import LiveEngine, plugin_options, prepare, start_llm
from slidesparse.bench.sweep.vllm_model import preset_config, serve, write_folder
from slidesparse.bench.sweep.vllm_weights import LOAD_FORMAT
from slidesparse.capacity.figure import total
from slidesparse.capacity.plan import CapacityPlan
from slidesparse.capacity.settings import KvDtype, Quant, Settings
from slidesparse.capacity.stored import has_weights
from slidesparse.devices import Device
from slidesparse.errors import ModelError, UsageError
from slidesparse.models import preset_names
from slidesparse.problem import DType

TOLERANCE = 0.03
"""A plan's tokens of KV cache may differ from vLLM's by so much."""

BUILD_TIMEOUT = 1800.0
"""Seconds to start vLLM with one model."""

_DTYPES = {Quant.FP8: DType.FP8, Quant.INT8: DType.INT8}


@dataclass(frozen=True)
class CheckJob:
    """What one process starts.

    Args:
        model: a preset's name or a folder with config.json.
        settings: of the plan.
        seed: of random weights.
    """

    model: str
    settings: Settings
    seed: int = 0


@dataclass(frozen=True)
class Reported:
    """What vLLM says of its memory.

    Args:
        memory: bytes by name, from `probe.memory_of`, on the first rank.
        kv_tokens: tokens of KV cache that it reports.
        blocks: of the KV cache.
        block_tokens: of one block.
        ran: what vLLM says that it runs, one line each.
    """

    memory: Mapping[str, int]
    kv_tokens: int
    blocks: int
    block_tokens: int
    ran: Mapping[str, str]


@dataclass(frozen=True)
class Difference:
    """One component of the memory, planned and reported.

    Args:
        name: of the component.
        planned: bytes, or tokens of "KV-cache tokens".
        reported: the same by vLLM.
    """

    name: str
    planned: int
    reported: int


class CapacityEngine:
    """Starts one model in vLLM. Made and used in a worker process of its own.

    Args:
        device: the first GPU.
        job: what it starts.
    """

    def __init__(self, device: Device, job: CheckJob) -> None:
        """Note the job; nothing of vLLM is imported yet."""
        self._device, self._job = device, job

    def build(self) -> Reported:
        """Start vLLM and ask what it found.

        Raises:
            UsageError: vLLM or the GPU is missing, or the model cannot be had, with the remedy.
            torch.OutOfMemoryError: the GPU's memory does not suffice.
        """
        if not self._device.is_gpu:
            raise UsageError("--check starts vLLM, which needs an NVIDIA GPU; leave --check out")
        prepare()
        arguments = engine_arguments(self._job)
        with tempfile.TemporaryDirectory(prefix="slidesparse-vllm-") as compiled:
            # As on a first start, which is what the plan is for: nothing is compiled yet.
            os.environ["VLLM_CACHE_ROOT"] = compiled
            live = LiveEngine(start_llm(arguments))
        blocks, size = live.kv_blocks
        cache = live.config.cache_config
        tokens = getattr(cache, "kv_cache_size_tokens", None)
        return Reported(
            memory=live.ask("slidesparse_memory"),
            kv_tokens=blocks * size if tokens is None else int(tokens),
            blocks=blocks + 1,
            block_tokens=size,
            ran=_ran(live),
        )


def engine_arguments(job: CheckJob) -> dict[str, Any]:
    """What vllm.LLM is called with, for the plan's settings.

    Raises:
        UsageError: the weights cannot be made, with the remedy.
    """
    it = job.settings
    folder, random = served_folder(job)
    options = plugin_options(it.pattern.dense)
    if not it.pattern.dense:
        # What the plan counts: one form of each weight.
        options = {"slidesparse": {"memory_format": "smallest"}}
    arguments: dict[str, Any] = {
        "model": str(folder),
        "skip_tokenizer_init": True,
        "tensor_parallel_size": it.tp,
        "seed": job.seed,
        "max_model_len": it.context,
        "max_num_seqs": it.max_seqs,
        "max_num_batched_tokens": it.batched_tokens,
        "gpu_memory_utilization": it.memory_fraction,
        "kv_cache_dtype": "fp8" if it.kv_dtype is KvDtype.FP8 else "auto",
        "enable_prefix_caching": False,
        "enforce_eager": it.eager,
        "worker_extension_cls": EXTENSION,
        "additional_config": options,
    }
    if random:
        arguments["load_format"] = LOAD_FORMAT
        extra = {"seed": job.seed, "pattern": str(it.pattern)}
        arguments["model_loader_extra_config"] = extra
    return arguments


def served_folder(job: CheckJob) -> tuple[Path, bool]:
    """The folder that vLLM loads, and whether its weights are to be made.

    Raises:
        UsageError: weights of four bits cannot be made, or the model is none that vLLM is given.
    """
    folder, quant = Path(job.model).expanduser(), job.settings.quant
    if folder.is_dir() and has_weights(folder):
        return folder, False
    if quant.four_bit:
        raise UsageError(
            f"--check makes weights of 16 or 8 bits, not {quant}; use --quant none, fp8 or int8, "
            "or a folder with the weights"
        )
    dtype = _DTYPES.get(quant)
    if dtype is not None:
        return serve(_sweep_job(job, dtype)).folder, True
    preset = job.model.strip().lower()
    if preset in preset_names():
        return write_folder(preset_config(preset), preset), True
    if not folder.is_dir():
        raise ModelError(
            f"--check takes a preset or a folder with config.json, not {job.model!r}; download it"
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return write_folder(config, folder.name), True


def differences(plan: CapacityPlan, reported: Reported) -> tuple[Difference, ...]:
    """Every component that both name; the tokens of the KV cache last."""
    return tuple(_differences(plan, reported))


def _differences(plan: CapacityPlan, reported: Reported) -> Iterator[Difference]:
    inside = plan.graphs_inside
    planned = {
        "total": plan.settings.gpu.memory_bytes,
        "budget": plan.budget,
        "weights": total(plan.weights),
        "activations": total(plan.activations),
        "outside torch": plan.non_torch.bytes,
        "CUDA graphs": plan.graphs.bytes if inside else 0,
        "available": plan.available,
        "context": plan.context.bytes,
        "captured": plan.graphs.bytes,
    }
    for name, count in planned.items():
        if name in reported.memory:
            yield Difference(name, count, reported.memory[name])
    yield Difference("KV-cache tokens", plan.kv_tokens, reported.kv_tokens)


def _sweep_job(job: CheckJob, dtype: DType) -> Job:
    """The same model as the sweeps serve it."""
    it = job.settings
    system = System.STOCK if it.pattern.dense else System.OURS
    return Job(
        stage=Stage.DECODE,
        model=job.model,
        tp=it.tp,
        dtype=dtype,
        variant=Variant(system, it.pattern),
        mode=Mode.EAGER if it.eager else Mode.GRAPHS,
        ms=(1,),
        prompt=1,
        outputs=1,
        repeats=1,
        seed=job.seed,
    )


def _ran(live: LiveEngine) -> dict[str, str]:
    from slidesparse.bench.sweep.vllm_compat import facts

    return {**facts(live.config), **live.ask("slidesparse_describe")}
