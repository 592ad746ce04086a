"""The directory of one machine's tuning results: locking, loading, updating, removing.

<root>/<fingerprint slug>/fingerprint.json   whose results these are
                          gemm.json          results of searches, by GemmProblem.key
                          kernels.json       configurations of kernels, by KernelProblem.key
                          journal/           searches that are not finished
<root>/<fingerprint slug>.lock               held by the process that writes
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slidesparse.cache_file import (
    SECTIONS,
    R,
    Section,
    read_document,
    read_fingerprint,
    read_json,
    render,
    set_aside,
    write_atomically,
)
from slidesparse.devices import Fingerprint
from slidesparse.errors import CacheError
from slidesparse.serialize import DataError, to_plain

log = logging.getLogger(__name__)

ENVIRONMENT = "SLIDESPARSE_CACHE_DIR"
LOCK_TIMEOUT = 60.0
"""Seconds to wait for another writer; a write takes milliseconds."""

FINGERPRINT_FILE = "fingerprint.json"
JOURNAL_FOLDER = "journal"

_ELSEWHERE = f"choose another place with --cache-dir or {ENVIRONMENT}"


@dataclass(frozen=True)
class Damage:
    """Why a file's content is not, or not wholly, used."""

    path: Path
    reason: str


def cache_root(explicit: Path | str | None = None) -> Path:
    """Where caches live: `explicit`, else $SLIDESPARSE_CACHE_DIR, else the user's cache folder."""
    chosen = explicit or os.environ.get(ENVIRONMENT)
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    import platformdirs

    return Path(platformdirs.user_cache_dir("slidesparse"))


class CacheStore:
    """One machine's directory below `root`; see TuningCache for what its entries mean.

    Args:
        root: of all caches.
        fingerprint: whose directory it is.
        lock_timeout: seconds to wait for another writer.
    """

    def __init__(self, root: Path, fingerprint: Fingerprint, lock_timeout: float) -> None:
        """Note where things are; nothing is read, created or written yet."""
        self.root = root
        self.fingerprint = fingerprint
        self.directory = root / fingerprint.slug
        self._identity = self.directory / FINGERPRINT_FILE
        self._lock_timeout = lock_timeout
        self._warned: set[Path] = set()

    def path(self, section: Section[Any]) -> Path:
        """The file of one section's entries."""
        return self.directory / section.file

    def load(self, section: Section[R]) -> dict[str, R]:
        """The valid entries as the file has them now; damage is warned of once."""
        return self._load(section)[0]

    def update(
        self, section: Section[R], change: Callable[[dict[str, R]], dict[str, R]]
    ) -> dict[str, R]:
        """Read, change and write the entries while no other process does; the new ones.

        Raises:
            CacheError: the directory cannot be written, or another writer keeps the lock.
            DataError: `change` gave an entry that a cache file may not hold.
        """
        with self._locked():
            entries, damage = self._load(section)
            changed = change(entries)
            content = render(self.fingerprint, {section: changed})
            self.directory.mkdir(exist_ok=True)
            if damage is not None:
                _set_aside(self.path(section), damage.path)
            # A writer holds the lock: these are of writers that were killed.
            for leftover in self.directory.glob("*.json.tmp-*"):
                leftover.unlink(missing_ok=True)
            if not self._identity.exists():
                write_atomically(self._identity, _identity_bytes(self.fingerprint))
            write_atomically(self.path(section), content)
        return changed

    def clear(self) -> int:
        """Remove entries, journals and what was set aside; how many entries there were.

        Raises:
            CacheError: something cannot be removed.
        """
        if not os.path.lexists(self.directory):
            return 0
        with self._locked():
            count = count_entries(self.directory)
            _remove_directory(self.directory)
        return count

    def unwritable_reason(self) -> str:
        """Why entries cannot be written, or "" if they can; creates nothing."""
        place = self.directory
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        if not place.is_dir():
            return f"{place} is not a directory; {_ELSEWHERE}"
        if not os.access(place, os.W_OK | os.X_OK):
            return f"{place} is not writable; {_ELSEWHERE}"
        return ""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock; what the system refuses meanwhile becomes one line with the remedy."""
        import filelock

        path = self.root / f"{self.fingerprint.slug}.lock"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(path, timeout=self._lock_timeout):
                yield
        except filelock.Timeout as error:
            raise CacheError(
                f"another process has held {path} for {self._lock_timeout:g} s; "
                f"wait for it to end, or {_ELSEWHERE}"
            ) from error
        except (OSError, NotImplementedError) as error:
            raise CacheError(
                f"cannot write the tuning cache at {self.directory}: {why(error)}; {_ELSEWHERE}"
            ) from error

    def _load(self, section: Section[R]) -> tuple[dict[str, R], Damage | None]:
        entries: dict[str, R] = {}
        damage = self._wrong_owner()
        if damage is None:
            entries, damage = self._read_entries(section)
        if damage is not None and damage.path not in self._warned:
            self._warned.add(damage.path)
            log.warning(
                "tuning cache %s is damaged: %s; what is damaged is not used. The next write sets "
                "it aside and starts anew, `slidesparse cache clear` removes it",
                damage.path,
                damage.reason,
            )
        return entries, damage

    def _wrong_owner(self) -> Damage | None:
        """Damage if fingerprint.json is there and is not this machine's."""
        try:
            owner = read_fingerprint(self._identity)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, DataError) as error:
            return Damage(self._identity, why(error))
        if owner != self.fingerprint:
            return Damage(self._identity, f"it belongs to another machine, {owner}")
        return None

    def _read_entries(self, section: Section[R]) -> tuple[dict[str, R], Damage | None]:
        path = self.path(section)
        try:
            document = read_document(path)
        except (FileNotFoundError, NotADirectoryError):
            return {}, None
        except (OSError, DataError) as error:
            return {}, Damage(path, why(error))
        if document.fingerprint != self.fingerprint:
            reason = f"it belongs to another machine, {document.fingerprint}"
            return {}, Damage(path, reason)
        entries = dict(document.of(section))
        if document.invalid:
            total = document.count + len(document.invalid)
            reason = f"{len(document.invalid)} of {total} entries, first {document.invalid[0]}"
            return entries, Damage(path, reason)
        if document.count > len(entries):
            strays = document.count - len(entries)
            reason = (
                f"{strays} entries are not for this file; `slidesparse cache import` sorts them"
            )
            return entries, Damage(path, reason)
        return entries, None


def why(error: Exception) -> str:
    """One line for the reason of an error: the system's words for an OSError."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())


def count_entries(directory: Path) -> int:
    """How many entries the files of a directory list, valid or not; unreadable ones count as 0."""
    return sum(_count(directory / section.file, section.field) for section in SECTIONS)


def _count(path: Path, field: str) -> int:
    try:
        data = read_json(path)
    except (OSError, DataError):
        return 0
    entries = data.get(field) if isinstance(data, dict) else None
    return len(entries) if isinstance(entries, dict) else 0


def _set_aside(*paths: Path) -> None:
    for path in dict.fromkeys(paths):
        if os.path.lexists(path):
            log.warning("moved the damaged tuning cache %s to %s", path, set_aside(path))


def _identity_bytes(fingerprint: Fingerprint) -> bytes:
    return (json.dumps(to_plain(fingerprint), indent=1) + "\n").encode()


def _remove_directory(directory: Path) -> None:
    """Remove what SlideSparse wrote there; anything else stays, and the directory with it."""
    if directory.is_symlink() or not directory.is_dir():
        directory.unlink()
        return
    files = [FINGERPRINT_FILE, *(section.file for section in SECTIONS)]
    ours = (*(f"{name}*" for name in files), JOURNAL_FOLDER)
    for path in [path for pattern in ours for path in directory.glob(pattern)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if not any(directory.iterdir()):
        directory.rmdir()
