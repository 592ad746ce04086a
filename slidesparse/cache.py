"""TuningCache: the measured winners of one machine, in memory, in the user's cache, bundled.

A file that is damaged or of another machine is a miss with one warning, never a crash. Files are
read at the first look-up only, so that one in a captured CUDA graph touches none; see `refresh`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from slidesparse.cache_file import (
    GEMM,
    KERNELS,
    SECTIONS,
    Document,
    R,
    Results,
    Section,
    read_document,
    read_fingerprint,
    render,
    write_atomically,
)
from slidesparse.cache_store import (
    FINGERPRINT_FILE,
    JOURNAL_FOLDER,
    LOCK_TIMEOUT,
    CacheStore,
    cache_root,
    count_entries,
    why,
)
from slidesparse.candidate import ProblemResult, Provenance
from slidesparse.devices import Fingerprint
from slidesparse.errors import CacheError
from slidesparse.kernel_problem import KernelProblem, KernelResult, Op, bucket_k
from slidesparse.problem import GemmProblem, bucket_m
from slidesparse.serialize import DataError

log = logging.getLogger(__name__)


class Hit(NamedTuple):
    """A result that was found, and where: cached by a search here, or bundled with the package."""

    result: ProblemResult
    provenance: Provenance


class KernelHit(NamedTuple):
    """A kernel's configurations that were found, and where: tuned here, or bundled."""

    result: KernelResult
    provenance: Provenance


@dataclass(frozen=True)
class StaleCache:
    """Results of the same GPU with other library versions: never used, but worth a word.

    Args:
        path: its directory.
        fingerprint: that it was measured under.
        differences: one line each, "cublaslt 13.1.0 here, 13.2.0 there".
        entries: how many results it lists.
    """

    path: Path
    fingerprint: Fingerprint
    differences: tuple[str, ...]
    entries: int


@dataclass(frozen=True)
class ImportReport:
    """Keys that an import added, that it replaced, and that an existing entry kept out."""

    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


class TuningCache:
    """The results that hold on one machine.

    Args:
        root: directory of all caches; None for $SLIDESPARSE_CACHE_DIR or the user's cache folder.
        fingerprint: of the machine; only results with an equal one are ever seen.
        bundled: directory of bundled cache files; None for the package's own.
        lock_timeout: seconds to wait for another writer.
    """

    def __init__(
        self,
        root: Path | str | None,
        fingerprint: Fingerprint,
        *,
        bundled: Path | None = None,
        lock_timeout: float = LOCK_TIMEOUT,
    ) -> None:
        """Note where things are; nothing is read, created or written yet."""
        self.root = cache_root(root)
        self.fingerprint = fingerprint
        self._store = CacheStore(self.root, fingerprint, lock_timeout)
        self._lock_timeout = lock_timeout
        self._bundled_folder = bundled or Path(__file__).parent / "data" / "caches"
        self._user: dict[str, Mapping[str, Any]] = {}
        self._bundled: dict[str, dict[str, Any]] | None = None
        self._writer = threading.Lock()

    @property
    def directory(self) -> Path:
        """The directory of this machine's results."""
        return self._store.directory

    @property
    def path(self) -> Path:
        """The file of this machine's GEMM results."""
        return self._store.path(GEMM)

    @property
    def kernels_path(self) -> Path:
        """The file of this machine's kernel configurations."""
        return self._store.path(KERNELS)

    @property
    def journal_directory(self) -> Path:
        """The directory of the journals of unfinished searches."""
        return self.directory / JOURNAL_FOLDER

    def get(self, problem: GemmProblem) -> Hit | None:
        """The result of the problem's own M bucket, the user's before a bundled one."""
        found = self._find(GEMM, problem.key)
        return Hit(*found) if found else None

    def get_kernel(self, problem: KernelProblem) -> KernelHit | None:
        """The configurations for the problem's own M and K buckets, the user's before bundled."""
        found = self._find(KERNELS, problem.key)
        return KernelHit(*found) if found else None

    def nearest(self, problem: GemmProblem) -> Hit | None:
        """The result of the problem's bucket, else of the next tuned one above, else below."""
        wanted = bucket_m(problem.m)
        tuned = {
            bucket_m(hit.result.problem.m): hit
            for hit in self.entries().values()
            if replace(hit.result.problem, m=problem.m) == problem
        }
        if not tuned:
            return None
        above = [bucket for bucket in tuned if bucket >= wanted]
        return tuned[min(above) if above else max(tuned)]

    def entries(self) -> dict[str, Hit]:
        """Every result by key, sorted by problem, M last; the user's hide bundled ones."""
        hits = {key: Hit(*found) for key, found in self._all(GEMM).items()}
        return dict(sorted(hits.items(), key=lambda item: _order(item[1].result.problem)))

    def kernel_entries(self) -> dict[str, KernelHit]:
        """Every kernel configuration by key, sorted by problem, M last; the user's hide bundled."""
        hits = {key: KernelHit(*found) for key, found in self._all(KERNELS).items()}
        return dict(sorted(hits.items(), key=lambda item: _kernel_order(item[1].result.problem)))

    def user_entries(self) -> Mapping[str, ProblemResult]:
        """Results that were measured or imported here, by key."""
        return self._own(GEMM)

    def user_kernels(self) -> Mapping[str, KernelResult]:
        """Kernel configurations that were tuned or imported here, by key."""
        return self._own(KERNELS)

    def bundled_entries(self) -> Mapping[str, ProblemResult]:
        """Results shipped with the package for exactly this fingerprint, by key."""
        return self._shipped(GEMM)

    def bundled_kernels(self) -> Mapping[str, KernelResult]:
        """Kernel configurations shipped with the package for this fingerprint, by key."""
        return self._shipped(KERNELS)

    def refresh(self) -> None:
        """Forget what was read: the next look-up reads the files again."""
        self._user, self._bundled = {}, None

    def put(self, result: ProblemResult) -> None:
        """File one result under its key, replacing that entry and no other.

        Raises:
            CacheError: the directory cannot be written, or another writer keeps the lock.
            DataError: the result holds what a cache file may not.
        """
        self.put_many([result])

    def put_many(self, results: Iterable[ProblemResult]) -> None:
        """File several results in one write; raises like `put`."""
        self._put(GEMM, results)

    def put_kernels(self, results: Iterable[KernelResult]) -> None:
        """File kernel configurations in one write, replacing those of the same keys and no others.

        Raises:
            CacheError: the directory cannot be written, or another writer keeps the lock.
            DataError: a result holds what a cache file may not.
        """
        self._put(KERNELS, results)

    def clear(self) -> int:
        """Remove all results, of kernels too, and journals; how many results there were.

        Raises:
            CacheError: something cannot be removed.
        """
        count = self._store.clear()
        self.refresh()
        return count

    def stale(self) -> list[StaleCache]:
        """Caches of the same GPU with other versions, by path."""
        found = []
        for path in _directories(self.root):
            try:
                other = read_fingerprint(path / FINGERPRINT_FILE)
            except (OSError, DataError):
                continue
            # A directory under another name than its own was put there by hand: leave it alone.
            same_gpu = other.name == self.fingerprint.name and other != self.fingerprint
            if same_gpu and path.name == other.slug:
                differences = tuple(self.fingerprint.differences(other))
                count = count_entries(path)
                found.append(StaleCache(path, other, differences, count))
        return found

    def clear_stale(self) -> list[StaleCache]:
        """Remove what `stale` lists, and say what that was.

        Raises:
            CacheError: something cannot be removed.
        """
        removed = self.stale()
        for item in removed:
            CacheStore(self.root, item.fingerprint, self._lock_timeout).clear()
        return removed

    def export(self, path: Path) -> int:
        """Write the user's results of both kinds to one file for equal machines; how many.

        Raises:
            CacheError: there is nothing to export, or the file cannot be written.
        """
        results = {section: self._store.load(section) for section in SECTIONS}
        count = sum(map(len, results.values()))
        if not count:
            raise CacheError(
                f"nothing to export: no entries in {self.directory}; run slidesparse search or "
                "slidesparse tune"
            )
        try:
            write_atomically(path, render(self.fingerprint, results))
        except OSError as error:
            raise CacheError(f"cannot write {path}: {why(error)}") from error
        return count

    def import_file(self, path: Path, overwrite: bool = False) -> ImportReport:
        """Merge an exported file into the user's results; it is checked whole before any is taken.

        Args:
            path: a file that `export` wrote on a machine with an equal fingerprint.
            overwrite: whether its entries replace existing ones of the same key.

        Raises:
            CacheError: the file is unreadable, invalid or of another fingerprint, and nothing was
                changed; or the cache cannot be written, and the import can be repeated.
        """
        document = self._read_import(path)
        parts = [self._merge(section, document.of(section), overwrite) for section in SECTIONS]
        return ImportReport(
            added=tuple(key for part in parts for key in part.added),
            replaced=tuple(key for part in parts for key in part.replaced),
            kept=tuple(key for part in parts for key in part.kept),
        )

    def unwritable_reason(self) -> str:
        """Why results cannot be filed, or "" if they can; creates nothing."""
        return self._store.unwritable_reason()

    def _find(self, section: Section[R], key: str) -> tuple[R, Provenance] | None:
        if (own := self._own(section).get(key)) is not None:
            return own, Provenance.CACHED
        if (shipped := self._shipped(section).get(key)) is not None:
            return shipped, Provenance.BUNDLED
        return None

    def _all(self, section: Section[R]) -> dict[str, tuple[R, Provenance]]:
        shipped, own = self._shipped(section), self._own(section)
        found = {key: (result, Provenance.BUNDLED) for key, result in shipped.items()}
        return found | {key: (result, Provenance.CACHED) for key, result in own.items()}

    def _own(self, section: Section[R]) -> Mapping[str, R]:
        entries: Mapping[str, R] | None = self._user.get(section.field)
        if entries is None:
            entries = self._user[section.field] = self._store.load(section)
        return entries

    def _shipped(self, section: Section[R]) -> Mapping[str, R]:
        bundled = self._bundled
        if bundled is None:
            bundled = {each.field: {} for each in SECTIONS}
            for path in sorted(self._bundled_folder.glob("*.json")):
                for each, entries in self._load_bundled(path).items():
                    bundled[each.field].update(entries)
            self._bundled = bundled
        return bundled[section.field]

    def _put(self, section: Section[R], results: Iterable[R]) -> None:
        new = {result.problem.key: result for result in results}
        if new:
            self._update(section, lambda entries: {**entries, **new})

    def _merge(self, section: Section[R], new: Mapping[str, R], overwrite: bool) -> ImportReport:
        report = ImportReport()
        if not new:
            return report

        def merge(entries: dict[str, R]) -> dict[str, R]:
            nonlocal report
            both = tuple(key for key in new if key in entries)
            added = tuple(key for key in new if key not in entries)
            report = ImportReport(added, both if overwrite else (), () if overwrite else both)
            return {**entries, **new} if overwrite else {**new, **entries}

        self._update(section, merge)
        return report

    def _update(self, section: Section[R], change: Callable[[dict[str, R]], dict[str, R]]) -> None:
        # Threads share this object: memory must not fall back to what an earlier write left.
        with self._writer:
            self._user[section.field] = self._store.update(section, change)

    def _read_import(self, path: Path) -> Document:
        try:
            document = read_document(path)
        except OSError as error:
            raise CacheError(f"cannot read {path}: {why(error)}") from error
        except DataError as error:
            raise CacheError(f"cannot import {path}: {error}") from error
        differences = self.fingerprint.differences(document.fingerprint)
        if differences:
            raise CacheError(
                f"cannot import {path}: it was measured on another machine or with other versions "
                f"({'; '.join(differences)}); run slidesparse search here instead"
            )
        if document.invalid:
            bad, total = len(document.invalid), len(document.invalid) + document.count
            reason = f"{bad} of {total} entries are invalid, first {document.invalid[0]}"
            raise CacheError(f"cannot import {path}: {reason}")
        return document

    def _load_bundled(self, path: Path) -> Results:
        try:
            document = read_document(path)
        except (OSError, DataError) as error:
            log.warning("bundled cache %s is not used: %s; reinstall slidesparse", path, why(error))
            return {}
        return document.results if document.fingerprint == self.fingerprint else {}


def _directories(root: Path) -> Iterator[Path]:
    try:
        names = sorted(root.iterdir())
    except OSError:
        return
    yield from (path for path in names if path.is_dir())


def _order(problem: GemmProblem) -> tuple[int | str, ...]:
    layer = (problem.n, problem.k, problem.dtype.value, problem.out.value, problem.scales.value)
    return (*layer, problem.bias, problem.pattern.block, problem.m)


def _kernel_order(problem: KernelProblem) -> tuple[int | str, ...]:
    op, dtypes = list(Op).index(problem.op), (problem.source.value, problem.out.value)
    return (op, bucket_k(problem.k), *dtypes, problem.pattern.block, problem.residual, problem.m)
