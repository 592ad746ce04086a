"""Measured times of GEMMs on the planned GPU: from the user's and the bundled tuning caches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from slidesparse.accuracy.speed import forms_of
from slidesparse.cache import TuningCache
from slidesparse.cache_file import read_fingerprint, read_json
from slidesparse.cache_store import FINGERPRINT_FILE, cache_root
from slidesparse.candidate import Provenance
from slidesparse.devices import Fingerprint
from slidesparse.gpus import GpuSpec, gpu_of
from slidesparse.pattern import Pattern
from slidesparse.plan import choose
from slidesparse.problem import DType, GemmProblem
from slidesparse.serialize import DataError, from_plain


@dataclass(frozen=True)
class GemmTime:
    """What one GEMM took.

    Args:
        us: microseconds; scaled by tokens where it was measured at another M of the bucket.
        provenance: measured, or derived where it is scaled.
        how: where it was measured, in a few words.
    """

    us: float
    provenance: Provenance
    how: str


class GemmTimes:
    """Times of one GPU's GEMMs.

    Args:
        caches: of machines with this GPU, the one to be asked first in front.
    """

    def __init__(self, caches: Sequence[TuningCache]) -> None:
        """Note the caches; their files are read when the first time is asked for."""
        self._caches = tuple(caches)

    @classmethod
    def of_gpu(cls, gpu: GpuSpec, root: Path | None = None) -> GemmTimes:
        """The caches of every machine with this GPU that the user's folder and the package have.

        Args:
            gpu: that is planned for.
            root: of the user's caches; None for the default one.
        """
        prints = _fingerprints(cache_root(root))
        # By its key: a machine's own memory may stand in for the table's.
        matching = dict.fromkeys(each for each in prints if _key(each) == gpu.key)
        return cls([TuningCache(root, fingerprint) for fingerprint in matching])

    @property
    def machines(self) -> tuple[Fingerprint, ...]:
        """Whose caches they are."""
        return tuple(cache.fingerprint for cache in self._caches)

    def find(self, m: int, n: int, k: int, dtype: DType, pattern: Pattern) -> GemmTime | None:
        """The time of the fastest way that was measured, None where nothing was.

        Only the M bucket's own result counts. For a pattern that is what the plan would run: the
        sparse GEMM, or the dense one where that was faster.
        """
        for form in forms_of(dtype):
            problem = replace(form, m=m, n=n, k=k, pattern=pattern)
            for cache in self._caches:
                found = _time(cache, problem)
                if found is not None:
                    return found
        return None


def _time(cache: TuningCache, problem: GemmProblem) -> GemmTime | None:
    hit = cache.get(problem)
    choice = choose(hit.result) if hit is not None else None
    if hit is None or choice is None:
        return None
    at = hit.result.problem.m
    where = f"{choice.chosen.candidate.backend} on {cache.fingerprint.name}"
    if at == problem.m:
        return GemmTime(choice.chosen.median_us, Provenance.MEASURED, where)
    us = choice.chosen.median_us * problem.m / at
    return GemmTime(us, Provenance.DERIVED, f"{where}, measured at M={at}")


def _key(fingerprint: Fingerprint) -> str:
    found = gpu_of(fingerprint)
    return found.key if found is not None else ""


def _fingerprints(root: Path) -> Iterator[Fingerprint]:
    """Of the user's caches, the newest first, then of the bundled ones."""
    files = [path / FINGERPRINT_FILE for path in _entries(root)]
    there = [path for path in files if path.is_file()]
    yield from _read(sorted(there, key=lambda path: path.stat().st_mtime, reverse=True))
    yield from _bundled()


def _entries(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir())
    except OSError:
        return []


def _read(paths: Iterable[Path]) -> Iterator[Fingerprint]:
    for path in paths:
        try:
            yield read_fingerprint(path)
        except (OSError, DataError):
            continue


@lru_cache(maxsize=1)
def _bundled() -> tuple[Fingerprint, ...]:
    """Of the results in the package. Their files are large, and every GPU of a table asks."""
    found = []
    for path in sorted((Path(__file__).parent.parent / "data" / "caches").glob("*.json")):
        try:
            found.append(from_plain(Fingerprint, read_json(path)["fingerprint"]))
        except (OSError, DataError, KeyError, TypeError):
            continue
    return tuple(found)
