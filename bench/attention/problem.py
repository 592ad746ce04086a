"""One attention: its sizes, and the least work that any algorithm for it has to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from slidesparse.bench.fields import Positive
from slidesparse.errors import ProblemError
from slidesparse.problem import DType

DTYPES = (DType.BF16, DType.FP16)
"""Of queries, keys, values and the output. Scores, exponentials and sums are float32."""


@dataclass(frozen=True)
class AttentionProblem:
    """softmax(Q K^T / sqrt(D)) V of every head of a batch.

    Args:
        batch: B, sequences.
        heads: H, of the queries.
        kv_heads: of keys and values; a divisor of H, fewer than H with grouped queries.
        seq: S, tokens of each sequence, as many queries as keys.
        head_dim: D, elements of each query, key and value.
        causal: whether query i sees keys 0 to i only.
        dtype: BF16 or FP16.

    Raises:
        ProblemError: `heads` is no multiple of `kv_heads`, or the dtype is another one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    batch: Positive
    heads: Positive
    kv_heads: Positive
    seq: Positive
    head_dim: Positive
    causal: bool
    dtype: DType

    def __post_init__(self) -> None:
        """Refuse sizes that no attention has."""
        if self.heads % self.kv_heads:
            raise ProblemError(
                f"{self.heads} heads cannot share {self.kv_heads} K/V heads evenly; use a number "
                f"of K/V heads that divides {self.heads}"
            )
        if self.dtype not in DTYPES:
            raise ProblemError(f"attention runs in bf16 or fp16, not in {self.dtype}")

    @property
    def grouped(self) -> bool:
        """Whether several query heads share a head of keys and values."""
        return self.kv_heads < self.heads

    @property
    def scores(self) -> int:
        """Pairs of a query and a key that it sees: B H S^2, causal B H S (S + 1) / 2."""
        pairs = self.seq * (self.seq + 1) // 2 if self.causal else self.seq * self.seq
        return self.batch * self.heads * pairs

    @property
    def flops(self) -> int:
        """Floating-point operations of both products: 4 D per score.

        Q K^T and P V take D multiplications and D additions per score each; the softmax is not
        counted. It is the count of FlashAttention-2 (arXiv 2307.08691, section 4.1), save that
        a causal mask leaves exactly S (S + 1) / 2 scores of a head and that paper halves S^2.
        """
        return 4 * self.head_dim * self.scores

    @property
    def bytes(self) -> int:
        """Compulsory traffic: Q, K and V read once and O written once; K and V of `kv_heads`."""
        rows = 2 * self.batch * self.seq * (self.heads + self.kv_heads)
        return rows * self.head_dim * self.dtype.bytes

    def per_head(self, total: float) -> float:
        """Of a time for everything, the part of a head: total / H. The batch is inside."""
        return total / self.heads

    def per_batch_head(self, total: float) -> float:
        """Of a time for everything, the part of a head of one sequence: total / (B H)."""
        return total / (self.batch * self.heads)

    def tflops(self, total_us: float) -> float:
        """TFLOP/s (1e12) if everything takes so many microseconds."""
        return self.flops / total_us / 1e6

    def gbs(self, total_us: float) -> float:
        """GB/s (1e9) of compulsory bytes if everything takes so many microseconds."""
        return self.bytes / total_us / 1e3

    @property
    def mask(self) -> str:
        """In a word: "causal" or "full"."""
        return "causal" if self.causal else "full"

    def __str__(self) -> str:
        """The sizes on one line."""
        grouped = f" KV={self.kv_heads}" if self.grouped else ""
        return (
            f"B={self.batch} H={self.heads}{grouped} S={self.seq} D={self.head_dim} {self.dtype} "
            f"{self.mask}"
        )
