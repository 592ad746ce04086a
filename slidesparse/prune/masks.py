"""Which weights of every block of 2N a pattern drops, given a score for each of them."""

from __future__ import annotations

import torch

from slidesparse.pattern import Pattern


def dropped(scores: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Mark the two lowest scores of every block of 2N; of equal scores the leftmost.

    Args:
        scores: [N, K] floating point, not negative, no NaN. A last, shorter block counts as padded
            with weights that are dropped first.
        pattern: any of the family; dense drops nothing.

    Returns:
        [N, K] bool, True where the weight is to become zero.
    """
    rows, k = scores.shape
    if pattern.dense:
        return torch.zeros((rows, k), dtype=torch.bool, device=scores.device)
    pad = pattern.padded_k(k) - k
    # What was dropped is marked by infinity, which no score may equal.
    finite = scores.clamp(max=torch.finfo(scores.dtype).max)
    left = torch.nn.functional.pad(finite, (0, pad), value=-1.0).reshape(-1, pattern.block)
    mask = torch.zeros(left.shape, dtype=torch.bool, device=scores.device)
    for _ in range(pattern.block - pattern.nonzeros):
        lowest = left.argmin(dim=1, keepdim=True)
        mask.scatter_(1, lowest, True)
        left.scatter_(1, lowest, float("inf"))
    return mask.reshape(rows, k + pad)[:, :k]
