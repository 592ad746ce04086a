"""One safetensors file: its header checked in full, its tensors read one at a time.

The form is eight bytes of header length (little endian), a JSON header that maps names to dtype,
shape and byte range, and the data (https://github.com/huggingface/safetensors#format). The
library's own reader maps whole files, which counts as resident memory while a file is open; this
one reads what is asked for and says of a damaged file what is wrong with it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidesparse.errors import CheckpointError, reason_of

if TYPE_CHECKING:
    import torch

LENGTH_BYTES = 8
MOST_HEADER_BYTES = 100_000_000
"""What the format allows."""

PIECE_BYTES = 16 << 20
"""How much of a tensor is read at once where it is only copied."""

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes per element of the dtypes that are read, by the name that headers use."""

_TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies.

    Args:
        name: as the header spells it.
        dtype: as the header spells it, "BF16".
        shape: elements per dimension.
        start: first byte, from the start of the file.
        bytes: length in bytes.
        path: of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int
    path: Path


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a header's dtype name.

    Raises:
        CheckpointError: SlideSparse does not read this dtype.
    """
    import torch

    if name not in _TORCH_NAMES:
        raise CheckpointError(f"dtype {name} is not one of {', '.join(_TORCH_NAMES)}")
    found = getattr(torch, _TORCH_NAMES[name])
    assert isinstance(found, torch.dtype)
    return found


def header_dtype(dtype: torch.dtype) -> str:
    """The name that a header uses for a torch dtype.

    Raises:
        CheckpointError: safetensors has no name for it that SlideSparse writes.
    """
    spelled = str(dtype).removeprefix("torch.")
    for name, torch_name in _TORCH_NAMES.items():
        if torch_name == spelled:
            return name
    raise CheckpointError(f"a checkpoint cannot hold dtype {dtype}")


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file, after checking that the file is whole.

    Raises:
        CheckpointError: the file cannot be read, is truncated or is damaged; one line that names
            the file and what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(LENGTH_BYTES)
            if len(prefix) < LENGTH_BYTES:
                raise CheckpointError(_damaged(path, f"it has {size} bytes, too few for a header"))
            length = int.from_bytes(prefix, "little")
            if length > MOST_HEADER_BYTES:
                raise CheckpointError(
                    _damaged(path, f"its header claims {length} bytes; it is no safetensors file")
                )
            if LENGTH_BYTES + length > size:
                raise CheckpointError(
                    _damaged(
                        path,
                        f"it is truncated: the header needs {LENGTH_BYTES + length} bytes and the "
                        f"file has {size}",
                    )
                )
            content = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {reason_of(error)}") from error
    try:
        header = _parse(content)
        tensors = _tensors(header, path, LENGTH_BYTES + length)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(_damaged(path, str(error))) from error
    _check_ranges(tensors, path, LENGTH_BYTES + length, size)
    return tensors


def read_tensor(stored: StoredTensor, rows: slice | None = None) -> torch.Tensor:
    """Read one tensor, or consecutive rows of its first dimension; nothing else of the file.

    Args:
        stored: from `read_header`.
        rows: with a start and a stop inside the first dimension and no step; None for all.

    Returns:
        A tensor of its own memory, of the stored dtype and shape (or of the rows asked for).

    Raises:
        CheckpointError: the file cannot be read or became shorter.
    """
    import torch

    dtype = torch_dtype(stored.dtype)
    shape, start, length = stored.shape, stored.start, stored.bytes
    if rows is not None:
        row = length // max(1, shape[0])
        first, last, _ = rows.indices(shape[0])
        shape, start, length = (last - first, *shape[1:]), start + first * row, (last - first) * row
    raw = torch.empty(length, dtype=torch.uint8)
    if length:
        view = raw.numpy().data
        with _opened(stored) as file:
            _read_into(file, start, view, stored)
    return raw.view(dtype).reshape(shape)


def pieces(stored: StoredTensor) -> Iterator[bytes]:
    """The bytes of one tensor in pieces of at most PIECE_BYTES.

    Raises:
        CheckpointError: the file cannot be read or became shorter.
    """
    with _opened(stored) as file:
        done = 0
        while done < stored.bytes:
            piece = bytearray(min(PIECE_BYTES, stored.bytes - done))
            _read_into(file, stored.start + done, memoryview(piece), stored)
            yield bytes(piece)
            done += len(piece)


def _opened(stored: StoredTensor) -> Any:
    try:
        return stored.path.open("rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"cannot read {stored.path}: {reason_of(error)}") from error


def _read_into(file: Any, start: int, view: memoryview, stored: StoredTensor) -> None:
    try:
        file.seek(start)
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise CheckpointError(
                    _damaged(
                        stored.path,
                        f"it ends inside {stored.name}: it was changed or truncated while in use",
                    )
                )
            done += count
    except OSError as error:
        raise CheckpointError(
            f"cannot read {stored.name} from {stored.path}: {reason_of(error)}"
        ) from error


def _parse(content: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"its header names {twice!r} twice")
        return made

    try:
        header = json.loads(content.decode("utf-8"), object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError("its header is not JSON") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header


def _tensors(header: dict[str, Any], path: Path, data: int) -> dict[str, StoredTensor]:
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"the entry of {name} is not dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or not _counts(shape) or not _counts(offsets):
            raise ValueError(f"the entry of {name} is malformed")
        if len(offsets) != 2 or offsets[1] < offsets[0]:
            raise ValueError(f"the byte range {offsets} of {name} is none")
        length = offsets[1] - offsets[0]
        if dtype in ITEM_BYTES and length != math.prod(shape) * ITEM_BYTES[dtype]:
            raise ValueError(
                f"{name} is {dtype} {shape}, which is {math.prod(shape) * ITEM_BYTES[dtype]} "
                f"bytes, and its byte range holds {length}"
            )
        tensors[name] = StoredTensor(name, dtype, tuple(shape), data + offsets[0], length, path)
    return tensors


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values
    )


def _check_ranges(tensors: dict[str, StoredTensor], path: Path, data: int, size: int) -> None:
    """Byte ranges must lie side by side from the end of the header to the end of the file."""
    end, before = data, "the header"
    for stored in sorted(tensors.values(), key=lambda each: (each.start, each.bytes)):
        if stored.start < end:
            raise CheckpointError(_damaged(path, f"{stored.name} overlaps {before}"))
        if stored.start > end:
            raise CheckpointError(
                _damaged(path, f"{stored.start - end} bytes before {stored.name} belong to nothing")
            )
        end, before = stored.start + stored.bytes, stored.name
    if end > size:
        raise CheckpointError(
            _damaged(path, f"it is truncated: its tensors need {end} bytes and it has {size}")
        )
    if end < size:
        raise CheckpointError(_damaged(path, f"{size - end} bytes after the last tensor"))


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is damaged: {reason}; download or copy it again"
