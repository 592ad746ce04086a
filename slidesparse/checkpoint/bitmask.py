"""Weights of which only the stored values and a bitmask lie on disk, made dense.

The form is compressed-tensors' sparse-24-bitmask and sparse-bitmask; `formats` says what the three
tensors of a weight hold. `unpack_bitmask` takes one weight, `dense_weights` a stream of tensors in
which the parts of a weight come in any order and from any file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from slidesparse.checkpoint.formats import BITMASK, COMPRESSED, SHAPE, WEIGHT
from slidesparse.errors import CheckpointError

if TYPE_CHECKING:
    import torch

PARTS = (COMPRESSED, BITMASK, SHAPE)
"""The tensors that stand for one weight."""

ELEMENTS_AT_ONCE = 1 << 24
"""How much of a weight is unpacked at once: the indices of a step take eight bytes an element."""

MOST_WAITING_BYTES = 16 << 30
"""Parts of weights that a stream may hold back. Writers put the parts of a weight side by side, so
that one weight waits; a reader that goes by dtype holds one file's values."""


def unpack_bitmask(
    linear: str,
    compressed: torch.Tensor,
    bitmask: torch.Tensor,
    shape: torch.Tensor,
    *,
    two_four: bool = False,
) -> torch.Tensor:
    """The [N, K] matrix that stored values and their bitmask stand for, zeros elsewhere.

    Args:
        linear: its name, for messages.
        compressed: values row by row, of any shape and dtype.
        bitmask: [N, ceil(K / 8)] uint8, least significant bit first.
        shape: N and K, of any integer dtype.
        two_four: require the 2:4 form: `compressed` [N, K / 2] and two bits for each four columns.

    Returns:
        [N, K] of the dtype of `compressed` and on its device.

    Raises:
        CheckpointError: the three do not fit together, or are not in 2:4 form.
    """
    import torch

    rows, k = _sizes(linear, shape)
    if tuple(bitmask.shape) != (rows, -(-k // 8)) or bitmask.dtype is not torch.uint8:
        raise CheckpointError(
            f"{linear}.bitmask is {list(bitmask.shape)} {bitmask.dtype} for a weight {[rows, k]}; "
            f"expected [{rows}, {-(-k // 8)}] uint8"
        )
    if k % 8 and bool((bitmask[:, -1] >> (k % 8)).any()):
        raise CheckpointError(f"{linear}.bitmask sets bits past column {k - 1}")
    bits = bitmask.to(compressed.device)
    nibbles = _bits_in_nibbles(bits)
    if two_four:
        _require_two_four(linear, compressed, nibbles, (rows, k))
    counts = nibbles.sum(dim=1)
    marked = int(counts.sum())
    if marked != compressed.numel():
        raise CheckpointError(
            f"{linear}.bitmask marks {marked} weights and {linear}.compressed holds "
            f"{compressed.numel()}"
        )
    return _scatter(compressed, bits, counts, k)


def dense_weights(
    weights: Iterable[tuple[str, torch.Tensor]],
    *,
    device: torch.device | None = None,
    most_bytes: int = MOST_WAITING_BYTES,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a sparse-24-bitmask checkpoint with each 2:4 weight unpacked.

    `X.compressed`, `X.bitmask` and `X.shape` become `X.weight` as soon as the last of them has
    come; every other tensor passes through untouched, in its place. Parts that wait are held in
    host memory, since readers that yield tensors on a GPU reuse their buffers.

    Args:
        weights: names and tensors, as they are read.
        device: where weights are unpacked and handed over; None: the host, except for values that
            come last and from elsewhere.
        most_bytes: of waiting parts, in bytes.

    Raises:
        CheckpointError: a weight's parts do not fit together, come twice, or are not all there at
            the end; or more than `most_bytes` wait.
    """
    waiting: dict[str, dict[str, torch.Tensor]] = {}
    held = 0
    for name, tensor in weights:
        part = next((part for part in PARTS if name.endswith(part)), None)
        if part is None:
            yield name, tensor
            continue
        linear = name.removesuffix(part)
        parts = waiting.setdefault(linear, {})
        if part in parts:
            raise CheckpointError(f"{name} is stored twice")
        if len(parts) + 1 < len(PARTS):
            parts[part] = tensor.cpu()
            held += _bytes(tensor)
            if held > most_bytes:
                raise CheckpointError(_too_far_apart(waiting, held, most_bytes))
            continue
        held -= sum(map(_bytes, parts.values()))
        del waiting[linear]
        yield linear + WEIGHT, _joined(linear, parts | {part: tensor}, device)
    if waiting:
        raise CheckpointError(_incomplete(waiting))


def _joined(
    linear: str, parts: dict[str, torch.Tensor], device: torch.device | None
) -> torch.Tensor:
    """A 2:4 weight out of its three parts."""
    import torch

    compressed, bitmask, shape = (parts[part] for part in PARTS)
    known = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.int8)
    if compressed.dtype not in known:
        raise CheckpointError(
            f"{linear}.compressed is {compressed.dtype}; 2:4 weights are read in "
            f"{', '.join(str(dtype).removeprefix('torch.') for dtype in known)}"
        )
    if device is not None:
        compressed = compressed.to(device)
    return unpack_bitmask(linear, compressed, bitmask, shape, two_four=True)


def _sizes(linear: str, shape: torch.Tensor) -> tuple[int, int]:
    sizes = [int(size) for size in shape.flatten().tolist()]
    if len(sizes) != 2 or min(sizes) <= 0:
        raise CheckpointError(f"{linear}.shape is {sizes}; a linear's weight has two sizes")
    return sizes[0], sizes[1]


def _bits_in_nibbles(bitmask: torch.Tensor) -> torch.Tensor:
    """[N, 2 * ceil(K / 8)] uint8: how many of each four columns are stored."""
    import torch

    pairs = bitmask - ((bitmask >> 1) & 0x55)
    nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return torch.stack((nibbles & 0x0F, nibbles >> 4), dim=2).flatten(1)


def _require_two_four(
    linear: str, compressed: torch.Tensor, nibbles: torch.Tensor, sizes: tuple[int, int]
) -> None:
    """Refuse what is not in 2:4 form; `nibbles` as from `_bits_in_nibbles`."""
    rows, k = sizes
    if k % 4:
        raise CheckpointError(f"{linear} is [{rows}, {k}]; K of a 2:4 weight is a multiple of 4")
    wrong = nibbles[:, : k // 4] != 2
    if bool(wrong.any()):
        row, group = (int(index) for index in wrong.nonzero()[0])
        count, first = int(nibbles[row, group]), 4 * group
        raise CheckpointError(
            f"{linear}.bitmask is not 2:4: it marks {count} of columns {first} to {first + 3} of "
            f"row {row}, where 2 are stored; {int(wrong.sum())} of {wrong.numel()} groups are wrong"
        )
    if tuple(compressed.shape) != (rows, k // 2):
        raise CheckpointError(
            f"{linear}.compressed is {list(compressed.shape)} for a 2:4 weight [{rows}, {k}]; "
            f"expected [{rows}, {k // 2}]"
        )


def _scatter(
    compressed: torch.Tensor, bitmask: torch.Tensor, counts: torch.Tensor, k: int
) -> torch.Tensor:
    """[N, K]: values put where their bits are, some rows at a time."""
    import torch

    # Masked operations do not know FP8; its bytes do as well.
    values = compressed.reshape(-1)
    raw = values.view(torch.uint8) if values.element_size() == 1 else values
    rows = bitmask.shape[0]
    step = max(1, ELEMENTS_AT_ONCE // k)
    starts = [*range(0, rows, step), rows]
    before = torch.nn.functional.pad(counts.cumsum(0), (1, 0))[starts].tolist()
    bits = torch.arange(8, dtype=torch.uint8, device=bitmask.device)
    dense = torch.zeros((rows, k), dtype=raw.dtype, device=raw.device)
    for (first, last), (start, stop) in zip(pairwise(starts), pairwise(before), strict=True):
        mask = ((bitmask[first:last, :, None] >> bits) & 1).flatten(1)[:, :k].bool()
        dense[first:last].masked_scatter_(mask, raw[start:stop])
    return dense.view(compressed.dtype)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _lacks(linear: str, parts: Iterable[str]) -> str:
    there = set(parts)
    return f"{linear} lacks {' and '.join(linear + part for part in PARTS if part not in there)}"


def _incomplete(waiting: dict[str, dict[str, torch.Tensor]]) -> str:
    linear = min(waiting)
    others = f" and {len(waiting) - 1} more weights lack parts" if len(waiting) > 1 else ""
    return f"{_lacks(linear, waiting[linear])}{others}; the checkpoint is incomplete"


def _too_far_apart(waiting: dict[str, dict[str, torch.Tensor]], held: int, most: int) -> str:
    linear = next(iter(waiting))
    return (
        f"{len(waiting)} weights with {held} bytes wait for parts that come later, more than "
        f"{most}; {_lacks(linear, waiting[linear])} so far: store the parts of a weight together"
    )
