"""What `slidesparse plan --check` asks of a vLLM worker: what its memory profile found.

vLLM imports this module in every worker before it loads the model (worker_extension_cls), which
makes our random weights known there, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slidesparse.bench.sweep.vllm_worker import Probe

EXTENSION = "slidesparse.bench.capacity.probe.MemoryProbe"
"""What vLLM's worker_extension_cls has to be."""


class MemoryProbe(Probe):
    """A method that vLLM's worker gains."""

    def slidesparse_memory(self) -> dict[str, int]:
        """What vLLM's profile found on this rank, in bytes; see `memory_of`."""
        import torch

        free, _ = torch.cuda.mem_get_info()
        return memory_of(self, int(free))


def memory_of(worker: Any, free: int) -> dict[str, int]:
    """Figures of vLLM 0.25.1's gpu_worker after it has started, in bytes; absent if it lacks them.

    Args:
        worker: a vLLM worker.
        free: bytes of the GPU that are free now.

    Returns:
        "total" and "budget" of the GPU, "weights", "activations" and "outside torch" as the profile
        found them, "CUDA graphs" as it estimated them (0 in model runner V2), "available" for the
        KV cache, and "context", what was taken before vLLM's first look. "captured" is what is
        taken now beyond all these: CUDA graphs, and what torch keeps.
    """
    runner = getattr(worker, "model_runner", None)
    snapshot = getattr(worker, "init_snapshot", None)
    found = {
        "total": getattr(snapshot, "total_memory", None),
        "budget": getattr(worker, "requested_memory", None),
        "weights": getattr(runner, "model_memory_usage", None),
        "activations": getattr(worker, "peak_activation_memory", None),
        "outside torch": getattr(worker, "non_torch_memory", None),
        "CUDA graphs": getattr(worker, "cudagraph_memory_estimate", None),
        "available": getattr(worker, "available_kv_cache_memory_bytes", None),
    }
    known = {name: int(value) for name, value in found.items() if value is not None}
    before = getattr(snapshot, "free_memory", None)
    if before is not None and "total" in known:
        known["context"] = known["total"] - int(before)
        known["captured"] = (
            int(before) - free - _sum(known, "weights", "outside torch", "available")
        )
    return known


def _sum(known: Mapping[str, int], *names: str) -> int:
    return sum(known.get(name, 0) for name in names)
