"""The journal of a problem under search: what is measured is on disk before the next one starts.

One file per problem, one JSON object per line, appended and never rewritten. A search that was
killed reads it back and repeats nothing; the file goes when the result is in the tuning cache.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from slidesparse.candidate import Failure, Measurement
from slidesparse.errors import CacheError
from slidesparse.problem import GemmProblem
from slidesparse.serialize import DataError, from_plain, to_plain

log = logging.getLogger(__name__)


class Journal:
    """Append-only record of screened candidates.

    Args:
        folder: the journal folder of the device's cache directory, or None to keep nothing.
        problem: that is searched; only a journal of the same problem with the same M is read back.
    """

    def __init__(self, folder: Path | None, problem: GemmProblem) -> None:
        """Bind the file; nothing is read or written yet."""
        self._path = folder / f"{_safe(problem)}.jsonl" if folder is not None else None
        self._header = {"problem": to_plain(problem)}

    def read(self) -> dict[str, Measurement | Failure]:
        """What an earlier search of the same problem screened, by candidate key.

        A line that is cut off or damaged ends the reading: what stands before it counts, and the
        file is cut there, so that what is appended next can be read back too.
        """
        if self._path is None or not self._path.exists():
            return {}
        known: dict[str, Measurement | Failure] = {}
        good = 0
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
            if not lines or json.loads(lines[0]) != self._header:
                self.remove()
                return {}
            good = len(lines[0])
            for line in lines[1:]:
                if not line.endswith(b"\n"):
                    raise DataError("", "the last line is cut off")
                content = json.loads(line)
                if content != self._header:  # Two searches that start at once both write one.
                    outcome = _parse(content)
                    known[outcome.candidate.key] = outcome
                good += len(line)
        except (OSError, ValueError, DataError) as error:
            log.warning("journal %s is damaged after %d lines: %s", self._path, len(known), error)
            self._cut(good)
        return known

    def add(self, outcome: Measurement | Failure) -> None:
        """Append one outcome and flush it.

        Raises:
            CacheError: the file cannot be written.
        """
        if self._path is None:
            return
        kind = "failure" if isinstance(outcome, Failure) else "measurement"
        try:
            new = not self._path.exists()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                if new:
                    file.write(json.dumps(self._header) + "\n")
                file.write(json.dumps({kind: to_plain(outcome)}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CacheError(
                f"cannot write the journal {self._path}: {error.strerror}; "
                "choose another place with --cache-dir or SLIDESPARSE_CACHE_DIR"
            ) from error

    def _cut(self, size: int) -> None:
        """Keep the first `size` bytes; the whole file goes if not even its header is whole."""
        assert self._path is not None
        try:
            if size:
                os.truncate(self._path, size)
            else:
                self.remove()
        except OSError as error:
            log.warning("journal %s cannot be mended: %s", self._path, error)

    def remove(self) -> None:
        """Delete the file: the result is in the cache, or the search starts over."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _parse(line: object) -> Measurement | Failure:
    if not isinstance(line, dict) or len(line) != 1:
        raise DataError("", "a journal line holds one measurement or one failure")
    if "failure" in line:
        return from_plain(Failure, line["failure"])
    return from_plain(Measurement, line.get("measurement"))


def _safe(problem: GemmProblem) -> str:
    return f"{problem.key}-at-{problem.m}".replace(":", "of")
