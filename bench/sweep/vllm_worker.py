"""What the benchmark asks of each vLLM worker: what it runs, and the GPU time of its kernels.

vLLM imports this module in every worker before it loads the model (worker_extension_cls), which is
why importing it is what makes our random weights known there.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from typing import Any

from slidesparse.bench.kernel_kinds import kernel_times
from slidesparse.bench.sweep.vllm_compat import (
    attention_backend,
    expert_kernel,
    linear_kernel,
)
from slidesparse.bench.sweep.vllm_weights import register

OURS = "slidesparse."
"""Modules of kernels that are ours."""

with contextlib.suppress(ImportError):  # Without vLLM nobody loads a model either.
    register()


class Probe:
    """Methods that vLLM's worker gains."""

    _slidesparse_profile: Any = None

    def slidesparse_describe(self) -> dict[str, str]:
        """What the model runs: kernels of its linears, attention, and our plug-in's summary."""
        worker: Any = self
        return describe(worker.get_model())

    def slidesparse_start(self) -> None:
        """Record the kernels that are launched from now on."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        # Left attached, CUPTI slows the launches of all later cells by a tenth or more. Its removal
        # goes well with CUDA graphs from CUDA 12.6 on (pytorch/pytorch#150957).
        os.environ.setdefault("TEARDOWN_CUPTI", "1")
        torch.cuda.synchronize()
        self._slidesparse_profile = profile(activities=[ProfilerActivity.CUDA])
        self._slidesparse_profile.start()

    def slidesparse_stop(self) -> dict[str, float]:
        """Microseconds of GPU time since `slidesparse_start`, by name of the kernel."""
        import torch

        recorded, self._slidesparse_profile = self._slidesparse_profile, None
        torch.cuda.synchronize()
        recorded.stop()
        return kernel_times(recorded)


def describe(model: Any) -> dict[str, str]:
    """What a loaded model runs, one line each: "linears", "attention", "experts", "slidesparse".

    The last two are there only for models with experts and with our plug-in.
    """
    linears: Counter[str] = Counter()
    backends: Counter[str] = Counter()
    experts: Counter[str] = Counter()
    summary = ""
    for _, module in model.named_modules():
        kernel = linear_kernel(module)
        if kernel is not None:
            linears[_spelled(kernel)] += 1
            summary = summary or _summary(kernel)
        backend = attention_backend(module)
        if backend:
            backends[backend] += 1
        expert = expert_kernel(module)
        if expert:
            experts[expert] += 1
    said = {"linears": _counted(linears), "attention": _counted(backends)}
    if experts:
        said["experts"] = _counted(experts)
    return {**said, "slidesparse": summary} if summary else said


def _spelled(kernel: Any) -> str:
    """The class of a kernel; of ours also whether it took the layer, or left it to which."""
    name = type(kernel).__name__
    stock = getattr(kernel, "stock", None)
    if not type(kernel).__module__.startswith(OURS) or stock is None:
        return name
    return name if getattr(kernel, "taken", True) else f"{type(stock).__name__} (left to vLLM)"


def _summary(kernel: Any) -> str:
    session = getattr(kernel, "session", None)
    ours = type(kernel).__module__.startswith(OURS)
    return str(session.summary()) if ours and session is not None else ""


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in counts.most_common())
