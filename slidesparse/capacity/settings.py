"""What a plan is made for, and what of it cannot be."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from slidesparse.devices import FP8_SM, spell_sm
from slidesparse.errors import UsageError
from slidesparse.gpus import GpuSpec
from slidesparse.models import ModelSpec
from slidesparse.pattern import DENSE, Pattern

GROUP = 128
"""Weights that share a scale in AWQ and GPTQ checkpoints, unless they say otherwise."""

BLOCK_TOKENS = 16
"""Tokens of a block of vLLM's KV cache (CacheConfig.DEFAULT_BLOCK_SIZE)."""

FLOAT_STATE = 2
"""Bytes of an element of a DeltaNet's state; vLLM's mamba_ssm_cache_dtype follows the model."""

LARGE_GIB, LARGE_BATCH, SMALL_BATCH = 70, 8192, 2048
"""max_num_batched_tokens of vLLM's server: 8192 from 70 GiB on except on an A100, 2048 else
(engine/arg_utils.py, get_batch_defaults)."""

MOST = 2**40
"""More sequences or tokens than any memory holds."""

TURING, AMPERE, BLACKWELL = 75, 80, 100
"""Compute capabilities. From Blackwell on vLLM's CUTLASS kernels refuse INT8 (vLLM issue 54311)."""


class _Word(str, Enum):
    def __str__(self) -> str:
        return str(self.value)


W = TypeVar("W", bound=_Word)


class Quant(_Word):
    """How the weights of linears are stored."""

    NONE = "none"
    FP8 = "fp8"
    INT8 = "int8"
    AWQ = "awq"
    GPTQ = "gptq"

    @property
    def four_bit(self) -> bool:
        """Whether weights have four bits and scales per group; products are 16-bit ones."""
        return self in (Quant.AWQ, Quant.GPTQ)

    @property
    def eight_bit(self) -> bool:
        """Whether weights have eight bits and a scale per output channel."""
        return self in (Quant.FP8, Quant.INT8)

    def weight_bytes(self, n: int, k: int) -> int:
        """Bytes of a weight [n, k] with its scales.

        16 bits: 2 n k. FP8 and INT8: n k and a float32 per channel (compressed-tensors W8A8). AWQ:
        n k / 2, and per group of 128 a 16-bit scale and a 4-bit zero point (AutoAWQ's GEMM form).
        GPTQ: n k / 2 and the scales; vLLM's Marlin drops the zero points of symmetric ones.
        """
        if self is Quant.NONE:
            return 2 * n * k
        if self.eight_bit:
            return n * k + 4 * n
        groups = -(-k // GROUP)
        return n * k // 2 + 2 * n * groups + (n * groups // 2 if self is Quant.AWQ else 0)


class KvDtype(_Word):
    """Elements of the KV cache."""

    BF16 = "bf16"
    FP8 = "fp8"

    @property
    def bytes(self) -> int:
        """Of one element; FP16 where the GPU has no BF16."""
        return 2 if self is KvDtype.BF16 else 1


@dataclass(frozen=True)
class Settings:
    """What is served, and how.

    Args:
        spec: the model.
        gpu: on which it runs, `tp` of them.
        max_seqs: sequences that vLLM may run at once (max_num_seqs).
        context: tokens of the longest sequence, prompt and answer (max_model_len).
        batch: sequences of the full context that have to be in memory at once; at most max_seqs.
        quant: of the linears' weights.
        kv_dtype: of the KV cache.
        memory_fraction: of the GPU's memory that vLLM may use (gpu_memory_utilization).
        pattern: that SlideSparse holds the weights in; DENSE without it.
        tp: tensor-parallel size.
        batched_tokens: most tokens of one step (max_num_batched_tokens).
        eager: whether compiling and CUDA graphs are off.

    Raises:
        UsageError: values that cannot be, or not together, with the remedy.
    """

    spec: ModelSpec
    gpu: GpuSpec
    max_seqs: int
    context: int
    batch: int
    quant: Quant = Quant.NONE
    kv_dtype: KvDtype = KvDtype.BF16
    memory_fraction: float = 0.9
    pattern: Pattern = DENSE
    tp: int = 1
    batched_tokens: int = LARGE_BATCH
    eager: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for problem in _problems(self):
            raise UsageError(problem)
        self.spec.linears(self.tp)  # Refuses a tensor-parallel size that divides nothing.


def default_batched_tokens(gpu: GpuSpec, most: int = LARGE_BATCH) -> int:
    """max_num_batched_tokens that vLLM's server chooses on a GPU.

    Args:
        gpu: on which it runs.
        most: tokens of all sequences together; vLLM takes no more than there can be.
    """
    large = gpu.memory_gib >= LARGE_GIB and not gpu.key.startswith("a100")
    return min(LARGE_BATCH if large else SMALL_BATCH, most)


def parse_quant(text: str) -> Quant:
    """Read awq, gptq, fp8, int8 or none ("awq_marlin" is awq).

    Raises:
        UsageError: any other text, with the nearest.
    """
    return _parse(text.removesuffix("_marlin"), Quant, "quantisation", text)


def parse_kv_dtype(text: str) -> KvDtype:
    """Read bf16 or fp8.

    Raises:
        UsageError: any other text, with the nearest.
    """
    return _parse(text, KvDtype, "KV-cache dtype", text)


def _parse(text: str, words: type[W], what: str, given: str) -> W:
    known = [word.value for word in words]
    name = text.strip().lower()
    if name in known:
        return words(name)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"unknown {what} {given!r}; {hint}use one of {', '.join(known)}")


def _problems(settings: Settings) -> Iterator[str]:
    counts = {
        "--max-seqs": settings.max_seqs,
        "--context": settings.context,
        "--batch": settings.batch,
        "--tp": settings.tp,
        "--batched-tokens": settings.batched_tokens,
    }
    for option, count in counts.items():
        if count <= 0:
            yield f"{option} {count} is not a positive number"
        if count > MOST:
            yield f"{option} {count} is more than anything holds"
    if settings.batch > settings.max_seqs:
        yield (
            f"--batch {settings.batch} is more than the {settings.max_seqs} sequences that "
            "--max-seqs allows at once; raise --max-seqs or lower --batch"
        )
    if settings.batched_tokens < settings.max_seqs:
        yield (
            f"--batched-tokens {settings.batched_tokens} is less than --max-seqs "
            f"{settings.max_seqs}, which vLLM refuses; raise it or lower --max-seqs"
        )
    if not 0 < settings.memory_fraction <= 1:
        yield (
            f"--memory-fraction {settings.memory_fraction:g} is not a fraction of the memory; "
            "use a number above 0 and at most 1, such as 0.9"
        )
    yield from _unsupported(settings)


def _unsupported(settings: Settings) -> Iterator[str]:
    """What the GPU, or vLLM on it, has not."""
    gpu, quant, pattern = settings.gpu, settings.quant, settings.pattern
    here = f"{gpu.name} has {spell_sm(gpu.sm)}"
    if quant is Quant.FP8 and gpu.sm < AMPERE:
        yield f"--quant fp8 needs {spell_sm(AMPERE)} or newer and {here}; use gptq or none"
    if quant in (Quant.INT8, Quant.AWQ) and gpu.sm < TURING:
        yield f"--quant {quant} needs {spell_sm(TURING)} or newer and {here}; use gptq or none"
    if settings.kv_dtype is KvDtype.FP8 and gpu.sm < AMPERE:
        yield f"--kv-dtype fp8 needs {spell_sm(AMPERE)} or newer and {here}; use bf16"
    if pattern.dense:
        return
    if not gpu.sparse:
        yield f"--pattern {pattern} needs 2:4 tensor cores, which {gpu.name} has not; leave it out"
    if not quant.eight_bit:
        yield (
            f"--pattern {pattern} is for W8A8 weights and --quant is {quant}; use --quant fp8 or "
            "int8, or leave the pattern out"
        )
    if quant is Quant.FP8 and gpu.sm < FP8_SM:
        yield (
            f"--pattern {pattern} in FP8 needs {spell_sm(FP8_SM)} or newer and {here}; use "
            "--quant int8"
        )
