"""The compressed weight of the native kernel: blocks that are shared memory's image, one by one.

A weight [N, K'] is cut into slabs of 64 channels and blocks of 64 columns, padded with zeros. Block
(s, b) holds channels 64 s ... 64 s + 63 and columns 64 b ... 64 b + 63 in 2560 bytes, at byte
2560 (s B + b) of the packed tensor, B blocks a slab:

* bytes 0 ... 2047, values. A group of four columns keeps two. Kept value v = 0 ... 31 of channel
  r = 0 ... 63 lies at byte 256 (r / 8) + 128 (v / 16) + 16 (r % 8) + v % 16: core matrices of eight
  rows by 16 bytes, as the tensor cores read operand A without a swizzle.
* bytes 2048 ... 2559, metadata: 128 little-endian words, word t for thread t of the warpgroup. Its
  bits 4 j ... 4 j + 3 are those of group 8 (t % 4 / 2) + j of channel
  16 (t / 32) + 8 (t % 2) + t % 32 / 4: the position of the first kept value in the low two bits,
  that of the second in the high two; the first is always smaller.

Divisions drop the rest. Source: the PTX ISA, "Shared memory matrix layout" and "Sparse matrix
storage" of wgmma.mma_async.sp; the order of the metadata words was read off an H200, one group at a
time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from slidesparse.errors import KernelError, PatternError
from slidesparse.kernels import reference
from slidesparse.kernels.launch import QUANTISED
from slidesparse.kernels.pack import pack24_op

SLAB = 64
"""Channels of a block: the rows that one warpgroup multiplies."""

BLOCK = 64
"""Columns of a block, of which 32 are kept: one instruction's K."""

VALUE_BYTES = SLAB * BLOCK // 2
BLOCK_BYTES = VALUE_BYTES + SLAB * BLOCK // 8
BLOCK_ALIGNMENT = 4
"""A slab's blocks are padded to a multiple of this: configurations read whole pairs of stages."""

K_ALIGNMENT = 32
"""K' is a multiple of this: pack24's metadata words, and more than the copy engine's 16 bytes."""

STEP_SLABS = 256
"""Slabs that are packed at a time: the temporaries stay small next to the weight."""


@dataclass(frozen=True)
class PackedWeight:
    """A 2:4 weight in the native kernel's format.

    The kernel fetches `data` ahead of the kernels before it on the stream: whoever writes or copies
    it waits for that to end before the first launch, as `pack` does.

    Args:
        data: [slabs, blocks, 2560] uint8, contiguous.
        n: output channels.
        k: columns K' of the 2:4 matrix.
        dtype: of the values, torch.float8_e4m3fn or torch.int8.

    Raises:
        KernelError: `data` is not what a weight of n, k and dtype is packed into.
    """

    data: torch.Tensor
    n: int
    k: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        """Refuse data that a kernel would read past."""
        if self.dtype not in QUANTISED:
            raise KernelError(f"a packed weight cannot be {self.dtype}; use float8_e4m3fn or int8")
        data, shape = self.data, (-(-self.n // SLAB), stored_blocks(self.k), BLOCK_BYTES)
        if data.dtype is not torch.uint8 or tuple(data.shape) != shape or not data.is_contiguous():
            raise KernelError(
                f"packed data of N={self.n}, K'={self.k} is {data.dtype} {tuple(data.shape)} with "
                f"strides {data.stride()}; contiguous uint8 {list(shape)} is needed"
            )

    @property
    def blocks(self) -> int:
        """Blocks of a slab, padding included."""
        return int(self.data.shape[1])


def pack(w: torch.Tensor) -> PackedWeight:
    """Compress a 2:4 matrix for the native kernel, on the device it is on.

    Waits for the GPU before it returns: the kernel fetches weights ahead of the kernels before it.

    Args:
        w: [N, K'] float8_e4m3fn or int8, K' a multiple of 32, at most two non-zeros in every
            group of four.

    Raises:
        KernelError: shape, dtype or layout do not fit.
        PatternError: a group holds more than two non-zeros; names the first row.
    """
    if w.ndim != 2 or 0 in w.shape:
        raise KernelError(f"w has shape {tuple(w.shape)}; [N, K'] with N, K' >= 1 is needed")
    n, k = w.shape
    slabs = -(-n // SLAB)
    blocks = stored_blocks(k)
    data = torch.empty((slabs, blocks, BLOCK_BYTES), dtype=torch.uint8, device=w.device)
    for start in range(0, slabs, STEP_SLABS):
        stop = min(start + STEP_SLABS, slabs)
        _pack_slabs(w, start, data[start:stop])
    if w.is_cuda:
        torch.cuda.current_stream(w.device).synchronize()
    return PackedWeight(data, n, k, w.dtype)


def stored_blocks(k: int) -> int:
    """Blocks that a slab of a weight with K' = `k` columns is stored in, padding included."""
    return -(-k // (BLOCK * BLOCK_ALIGNMENT)) * BLOCK_ALIGNMENT


def unpack(weight: PackedWeight) -> torch.Tensor:
    """The 2:4 matrix [N, K'] that was packed; the sign of a dropped FP8 zero is lost."""
    slabs, blocks, _ = weight.data.shape
    rows, columns = slabs * SLAB, blocks * BLOCK
    made = torch.empty((rows, columns), dtype=weight.dtype, device=weight.data.device)
    for start in range(0, slabs, STEP_SLABS):
        stop = min(start + STEP_SLABS, slabs)
        part = weight.data[start:stop]
        values = part[..., :VALUE_BYTES].reshape(-1, blocks, 8, 2, 8, 16).permute(0, 2, 4, 1, 3, 5)
        # Of a word: [warp, row of eight, half of the columns, half of the rows, byte].
        words = (
            part[..., VALUE_BYTES:].reshape(-1, blocks, 4, 8, 2, 2, 4).permute(0, 2, 5, 3, 1, 4, 6)
        )
        made[start * SLAB : stop * SLAB] = reference.unpack24(
            values.reshape(-1, columns // 2).view(weight.dtype), words.reshape(-1, columns // 8)
        )
    return made[: weight.n, : weight.k].contiguous()


def _pack_slabs(w: torch.Tensor, start: int, data: torch.Tensor) -> None:
    """Pack [N, K'] from slab `start` on into [slabs, blocks, BLOCK_BYTES]; zeros fill it up."""
    slabs, blocks, _ = data.shape
    part = w[start * SLAB : (start + slabs) * SLAB]
    values, metadata, overfull = pack24_op(part)
    row = int(overfull)
    if row < part.shape[0]:
        row += start * SLAB
        raise PatternError(
            f"row {row} has more than two non-zeros in a group of four; slide it first"
        )
    values = _padded(values.view(torch.uint8), slabs * SLAB, blocks * BLOCK // 2, 0)
    # Any two different positions will do for zeros; equal ones are undefined for the hardware.
    metadata = _padded(metadata, slabs * SLAB, blocks * BLOCK // 8, 0x44)
    data[..., :VALUE_BYTES] = (
        values.view(slabs, 8, 8, blocks, 2, 16).permute(0, 3, 1, 4, 2, 5).reshape(slabs, blocks, -1)
    )
    data[..., VALUE_BYTES:] = (
        metadata.view(slabs, 4, 2, 8, blocks, 2, 4)
        .permute(0, 4, 1, 3, 5, 2, 6)
        .reshape(slabs, blocks, -1)
    )


def _padded(x: torch.Tensor, rows: int, columns: int, fill: int) -> torch.Tensor:
    if x.shape == (rows, columns):
        return x
    made = torch.full((rows, columns), fill, dtype=x.dtype, device=x.device)
    made[: x.shape[0], : x.shape[1]] = x
    return made
