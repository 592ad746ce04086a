"""ShardWriter: one safetensors file, written tensor by tensor, there whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from slidesparse.checkpoint.safetensors_file import (
    ITEM_BYTES,
    LENGTH_BYTES,
    StoredTensor,
    header_dtype,
    pieces,
    read_header,
)
from slidesparse.errors import CheckpointError, reason_of

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

TEMPORARY = ".tmp"
"""Ends the name of a file that is being written."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a file will hold.

    Args:
        name: of the tensor.
        dtype: as headers spell it, "F8_E4M3".
        shape: elements per dimension.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its length in the file.

        Raises:
            CheckpointError: the dtype is none of those that are known.
        """
        if self.dtype not in ITEM_BYTES:
            raise CheckpointError(
                f"{self.name} is {self.dtype}, which is not written; known are "
                f"{', '.join(ITEM_BYTES)}"
            )
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class ShardRecord:
    """A finished file: enough to tell later whether it is still what was written.

    Args:
        bytes: size of the file.
        checksums: CRC-32 of each tensor's bytes, by name.
    """

    bytes: int
    checksums: Mapping[str, int]


class ShardWriter:
    """Writes one file: all sizes are known first, then tensors come in any order, in pieces.

    The disk space is claimed when the writer is entered, so that a full disk is found before the
    work. Data goes to a temporary file that is synced and renamed at the end of `with`; on an
    error it is removed.

    Args:
        path: of the finished file.
        specs: every tensor, in any order.
    """

    def __init__(self, path: Path, specs: Iterable[TensorSpec]) -> None:
        """Lay the file out; nothing is written yet."""
        self.path = path
        self._temporary = path.with_name(path.name + TEMPORARY)
        # The widest dtypes first: then every tensor is aligned to its own elements.
        ordered = sorted(specs, key=lambda spec: (-ITEM_BYTES[spec.dtype], spec.name))
        self._specs = {spec.name: spec for spec in ordered}
        self._header, starts = _header(ordered)
        self._starts = {name: len(self._header) + start for name, start in starts.items()}
        self._size = len(self._header) + sum(spec.bytes for spec in ordered)
        self._written = dict.fromkeys(self._specs, 0)
        self._checksums = dict.fromkeys(self._specs, 0)
        self._descriptor = -1
        self.record: ShardRecord | None = None

    def __enter__(self) -> Self:
        """Create the file and claim its space.

        Raises:
            CheckpointError: the folder cannot be written or the disk is full.
        """
        with writing(self.path, self._size), self._or_remove():
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            self._descriptor = os.open(self._temporary, flags, 0o666)
            _claim(self._descriptor, self._size)
            _write_all(self._descriptor, self._header, 0)
        return self

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append rows to a tensor, or write it at once.

        Args:
            name: one of the specs.
            tensor: on any device, of the spec's dtype; the next elements of the tensor.

        Raises:
            CheckpointError: the disk is full.
        """
        import torch

        spec = self._specs[name]
        if header_dtype(tensor.dtype) != spec.dtype:
            raise TypeError(f"{name} is to be {spec.dtype}, not {tensor.dtype}")
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self.write_bytes(name, raw.numpy().data)

    def write_bytes(self, name: str, content: bytes | memoryview) -> None:
        """Append bytes to a tensor; see `write`."""
        done = self._written[name]
        if done + len(content) > self._specs[name].bytes:
            raise ValueError(f"{name} has {self._specs[name].bytes} bytes, more came")
        with writing(self.path, self._size):
            _write_all(self._descriptor, content, self._starts[name] + done)
        self._written[name] = done + len(content)
        self._checksums[name] = zlib.crc32(content, self._checksums[name])

    def copy(self, stored: StoredTensor) -> None:
        """Write a tensor as it is stored in another file."""
        for piece in pieces(stored):
            self.write_bytes(stored.name, piece)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Sync and rename, or remove.

        Raises:
            CheckpointError: the disk is full.
        """
        if error is not None:
            self._discard()
            return
        with self._or_remove():
            short = [spec for spec in self._specs.values() if self._written[spec.name] < spec.bytes]
            if short:
                raise ValueError(f"{short[0].name} was not written whole")
            with writing(self.path, self._size):
                os.fsync(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = -1
                os.replace(self._temporary, self.path)
                sync_directory(self.path.parent)
        self.record = ShardRecord(self._size, dict(self._checksums))

    @contextmanager
    def _or_remove(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._temporary.unlink(missing_ok=True)


def unchanged(path: Path, specs: Iterable[TensorSpec], record: ShardRecord) -> bool:
    """Whether a file is what `record` says was written for these specs; reads all of it."""
    try:
        found = read_header(path)
        wanted = {spec.name: (spec.dtype, spec.shape) for spec in specs}
        if {name: (it.dtype, it.shape) for name, it in found.items()} != wanted:
            return False
        return record.checksums == {name: _checksum(stored) for name, stored in found.items()}
    except CheckpointError:
        return False


@contextmanager
def writing(path: Path, size: int = 0) -> Iterator[None]:
    """Turn what the system refuses while `path` is written into one line with the remedy.

    Args:
        path: the finished file's.
        size: its bytes, for the message.

    Raises:
        CheckpointError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = reason_of(error)
        if error.errno in _FULL:
            room = f" ({size_text(size)})" if size else ""
            raise CheckpointError(
                f"cannot write {path}{room}: {reason}; finished shards are kept: make room and "
                "run the same command again"
            ) from error
        raise CheckpointError(f"cannot write {path}: {reason}") from error


def size_text(size: int) -> str:
    """Bytes in the unit that suits them, 1 GB = 1e9 bytes."""
    for unit, each in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= each:
            return f"{size / each:.2f} {unit}"
    return f"{size} bytes"


def sync_directory(path: Path) -> None:
    """Make a rename inside a directory last through a crash."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _header(specs: list[TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """The bytes before the data, and where each tensor starts in the data."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, at = {}, 0
    for spec in specs:
        starts[spec.name] = at
        entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [at, at + spec.bytes],
        }
        at += spec.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, starts


def _claim(descriptor: int, size: int) -> None:
    """Reserve the space; a file system that cannot do so finds out while it is written."""
    with suppress(AttributeError):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def _write_all(descriptor: int, content: bytes | memoryview, start: int) -> None:
    view, done = memoryview(content), 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], start + done)


def _checksum(stored: StoredTensor) -> int:
    checksum = 0
    for piece in pieces(stored):
        checksum = zlib.crc32(piece, checksum)
    return checksum
