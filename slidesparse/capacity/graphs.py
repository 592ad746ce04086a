"""CUDA graphs, the CUDA context, and what else lies outside torch's tensors: estimated."""

from __future__ import annotations

from slidesparse.candidate import Provenance
from slidesparse.capacity.activations import LOGITS_V2
from slidesparse.capacity.figure import Part
from slidesparse.capacity.settings import Settings
from slidesparse.capacity.weights import FLOAT

MIB = 2**20

LARGEST_GRAPH = 512
"""vLLM captures batches up to min(2 x max_num_seqs, 512) (config/vllm.py, _set_cudagraph_sizes)."""

PIECE_BYTES = 126 << 10
"""Of one layer's piece in one piecewise graph: kernel nodes and their arguments in the driver.

This and FULL_BYTES give 2 to 7 % more than what vLLM 0.25.1 took on an H200 with its own FP8 and
INT8 linears: 1,068 MiB for Qwen2.5-7B, 1,022 for Llama-3.1-8B (256 sequences each), 818 for
Qwen2.5-14B (128)."""

FULL_BYTES = 436 << 10
"""Of one layer in one full graph, which only decode batches have."""

NON_TORCH = 230 * MIB
"""What libraries load and allocate during vLLM's profile: modules of kernels, handles. On an H200
with vLLM 0.25.1 it was 230.0 to 230.1 MiB for three models."""

NON_TORCH_RANKS = 256 * MIB
"""The same with several ranks: buffers of the all-reduce besides."""

CONTEXT = 527 * MIB
"""A CUDA context with the kernels of torch, which exists before vLLM's first look at the memory:
526.8 MiB on an H200 with torch 2.11."""

NCCL = 512 * MIB
"""Communicators of NCCL per rank, likewise from before."""


def graph_sizes(settings: Settings) -> tuple[int, ...]:
    """Batch sizes that vLLM 0.25.1 captures: 1, 2, 4, eights below 256, sixteens up to 512."""
    if settings.eager:
        return ()
    most = min(settings.max_seqs * 2, LARGEST_GRAPH, settings.batched_tokens)
    sizes = {size for size in (1, 2, 4) if size <= most}
    sizes |= set(range(8, min(most + 1, 256), 8)) | set(range(256, most + 1, 16))
    if settings.batched_tokens <= most:
        sizes.add(settings.batched_tokens)
    return tuple(sorted(sizes))


def graph_part(settings: Settings) -> Part:
    """Memory of the captured graphs.

    Each size is captured in pieces between attention layers, decode batches also whole; all share
    one pool of activations for the largest, and its logits with their float32 copy are kept too.
    """
    sizes = graph_sizes(settings)
    spec = settings.spec
    if not sizes:
        return Part("CUDA graphs", 0, Provenance.DERIVED, "off: --eager")
    decode = [size for size in sizes if size <= settings.max_seqs]
    nodes = spec.layers * (PIECE_BYTES * len(sizes) + FULL_BYTES * len(decode))
    widest = max(layer.n for layer in spec.linears(settings.tp))
    pool = sizes[-1] * (FLOAT * (widest + 4 * spec.hidden) + LOGITS_V2 * spec.vocab)
    how = f"{len(sizes)} sizes up to {sizes[-1]}, piecewise, {len(decode)} of them whole"
    return Part("CUDA graphs", nodes + pool, Provenance.ESTIMATED, how)


def non_torch_part(settings: Settings) -> Part:
    """What vLLM's profile finds beside torch's tensors."""
    taken = NON_TORCH if settings.tp == 1 else NON_TORCH_RANKS
    return Part("outside torch", taken, Provenance.ESTIMATED, "kernels and handles of libraries")


def context_part(settings: Settings) -> Part:
    """What is taken before vLLM measures: it counts neither as used nor as part of the fraction."""
    taken = CONTEXT + (NCCL if settings.tp > 1 else 0)
    how = "CUDA context" + (" and NCCL" if settings.tp > 1 else "")
    return Part("CUDA context", taken, Provenance.ESTIMATED, how)
