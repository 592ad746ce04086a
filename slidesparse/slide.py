"""The sliding-window decomposition of weights and the matching lift of activations.

A row that satisfies (2N-2):2N becomes a 2:4 row of width K' (see slidesparse.pattern): each
non-zero goes to one window so that no window holds more than two, and
slide(W) @ lift(x) == W @ x exactly.
Source of the method: arXiv 2603.05232.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidesparse.errors import PatternError
from slidesparse.pattern import STRIDE, WINDOW, Pattern

if TYPE_CHECKING:
    import torch

_BYTE_DTYPES = ("torch.float8_e4m3fn", "torch.int8", "torch.uint8")


def prune_magnitude(w: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Zero the two smallest magnitudes of every block of 2N weights.

    Args:
        w: [N, K] floating point. A last, shorter block counts as padded with zeros.
        pattern: any of the family; dense returns `w` itself.

    Returns:
        [N, K], a new tensor that satisfies `pattern`.
    """
    if pattern.dense:
        return w
    import torch

    rows, k = w.shape
    pad = pattern.padded_k(k) - k
    blocks = torch.nn.functional.pad(w, (0, pad)).reshape(-1, pattern.block)
    magnitude = blocks.abs()
    for _ in range(pattern.block - pattern.nonzeros):
        smallest = magnitude.argmin(dim=1, keepdim=True)
        blocks.scatter_(1, smallest, 0)
        magnitude.scatter_(1, smallest, float("inf"))
    return blocks.reshape(rows, k + pad)[:, :k].contiguous()


def slide(w: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Decompose a pruned weight into the 2:4 matrix that sparse tensor cores run.

    Greedy, left to right: a window takes what is left of its first pair, then as much of the pair
    that it shares with the next window as it can hold.

    Args:
        w: [N, K] float8_e4m3fn, int8, or any floating dtype; every 2N block of a row holds at most
            2N-2 non-zeros.
        pattern: that `w` satisfies.

    Returns:
        [N, K'] of the same dtype, K' = pattern.expanded_k(K), every group of four holding at most
        two non-zeros.

    Raises:
        PatternError: a block holds too many non-zeros; the message names the first row and block.
    """
    import torch

    if pattern.dense:
        return w
    rows, k = w.shape
    bits = w.view(torch.uint8) if str(w.dtype) in _BYTE_DTYPES else w
    used = bits & 0x7F if w.dtype == torch.float8_e4m3fn else bits
    pad = pattern.padded_k(k) - k
    shape = (rows, pattern.blocks(k), pattern.block)
    values = torch.nn.functional.pad(bits, (0, pad)).reshape(shape)
    left = torch.nn.functional.pad(used != 0, (0, pad)).reshape(shape)
    _check_blocks(left, pattern)
    out = torch.zeros(
        (rows, pattern.blocks(k), pattern.windows, WINDOW), dtype=bits.dtype, device=w.device
    )
    for window in range(pattern.windows):
        span = slice(STRIDE * window, STRIDE * window + WINDOW)
        here = left[:, :, span]
        taken = here & (here.cumsum(dim=2, dtype=torch.int8) <= 2)
        # Not a product with the mask: an infinite weight times zero is NaN.
        out[:, :, window] = values[:, :, span].masked_fill(~taken, 0)
        left[:, :, span] &= ~taken
    flat = out.reshape(rows, -1)
    flat = torch.nn.functional.pad(flat, (0, pattern.expanded_k(k) - flat.shape[1]))
    return flat.view(w.dtype) if flat.dtype != w.dtype else flat


def lift(x: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Lay activations out so that they meet the slid weight: the plain gather, for reference.

    Args:
        x: [M, K] of any dtype.
        pattern: of the weight; dense returns `x` itself.

    Returns:
        [M, K'] of the same dtype, padding positions zero.
    """
    import torch

    if pattern.dense:
        return x
    m, k = x.shape
    bits = x.view(torch.uint8) if str(x.dtype) in _BYTE_DTYPES else x
    index = torch.tensor(pattern.lift_index(k), device=x.device)
    padded = torch.cat([bits, torch.zeros((m, 1), dtype=bits.dtype, device=x.device)], dim=1)
    lifted = padded.index_select(1, torch.where(index < 0, k, index))
    return lifted.view(x.dtype) if lifted.dtype != x.dtype else lifted


def _check_blocks(nonzero: torch.Tensor, pattern: Pattern) -> None:
    counts = nonzero.sum(dim=2)
    bad = (counts > pattern.nonzeros).nonzero()
    if bad.numel():
        row, block = (int(i) for i in bad[0])
        raise PatternError(
            f"row {row}, block {block} (columns {block * pattern.block} to "
            f"{(block + 1) * pattern.block - 1}) holds {int(counts[row, block])} non-zeros, "
            f"pattern {pattern} allows {pattern.nonzeros}; prune the weight first"
        )
