"""Whether an attention is right: sampled heads against torch's math backend in float32.

The math backend holds all scores of a head, S^2 of them, so that large problems are checked on a
sample of (batch, head) pairs, whole ones, and everywhere for values that nobody wrote. How far a
result may be off follows the oracle of quack (Dao-AILab): at most twice as far as plain torch is
that does the same in the same dtype, scores and probabilities rounded to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from slidesparse.bench.attention.problem import AttentionProblem
from slidesparse.tensors import TORCH_DTYPES

MOST_PAIRS = 8
"""Pairs of a sequence and a head that are checked; the first and the last are among them."""

MOST_SCORES = 2**25
"""Scores that a check holds at once; longer sequences take several steps, by rows of queries."""

MOST_OFF = 2.0
"""The error may be so many times that of plain torch."""


@dataclass(frozen=True)
class Operands:
    """One set of operands; each backend has them in the layout that it documents.

    Args:
        q: [B, H, S, D].
        k: [B, KV, S, D].
        v: [B, KV, S, D].
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


@dataclass(frozen=True)
class Errors:
    """How far a result is off, in the worst row that was checked.

    The error of a row is its largest absolute error over the root mean square of its reference:
    rows that average thousands of values are small, and an absolute error would hide in the others.

    Args:
        error: of the result.
        plain: of plain torch in the same dtype.
        allowed: MOST_OFF times `plain`, and a rounding of the dtype.
    """

    error: float
    plain: float
    allowed: float

    @property
    def failure(self) -> str | None:
        """Why the result is wrong, or None."""
        if self.error <= self.allowed:
            return None
        return (
            f"wrong result: a row is off by {self.error:.2e} of its root mean square, plain torch "
            f"by {self.plain:.2e}, and {self.allowed:.2e} is allowed"
        )


class Checker:
    """References of one problem for one set of operands.

    Args:
        problem: that is computed.
        operands: in torch's layout.
        seed: of the choice of pairs.

    Attributes:
        pairs: (batch, head) that are checked.
    """

    def __init__(self, problem: AttentionProblem, operands: Operands, seed: int) -> None:
        """Choose the pairs, and compute their references and plain torch's error."""
        self._problem = problem
        self.pairs = sampled_pairs(problem, seed)
        self._wanted: list[torch.Tensor] = []
        self._plain = 0.0
        for q, k, v in (_one(problem, operands, pair) for pair in self.pairs):
            wanted = torch.cat(list(_reference(problem, q, k, v)))
            plain = torch.cat(list(_plain(problem, q, k, v)))
            self._plain = max(self._plain, row_error(plain, wanted))
            self._wanted.append(wanted)

    def check(self, out: torch.Tensor) -> Errors | str:
        """How far a result is off, or what else is wrong with it.

        Args:
            out: [B, H, S, D], strides as they come.
        """
        it = self._problem
        shape = (it.batch, it.heads, it.seq, it.head_dim)
        if tuple(out.shape) != shape or out.dtype is not TORCH_DTYPES[it.dtype]:
            return f"wrong result: {out.dtype} {tuple(out.shape)} instead of {it.dtype} {shape}"
        lost = sum(int(out[b].numel() - out[b].isfinite().sum()) for b in range(it.batch))
        if lost:
            return f"wrong result: {lost} of {out.numel()} elements are not finite or not written"
        found = max(
            row_error(out[pair], wanted)
            for pair, wanted in zip(self.pairs, self._wanted, strict=True)
        )
        rounding = torch.finfo(out.dtype).eps
        return Errors(found, self._plain, MOST_OFF * self._plain + rounding)


def sampled_pairs(problem: AttentionProblem, seed: int) -> list[tuple[int, int]]:
    """All (batch, head) pairs if there are few, else the first, the last and drawn ones."""
    every = problem.batch * problem.heads
    if every <= MOST_PAIRS:
        chosen = list(range(every))
    else:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(every - 2, generator=generator)[: MOST_PAIRS - 2] + 1
        chosen = [0, *sorted(int(index) for index in drawn), every - 1]
    return [divmod(index, problem.heads) for index in chosen]


def row_error(out: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest absolute error of a row over the root mean square of its reference; the worst.

    Args:
        out: [S, D].
        wanted: [S, D] float32.
    """
    off = (out.float() - wanted).abs().amax(dim=1)
    size = wanted.square().mean(dim=1).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return float((off / size).amax())


def _one(
    problem: AttentionProblem, operands: Operands, pair: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, head = pair
    shared = head // (problem.heads // problem.kv_heads)
    return operands.q[batch, head], operands.k[batch, shared], operands.v[batch, shared]


def _steps(problem: AttentionProblem) -> Iterator[slice]:
    rows = max(1, MOST_SCORES // problem.seq)
    for start in range(0, problem.seq, rows):
        yield slice(start, min(start + rows, problem.seq))


def _seen(problem: AttentionProblem, rows: slice, device: torch.device) -> torch.Tensor | None:
    """[rows, S] bool: which keys each of these queries sees; None if all of them."""
    if not problem.causal:
        return None
    keys = torch.arange(problem.seq, device=device)
    return keys[None, :] <= keys[rows, None]


def _reference(
    problem: AttentionProblem, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Rows of one head [S, D] in float32, by the math backend."""
    keys, values = k.float()[None, None], v.float()[None, None]
    with _exact_float32(), sdpa_kernel([SDPBackend.MATH]):
        for rows in _steps(problem):
            queries = q[rows].float()[None, None]
            mask = _seen(problem, rows, q.device)
            yield scaled_dot_product_attention(queries, keys, values, attn_mask=mask)[0, 0]


def _plain(
    problem: AttentionProblem, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> Iterator[torch.Tensor]:
    """The same as three operations in the operands' own dtype."""
    for rows in _steps(problem):
        scores = q[rows] @ k.t() * problem.head_dim**-0.5
        mask = _seen(problem, rows, q.device)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        yield scores.softmax(dim=1) @ v


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Products of float32 in float32, never in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
