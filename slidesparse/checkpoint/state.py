"""What an unfinished conversion knows of itself, so that the next start goes on with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidesparse._version import __version__
from slidesparse.cache_file import write_atomically
from slidesparse.checkpoint.reader import CONFIG_FILE, INDEX_FILE, CheckpointReader, read_json
from slidesparse.checkpoint.writer import ShardRecord, writing
from slidesparse.errors import CheckpointError
from slidesparse.recipe import Recipe

if TYPE_CHECKING:
    import torch

STATE_FILE = "slidesparse-conversion.json"
LOCK_FILE = "slidesparse-conversion.lock"
VERSION = 1
"""Of the state file's form."""

_WHAT = {
    "version": "the form of the state file",
    "slidesparse": "the release of slidesparse",
    "source": "the source checkpoint",
    "recipe": "pattern, method, dtype, keep or recipe",
    "permute": "--permute",
    "calibration": "the calibration tokens",
}


@dataclass
class State:
    """Which shards are finished, on disk after every one of them.

    Args:
        path: of the state file.
        identity: what goes into the conversion, from `identity_of`.
        shards: finished ones by file name.
        reports: what was done to each linear, by file name, as plain data.
    """

    path: Path
    identity: dict[str, Any]
    shards: dict[str, ShardRecord] = field(default_factory=dict)
    reports: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def finish(self, file: str, record: ShardRecord, reports: list[dict[str, Any]]) -> None:
        """Note a finished shard.

        Raises:
            CheckpointError: the disk is full.
        """
        self.shards[file], self.reports[file] = record, reports
        self.save()

    def save(self) -> None:
        """Write the state file.

        Raises:
            CheckpointError: the folder cannot be written or the disk is full.
        """
        shards = {
            name: {"bytes": record.bytes, "checksums": dict(record.checksums)}
            for name, record in self.shards.items()
        }
        made = {"identity": self.identity, "shards": shards, "reports": self.reports}
        with writing(self.path):
            write_atomically(self.path, (json.dumps(made) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> State:
        """Read what `save` wrote.

        Raises:
            CheckpointError: it is damaged.
        """
        data = read_json(path)
        try:
            shards = {
                str(name): ShardRecord(
                    int(it["bytes"]), {k: int(v) for k, v in it["checksums"].items()}
                )
                for name, it in data["shards"].items()
            }
            return cls(path, dict(data["identity"]), shards, dict(data["reports"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{path} is damaged; remove {path.parent} to start anew"
            ) from error


def identity_of(
    reader: CheckpointReader, recipe: Recipe, permute: bool, tokens: torch.Tensor | None
) -> dict[str, Any]:
    """All that decides what a conversion writes, as plain data.

    Files of the source count by name, size and time of change: reading 15 GB to be sure would
    take longer than it is worth.
    """
    files = [*reader.files, reader.path / CONFIG_FILE, reader.path / INDEX_FILE]
    stats = {path.name: path.stat() for path in files if path.exists()}
    calibration = None
    if tokens is not None:
        digest = hashlib.sha256(tokens.cpu().contiguous().numpy().tobytes()).hexdigest()
        calibration = {"shape": list(tokens.shape), "sha256": digest}
    return {
        "version": VERSION,
        "slidesparse": __version__,
        "source": {name: [it.st_size, it.st_mtime_ns] for name, it in stats.items()},
        "recipe": json.loads(recipe.to_json()),
        "permute": permute,
        "calibration": calibration,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two identities, in words; "" if nothing does."""
    differing = [what for key, what in _WHAT.items() if before.get(key) != now.get(key)]
    return ", ".join(differing)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other conversions out of a folder; a killed process holds nothing.

    Raises:
        CheckpointError: another process is at work there.
    """
    import filelock

    lock = filelock.FileLock(folder / LOCK_FILE)
    with writing(folder):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise CheckpointError(
                f"another process is converting into {folder}; wait for it to end"
            ) from error
    try:
        yield
    finally:
        lock.release()
