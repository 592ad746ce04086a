"""The sliding-window decomposition of weights and the matching lift of activations.

A row that satisfies (2N-2):2N becomes a 2:4 row of width K' (see slidesparse.pattern): each
non-zero goes to one window so that no window holds more than two, and
slide(W) @ lift(x) == W @ x exactly.
Source of the method: arXiv 2603.05232.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from slidesparse.errors import PatternError
from slidesparse.pattern import DENSE, SMALLEST_BLOCK, STRIDE, WINDOW, Pattern

if TYPE_CHECKING:
    import torch

LARGEST_BLOCK = 18
"""The sparsity of longer blocks, 1/N, is too small to gain anything from."""

_BYTE_DTYPES = ("torch.float8_e4m3fn", "torch.int8", "torch.uint8")
_CHUNK_BYTES = 2**28
"""Rows are worked on in chunks so that what is held beside input and output stays below this."""


def prune_magnitude(w: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Zero the two smallest magnitudes of every block of 2N weights.

    Args:
        w: [N, K] floating point. A last, shorter block counts as padded with zeros.
        pattern: any of the family; dense returns `w` itself.

    Returns:
        [N, K], a new tensor that satisfies `pattern`.
    """
    return w if pattern.dense else w.masked_fill(dropped(w.abs(), pattern), 0)


def dropped(scores: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Mark the two lowest scores of every block of 2N; of equal scores the leftmost.

    Args:
        scores: [N, K] floating point, not negative, no NaN. A last, shorter block counts as padded
            with weights that are dropped first.
        pattern: any of the family; dense drops nothing.

    Returns:
        [N, K] bool, True where the weight is to become zero.
    """
    import torch

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


def slide(w: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Decompose a pruned weight into the 2:4 matrix that sparse tensor cores run.

    Greedy, left to right: a window takes what is left of its first pair, then as much of the pair
    that it shares with the next window as it can hold.

    Args:
        w: [N, K] float8_e4m3fn, int8, or any floating dtype; every 2N block of a row holds at most
            2N-2 non-zeros.
        pattern: that `w` satisfies; dense returns `w` itself.

    Returns:
        [N, K'] of the same dtype, K' = pattern.expanded_k(K), every group of four holding at most
        two non-zeros. A negative zero becomes a positive one.

    Raises:
        PatternError: a block holds too many non-zeros; the message names the first row and block.
            Or `w` is no matrix.
    """
    import torch

    rows, k = _matrix(w, "a weight [N, K]")
    if pattern.dense:
        return w
    bits = _bits(w)
    out = torch.empty((rows, pattern.expanded_k(k)), dtype=bits.dtype, device=w.device)
    width = pattern.blocks(k) * pattern.windows * WINDOW
    out[:, width:] = 0
    shape = (-1, pattern.blocks(k), pattern.windows, WINDOW)
    for span in _chunks(rows, pattern.padded_k(k), bits.element_size()):
        values = _by_block(bits[span], pattern)
        over = _slide_rows(values, w.dtype, out[span, :width].view(shape))
        if bool(over.any()):
            _refuse(values, w.dtype, over, span.start, pattern)
    return out.view(w.dtype)


def unslide(slid: torch.Tensor, pattern: Pattern, k: int) -> torch.Tensor:
    """Put a slid weight together again: the inverse of `slide`.

    Any assignment of non-zeros to windows will do, not only the one that `slide` chooses.

    Args:
        slid: [N, K'] of a dtype that `slide` takes.
        pattern: that it was slid by; dense returns `slid` itself.
        k: columns of the original weight.

    Returns:
        [N, K] of the same dtype, zeros positive.

    Raises:
        PatternError: `slid` cannot come from `slide`: it has another width, a weight in a place of
            padding, one weight in two windows, or three weights in one window. The message names
            the first row, and the column or block.
    """
    import torch

    _matrix(slid, "a slid weight [N, K']")
    if slid.shape[1] != pattern.expanded_k(k):
        raise PatternError(
            f"a slid weight of {slid.shape[1]} columns does not come from K={k} and pattern "
            f"{pattern}, which give {pattern.expanded_k(k)}; pass the K and pattern it was made of"
        )
    if pattern.dense:
        return slid
    bits = _bits(slid)
    out = torch.empty((slid.shape[0], k), dtype=bits.dtype, device=slid.device)
    width = pattern.blocks(k) * pattern.windows * WINDOW
    shape = (-1, pattern.blocks(k), pattern.windows, WINDOW)
    for span in _chunks(slid.shape[0], width, bits.element_size()):
        windows = bits[span, :width].view(shape)
        whole, twice = _unslide_rows(windows, slid.dtype)
        flat = whole.flatten(1)
        stray = _nonzero(torch.cat([bits[span, width:], flat[:, k:]], dim=1), slid.dtype)
        if bool(twice.any()) or bool(stray.any()):
            _refuse_slid(twice, stray, span.start, pattern)
        out[span] = flat[:, :k]
        del whole, flat, twice, stray  # Or they would be held beside those of the next rows.
    return out.view(slid.dtype)


def detect_pattern(w: torch.Tensor, largest_block: int = LARGEST_BLOCK) -> Pattern:
    """Find the sparsest pattern of the family that a weight satisfies.

    Args:
        w: [N, K] float8_e4m3fn, int8, or any floating dtype; negative zeros count as zeros, and a
            last, shorter block as padded with zeros.
        largest_block: 2N of the least sparse pattern that is tried.

    Returns:
        The first of 2:4, 4:6, ..., up to `largest_block` that holds in every block of every row;
        DENSE if none does.
    """
    rows, k = _matrix(w, "a weight [N, K]")
    bits = _bits(w)
    left = [Pattern(block - 2, block) for block in range(SMALLEST_BLOCK, largest_block + 1, 2)]
    for span in _chunks(rows, k + largest_block, bits.element_size()):
        used = _nonzero(bits[span], w.dtype)
        left = [pattern for pattern in left if not bool(_overfull(used, pattern).any())]
        if not left:
            break
    return left[0] if left else DENSE


def lift(x: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Lay activations out so that they meet the slid weight: the plain gather, for reference.

    Args:
        x: [M, K] of any dtype.
        pattern: of the weight; dense returns `x` itself.

    Returns:
        [M, K'] of the same dtype, padding positions zero.
    """
    import torch

    m, k = _matrix(x, "activations [M, K]")
    if pattern.dense:
        return x
    bits = _bits(x)
    index = torch.tensor(pattern.lift_index(k), device=x.device)
    padded = torch.cat([bits, torch.zeros((m, 1), dtype=bits.dtype, device=x.device)], dim=1)
    lifted = padded.index_select(1, torch.where(index < 0, k, index))
    return lifted.view(x.dtype)


def _matrix(tensor: torch.Tensor, name: str) -> tuple[int, int]:
    if tensor.ndim != 2:
        raise PatternError(f"{name} has two dimensions, and this tensor is {list(tensor.shape)}")
    rows, columns = tensor.shape
    return rows, columns


def _bits(w: torch.Tensor) -> torch.Tensor:
    """Values that every operation of torch takes: bytes where the dtype is one byte wide."""
    import torch

    return w.view(torch.uint8) if str(w.dtype) in _BYTE_DTYPES else w


def _nonzero(bits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Where a weight of `dtype` is not zero; 0x80 is a negative zero in FP8, -128 in INT8."""
    import torch

    return (bits & 0x7F if dtype == torch.float8_e4m3fn else bits) != 0


def _chunks(rows: int, width: int, itemsize: int) -> Iterator[slice]:
    """Rows in spans whose temporaries (a copy, flags, planes of a window) fit _CHUNK_BYTES.

    With 2:4, which has one window, each of a dozen planes is a quarter of the width.
    """
    step = max(1, _CHUNK_BYTES // (width * (2 * itemsize + 4)))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def _by_block(bits: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """[R, K] as [R, blocks, 2N], the last block padded with zeros; a view where none is needed."""
    import torch

    rows, k = bits.shape
    pad = pattern.padded_k(k) - k
    padded = torch.nn.functional.pad(bits, (0, pad)) if pad else bits
    return padded.view(rows, pattern.blocks(k), pattern.block)


def _slide_rows(values: torch.Tensor, dtype: torch.dtype, out: torch.Tensor) -> torch.Tensor:
    """Fill `out` [R, blocks, windows, 4] from `values` [R, blocks, 2N].

    The greedy has two flags of state per block: which weights of the pair that a window shares
    with its left neighbour are still without a window. Each plane is an elementwise operation.

    Returns:
        [R, blocks] bool, where non-zeros are left over: exactly where there are more than 2N-2.
    """
    first, second = (_nonzero(values[:, :, place], dtype) for place in range(2))
    for window in range(out.shape[2]):
        start = STRIDE * window
        third, fourth = (_nonzero(values[:, :, start + place], dtype) for place in (2, 3))
        # The window holds two: the third weight fits unless the first pair fills it, the fourth
        # fits unless two of the other three do.
        full, some = first & second, first | second
        takes_third = third & ~full
        takes_fourth = fourth & ~(full | (some & third))
        for place, taken in enumerate((first, second, takes_third, takes_fourth)):
            # Not a product with the mask: an infinite weight times zero is NaN.
            out[:, :, window, place] = values[:, :, start + place].masked_fill(~taken, 0)
        first, second = third & ~takes_third, fourth & ~takes_fourth
    return first | second


def _unslide_rows(windows: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Join `windows` [R, blocks, windows, 4] to [R, blocks, 2N].

    Returns:
        The weights, and where [R, blocks] a weight sits in two windows or a window holds three.
    """
    import torch

    rows, blocks, count, _ = windows.shape
    whole = torch.zeros(
        (rows, blocks, STRIDE * count + 2), dtype=windows.dtype, device=windows.device
    )
    wrong = torch.zeros((rows, blocks), dtype=torch.bool, device=windows.device)
    before = [wrong, wrong]
    for window in range(count):
        used = [_nonzero(windows[:, :, window, place], dtype) for place in range(WINDOW)]
        first, second, third, fourth = used
        some = first | second
        wrong = wrong | (before[0] & first) | (before[1] & second)
        wrong = wrong | (first & second & (third | fourth)) | (some & third & fourth)
        for place, taken in enumerate(used):
            column = whole[:, :, STRIDE * window + place]
            column.copy_(torch.where(taken, windows[:, :, window, place], column))
        before = [third, fourth]
    return whole, wrong


def _overfull(used: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Where [R, blocks] a block of the flags [R, K] has more non-zeros than the pattern allows."""
    import torch

    blocks = _by_block(used.view(torch.uint8), pattern)
    count = blocks[:, :, 0].to(torch.int16)
    for place in range(1, pattern.block):
        count += blocks[:, :, place]
    return count > pattern.nonzeros


def _refuse(
    values: torch.Tensor, dtype: torch.dtype, over: torch.Tensor, start: int, pattern: Pattern
) -> None:
    row, block = (int(place) for place in over.nonzero()[0])
    raise PatternError(
        f"row {start + row}, block {block} (columns {block * pattern.block} to "
        f"{(block + 1) * pattern.block - 1}) holds {int(_nonzero(values[row, block], dtype).sum())}"
        f" non-zeros, pattern {pattern} allows {pattern.nonzeros}; prune the weight first"
    )


def _refuse_slid(twice: torch.Tensor, stray: torch.Tensor, start: int, pattern: Pattern) -> None:
    remedy = "it was not made by slide, or with another K or pattern"
    if bool(twice.any()):
        row, block = (int(place) for place in twice.nonzero()[0])
        span = pattern.windows * WINDOW
        raise PatternError(
            f"row {start + row}, block {block} (columns {block * span} to "
            f"{(block + 1) * span - 1}) of the slid weight has a weight in two windows or three "
            f"in one, which pattern {pattern} never gives; {remedy}"
        )
    row = int(stray.any(dim=1).nonzero()[0])
    raise PatternError(
        f"row {start + row} of the slid weight has {int(stray[row].sum())} non-zeros in places "
        f"of padding for pattern {pattern}; {remedy}"
    )
