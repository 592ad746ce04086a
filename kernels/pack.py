"""pack24: a 2:4 matrix as its non-zeros and two-bit positions, packed on the GPU.

The layout is the plain one of the PTX manual's sparse matrix instructions: per group of four, two
values in order and four bits of metadata, first position in the low two. cuSPARSELt and CUTLASS
pack for themselves; a kernel that wants the metadata in the order of its threads permutes this.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from slidesparse.errors import KernelError, PatternError
from slidesparse.kernels import reference
from slidesparse.kernels.config import Config
from slidesparse.kernels.launch import QUANTISED, check_rows, launch, runs_triton
from slidesparse.kernels.row import begin, offset

GROUPS = 8
"""Groups of four per metadata word of 32 bits: rows are multiples of this."""

CONFIG = Config(block=1024, warps=4)


@triton.jit(do_not_specialize=["rows"])
def pack24_kernel(
    w_ptr,
    values_ptr,
    metadata_ptr,
    overfull_ptr,
    rows,
    stride_w,
    WORDS: tl.constexpr,
    FP8: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program per BLOCK groups of a row; a group is one 32-bit word."""
    begin(OVERLAP)
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WORDS
    word = tl.load(w_ptr + offset(row, stride_w, True) + column, mask=inside, other=0)
    # The sign of an FP8 zero does not make it a value.
    seen = word & 0x7F7F7F7F if FP8 else word
    n0 = ((seen & 0xFF) != 0).to(tl.int32)
    n1 = (((seen >> 8) & 0xFF) != 0).to(tl.int32)
    n2 = (((seen >> 16) & 0xFF) != 0).to(tl.int32)
    n3 = (((seen >> 24) & 0xFF) != 0).to(tl.int32)
    count = n0 + n1 + n2 + n3
    first = tl.where(n0 != 0, 0, tl.where(n1 != 0, 1, 2))
    last = tl.where(n3 != 0, 3, tl.where(n2 != 0, 2, 1))
    last = tl.where(count < 2, 3, last)
    if tl.max(count, axis=0) > 2:
        tl.atomic_min(overfull_ptr, row)
    low = (word >> (8 * first)) & 0xFF
    high = (word >> (8 * last)) & 0xFF
    pair = (low | (high << 8)).to(tl.int16)
    tl.store(values_ptr + offset(row, WORDS, True) + column, pair, mask=inside)
    even, odd = tl.split(tl.reshape(first | (last << 2), [BLOCK // 2, 2]))
    byte = tl.program_id(1) * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
    target = metadata_ptr + offset(row, WORDS // 2, True) + byte
    tl.store(target, (even | (odd << 4)).to(tl.int8), mask=byte < WORDS // 2)


@torch.library.custom_op("slidesparse::pack24", mutates_args=())
def pack24_op(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`pack24` without its check: values, metadata and the first row that is not 2:4 (or N)."""
    check_rows(w, "w", QUANTISED)
    rows, k = w.shape
    if k % (4 * GROUPS):
        raise KernelError(f"w has {k} columns; pad them to a multiple of {4 * GROUPS}")
    if rows == 1:
        w = w.flatten()[None]  # The stride of a single row means nothing.
    if w.stride(0) % 4 or w.data_ptr() % 4:
        raise KernelError(
            f"w starts {w.data_ptr() % 4} bytes past a multiple of 4 and its rows are "
            f"{w.stride(0)} bytes apart; multiples of 4 are needed"
        )
    values, metadata, overfull = _empty(w)
    overfull.fill_(rows)
    if rows == 0:
        return values, metadata, overfull
    if not runs_triton(w):
        made = reference.pack24(w)
        values.view(torch.uint8).copy_(made[0].view(torch.uint8))
        metadata.copy_(made[1])
        full = (reference.occupied(w) > 2).any(dim=1)
        if bool(full.any()):
            overfull.fill_(int(full.int().argmax()))
        return values, metadata, overfull
    launch(
        pack24_kernel,
        w,
        CONFIG,
        (rows, -(-k // 4 // CONFIG.block)),
        w.view(torch.int32),
        values.view(torch.int16),
        metadata.view(torch.int8),
        overfull,
        rows,
        w.stride(0) // 4,
        WORDS=k // 4,
        FP8=w.dtype is torch.float8_e4m3fn,
        BLOCK=CONFIG.block,
    )
    return values, metadata, overfull


@pack24_op.register_fake
def _(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _empty(w)


def _empty(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, k = w.shape
    values = torch.empty((rows, k // 2), dtype=w.dtype, device=w.device)
    metadata = torch.empty((rows, k // 8), dtype=torch.uint8, device=w.device)
    return values, metadata, torch.empty((), dtype=torch.int32, device=w.device)


def pack24(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compress a 2:4 matrix. Waits for the GPU to say that it is one: not for the hot path.

    A group with fewer than two non-zeros keeps zeros of its last positions. Source of the layout:
    the PTX manual, "Sparse matrix storage" of mma.sp.

    Args:
        w: [N, K] float8_e4m3fn or int8, K a multiple of 32, at most two non-zeros in every group of
            four; rows may be strided by a multiple of 4.

    Returns:
        values: [N, K/2] of the dtype of w; metadata: [N, K/8] uint8, four bits per group.

    Raises:
        KernelError: shape, dtype or layout do not fit.
        PatternError: a group holds more than two non-zeros; names the first row.
    """
    values, metadata, overfull = pack24_op(w)
    row = int(overfull)
    if row < w.shape[0]:
        raise PatternError(
            f"row {row} has more than two non-zeros in a group of four; slide it first"
        )
    return values, metadata
