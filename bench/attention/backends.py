"""Ways to compute an attention: torch's SDPA backends, each forced alone, and FlashAttention 3.

Each takes operands in the layout that it documents, made before anything is timed: torch's
[B, H, S, D], FlashAttention's [B, S, H, D]. With grouped queries K and V keep their fewer heads;
where a backend refuses that, they are expanded to H heads, outside of the timing too, and the row
says so.
"""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from slidesparse.bench.attention.check import Operands
from slidesparse.bench.attention.problem import AttentionProblem

EXPANDED = "K and V expanded to H heads"
GROUPED = "grouped queries as they are"


class Refused(Exception):
    """A backend that does not run a problem here; the text says why, in its own words."""


@dataclass(frozen=True)
class Way:
    """One way of a backend to run a problem.

    Args:
        how: what is special about it, for tables; "" for nothing.
        prepare: operands in torch's layout to the backend's own, in memory of their own where they
            differ.
        run: the output [B, H, S, D], with strides as they come; raises Refused.
    """

    how: str
    prepare: Callable[[Operands], Operands]
    run: Callable[[Operands], torch.Tensor]


class Backend(ABC):
    """One implementation of attention.

    Attributes:
        name: in tables, files and on the command line.
    """

    name: str

    @abstractmethod
    def ways(self, problem: AttentionProblem) -> Iterator[Way]:
        """The ways to try, the best first; the first that runs counts.

        Raises:
            Refused: it is not here or cannot run such problems.
        """

    def scratch(self, problem: AttentionProblem) -> int:
        """Bytes that it needs at least beside operands and output."""
        return 0


class TorchBackend(Backend):
    """A backend of torch.nn.functional.scaled_dot_product_attention, forced by sdpa_kernel.

    Args:
        name: of ours.
        kind: torch's name of it.
        words: with which torch's warnings about it begin, in small letters.
    """

    def __init__(self, name: str, kind: SDPBackend, words: str) -> None:
        """Name it."""
        self.name, self._kind, self._words = name, kind, words

    def ways(self, problem: AttentionProblem) -> Iterator[Way]:
        """See `Backend.ways`; enable_gqa first."""

        def run(it: Operands) -> torch.Tensor:
            return self._call(problem, it)

        yield Way(GROUPED if problem.grouped else "", lambda it: it, run)
        if problem.grouped:
            yield Way(EXPANDED, lambda it: expanded(it, problem), run)

    def scratch(self, problem: AttentionProblem) -> int:
        """See `Backend.scratch`; the math backend holds scores and probabilities in float32."""
        if self._kind is not SDPBackend.MATH:
            return 0
        return 2 * 4 * problem.batch * problem.heads * problem.seq**2

    def _call(self, problem: AttentionProblem, it: Operands) -> torch.Tensor:
        grouped = it.k.shape[1] < it.q.shape[1]
        with warnings.catch_warnings(record=True) as told, sdpa_kernel([self._kind]):
            warnings.simplefilter("always")
            try:
                return scaled_dot_product_attention(
                    it.q, it.k, it.v, is_causal=problem.causal, enable_gqa=grouped
                )
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                text = str(error)
                # Torch's two ways to say that it takes none of the backends that are left.
                if "No available kernel" in text or "No viable backend" in text:
                    messages = [str(each.message) for each in told]
                    raise Refused(why_refused(self._words, messages, text)) from error
                raise


def why_refused(words: str, messages: list[str], text: str) -> str:
    """What torch says against one backend.

    It warns about each backend in turn: one line that names it, then its reasons, of which that
    others are switched off is none.

    Args:
        words: with which the line that names the backend begins.
        messages: of all warnings.
        text: of the error, which counts where no warning is about this backend.
    """
    reasons, ours = [], False
    for message in messages:
        line = re.sub(r"\s*\(Triggered internally at .*", "", message, flags=re.DOTALL).strip()
        if "not used because" in line:
            ours = line.lower().startswith(words)
        elif ours and "runtime disabled" not in line:
            reasons.append(" ".join(line.split()))
    return "; ".join(dict.fromkeys(reasons)) or text.strip().splitlines()[0]


def expanded(it: Operands, problem: AttentionProblem) -> Operands:
    """K and V with H heads, each copied to the query heads that share it."""
    times = problem.heads // problem.kv_heads
    return Operands(
        it.q, it.k.repeat_interleave(times, dim=1), it.v.repeat_interleave(times, dim=1)
    )


class FlashAttention3(Backend):
    """FlashAttention 3 from its own package, `flash_attn_interface` (Dao-AILab, Hopper)."""

    name = "fa3"

    def ways(self, problem: AttentionProblem) -> Iterator[Way]:
        """See `Backend.ways`."""
        try:
            from flash_attn_interface import flash_attn_func
        except ImportError as error:
            raise Refused(f"flash_attn_interface cannot be imported: {error}") from error

        def run(it: Operands) -> torch.Tensor:
            made: Any = flash_attn_func(it.q, it.k, it.v, causal=problem.causal)
            # Its first releases give the log-sum-exp along.
            out: torch.Tensor = made[0] if isinstance(made, tuple) else made
            return out.transpose(1, 2)

        yield Way("flash_attn_interface", tokens_first, run)


class VllmFlashAttention3(Backend):
    """The copy of FlashAttention 3 in vLLM, which takes sequences of any lengths."""

    name = "fa3-vllm"

    def ways(self, problem: AttentionProblem) -> Iterator[Way]:
        """See `Backend.ways`."""
        try:
            from vllm.vllm_flash_attn import flash_attn_varlen_func
            from vllm.vllm_flash_attn.flash_attn_interface import fa_version_unsupported_reason
        except ImportError as error:
            raise Refused(f"vllm.vllm_flash_attn cannot be imported: {error}") from error
        reason = fa_version_unsupported_reason(3)
        if reason:
            raise Refused(str(reason))
        ends = torch.arange(problem.batch + 1, dtype=torch.int32) * problem.seq
        starts: dict[torch.device, torch.Tensor] = {}

        def prepare(it: Operands) -> Operands:
            starts[it.q.device] = ends.to(it.q.device)
            return tokens_first(it)

        def run(it: Operands) -> torch.Tensor:
            begins = starts[it.q.device]
            out = torch.empty_like(it.q)
            flash_attn_varlen_func(
                it.q.flatten(0, 1),
                it.k.flatten(0, 1),
                it.v.flatten(0, 1),
                max_seqlen_q=problem.seq,
                cu_seqlens_q=begins,
                max_seqlen_k=problem.seq,
                cu_seqlens_k=begins,
                causal=problem.causal,
                out=out.flatten(0, 1),
                fa_version=3,
            )
            return out.transpose(1, 2)

        yield Way("vllm.vllm_flash_attn", prepare, run)


def tokens_first(it: Operands) -> Operands:
    """Operands in FlashAttention's layout [B, S, H, D], in memory of their own."""
    return Operands(*(part.transpose(1, 2).contiguous() for part in (it.q, it.k, it.v)))


BACKENDS: tuple[Backend, ...] = (
    TorchBackend("flash", SDPBackend.FLASH_ATTENTION, "flash attention"),
    TorchBackend("cudnn", SDPBackend.CUDNN_ATTENTION, "cudnn attention"),
    TorchBackend("efficient", SDPBackend.EFFICIENT_ATTENTION, "memory efficient"),
    TorchBackend("math", SDPBackend.MATH, "math"),
    FlashAttention3(),
    VllmFlashAttention3(),
)
"""In the order of tables."""


def backends_of(names: tuple[str, ...]) -> tuple[Backend, ...]:
    """The backends that names of the command line mean; "fa3" is every copy of FlashAttention 3."""
    return tuple(it for it in BACKENDS if it.name.partition("-")[0] in names)
