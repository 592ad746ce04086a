"""What kind of work a GPU kernel does, from its name: GEMM, fused, attention or other.

Names say who wrote a kernel, not which layer launched it. So the GEMM of the head counts as a GEMM,
and what Inductor fused counts as fused even where that is a rotary embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import Enum
from typing import Any


class Kernel(str, Enum):
    """A kind of kernel.

    GEMM: matrix products, with whatever they fuse, and what reduces their partial sums.
    FUSED: quantisation, norms and activations between the GEMMs, the lift among them.
    ATTENTION: attention, its bookkeeping, the rotary embedding and the writes to the KV cache.
    OTHER: everything else: sampling, copies, collectives, single operations of torch.
    """

    GEMM = "gemm"
    FUSED = "fused"
    ATTENTION = "attention"
    OTHER = "other"

    def __str__(self) -> str:
        """The word as records spell it."""
        return str(self.value)


_TABLE: tuple[tuple[Kernel, tuple[str, ...]], ...] = (
    # Copies and collectives first: their names may carry those of operations.
    (Kernel.OTHER, ("memcpy", "memset", "nccl", "cross_device_reduce", "multimem", "sampling")),
    # Templates of Inductor: GEMMs that it wrote itself, flex attention among them.
    (Kernel.ATTENTION, ("triton_tem_fused_flex",)),
    (Kernel.GEMM, ("triton_tem_",)),
    # Named after all that they fused: "triton_red_fused_cutlass_scaled_mm_..." is no GEMM.
    (Kernel.FUSED, ("triton_red_", "triton_poi_", "triton_per_", "triton_for_")),
    # FlashInfer has norms, too, and every name of its kernels says flashinfer.
    (
        Kernel.FUSED,
        (
            "rms_norm",
            "rmsnorm",
            "layernorm",
            "layer_norm",
            "silu",
            "gelu",
            "act_and_mul",
            # Ours: quantize_kernel, silu_mul_quantize_kernel, dequantize_kernel, ...
            "quantize_kernel",
            "quant_kernel",
            "pack24",
        ),
    ),
    # FlashAttention is built on CUTLASS, so it comes before it.
    (
        Kernel.ATTENTION,
        (
            "flash",
            "fmha",
            "attention",
            "attn",
            "batchprefillwith",
            "batchdecodewith",
            "merge_states",
            "reshape_and_cache",
            "rotary",
            "concat_and_cache",
        ),
    ),
    (
        Kernel.GEMM,
        (
            # The kernel of slidesparse.kernels.native.
            "sparse_gemm",
            "nvjet",
            "gemm",
            "gemv",
            "cutlass",
            "cusparselt",
            "spmma",
            "splitkreduce",
            "cublaslt",
            "cublas",
            "scaled_mm",
            "fused_moe_kernel",
            "marlin",
            "matmul",
        ),
    ),
)


def kind_of(name: str) -> Kernel:
    """The kind of a kernel.

    Args:
        name: as a profiler gives it, demangled or not.
    """
    lower = name.lower()
    for kind, signs in _TABLE:
        if any(sign in lower for sign in signs):
            return kind
    return Kernel.OTHER


def shares(times: Mapping[str, float]) -> dict[str, float]:
    """The fraction of the GPU's busy time that each kind of kernel has.

    Args:
        times: by name of the kernel, in any unit.

    Returns:
        All four kinds, "gemm" first; empty if the times sum to nothing.
    """
    whole = sum(times.values())
    if whole <= 0:
        return {}
    found = {str(kind): 0.0 for kind in Kernel}
    for name, time in times.items():
        found[str(kind_of(name))] += time / whole
    return found


def kernel_times(recorded: Any) -> dict[str, float]:
    """GPU time in microseconds by name of the kernel, from a torch.profiler.profile."""
    from torch.autograd import DeviceType  # type: ignore[attr-defined]

    times: Counter[str] = Counter()
    for event in recorded.events() or ():
        # Annotations span kernels that are counted themselves.
        annotation = getattr(event, "is_user_annotation", False)
        if event.device_type == DeviceType.CUDA and not annotation:
            times[event.name] += event.time_range.elapsed_us()
    return dict(times)
