"""The tuning cache's file: its form, reading it with suspicion, writing it in one step.

One form serves a machine's own cache, an exported file and a bundled one:

    {"kind": "slidesparse-cache", "schema_version": 1, "tool_version": "0.1.0",
     "fingerprint": {...},
     "entries": {"<GemmProblem.key>": {<ProblemResult>}, ...},
     "kernels": {"<KernelProblem.key>": {<KernelResult>}, ...}}

"kernels" is left out where there are none.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from slidesparse._version import __version__
from slidesparse.candidate import ProblemResult
from slidesparse.devices import SCHEMA_VERSION, Fingerprint
from slidesparse.kernel_problem import KernelResult
from slidesparse.serialize import DataError, from_plain, to_plain

KIND = "slidesparse-cache"
MAX_BYTES = 256 * 2**20
"""No search fills this much; a larger file is not one of ours and is not read into memory."""

_FIELDS = {"kind", "schema_version", "tool_version", "fingerprint", "entries"}

R = TypeVar("R", bound=ProblemResult | KernelResult)


@dataclass(frozen=True)
class Section(Generic[R]):
    """One kind of result.

    Args:
        field: of a document that holds them by the key of their problem.
        file: of a machine's own cache that holds these and no others.
        result: their class.
    """

    field: str
    file: str
    result: type[R]


GEMM = Section("entries", "gemm.json", ProblemResult)
KERNELS = Section("kernels", "kernels.json", KernelResult)
SECTIONS: tuple[Section[Any], ...] = (GEMM, KERNELS)

Results = Mapping[Section[Any], Mapping[str, Any]]
"""Results by section and key; `Document.of` gives one section its type back."""


@dataclass(frozen=True)
class Document:
    """What a cache file holds.

    Args:
        fingerprint: of the machine that measured.
        results: the valid ones of each section.
        invalid: one line per entry that is not valid, with its key and the reason.
    """

    fingerprint: Fingerprint
    results: Results
    invalid: tuple[str, ...] = ()

    def of(self, section: Section[R]) -> Mapping[str, R]:
        """The valid results of one section, by key."""
        entries: Mapping[str, R] = self.results.get(section, {})
        return entries

    @property
    def count(self) -> int:
        """How many valid results there are in all sections."""
        return sum(map(len, self.results.values()))


def render(fingerprint: Fingerprint, results: Results) -> bytes:
    """The bytes of a cache file; every entry is checked to read back.

    Raises:
        DataError: a result holds what no cache file may, such as a time that is not positive.
    """
    document: dict[str, Any] = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "tool_version": __version__,
        "fingerprint": to_plain(fingerprint),
    }
    for section in SECTIONS:
        entries = results.get(section, {})
        if entries or section.field in _FIELDS:
            document[section.field] = _plain_entries(section, entries)
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def read_document(path: Path) -> Document:
    """Read and check a cache file.

    Raises:
        OSError: the file cannot be read.
        DataError: it is no cache file of this schema version; single bad entries do not raise.
    """
    data = read_json(path)
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise DataError("", f'this is not a tuning cache ("kind" is not "{KIND}")')
    version = data.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise DataError("", f"schema version {version!r}, and this program reads {SCHEMA_VERSION}")
    odd = (set(data) - {KERNELS.field}) ^ _FIELDS
    if odd:
        raise DataError("", f"fields missing or unknown: {', '.join(sorted(odd))}")
    try:
        fingerprint = from_plain(Fingerprint, data["fingerprint"])
    except DataError as error:
        raise DataError(_join("fingerprint", error.path), error.reason) from error
    invalid: list[str] = []
    results = {section: _entries(section, data, invalid) for section in SECTIONS}
    return Document(fingerprint, results, tuple(invalid))


def read_fingerprint(path: Path) -> Fingerprint:
    """Read a directory's fingerprint.json.

    Raises:
        OSError: the file cannot be read.
        DataError: it holds no fingerprint.
    """
    return from_plain(Fingerprint, read_json(path))


def read_json(path: Path) -> Any:
    """Parse a regular file of sane size as strict JSON: no NaN, no Infinity.

    Raises:
        OSError: the file cannot be read.
        DataError: it is not such a file.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DataError("", "not a regular file")
        if status.st_size > MAX_BYTES:
            raise DataError("", f"{status.st_size} bytes, more than the {MAX_BYTES} accepted")
        content = file.read()
    if not content.strip():
        raise DataError("", "the file is empty")
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError("", f"not valid JSON ({error})") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step that survives a crash: all of it or none.

    A temporary file in the same directory is written, synced and renamed, then the directory is
    synced. A writer that is killed leaves at most the temporary file.

    Raises:
        OSError: the directory cannot be written or the disk is full.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}-{time.monotonic_ns()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def set_aside(path: Path) -> Path:
    """Rename a damaged file to <name>.corrupt-<UTC time>, so that nothing is lost; the new path.

    Raises:
        OSError: the directory cannot be written.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = path.with_name(f"{path.name}.corrupt-{stamp}")
    for number in itertools.count(2):
        if not os.path.lexists(target):
            break
        target = path.with_name(f"{path.name}.corrupt-{stamp}-{number}")
    path.rename(target)
    return target


def _plain_entries(section: Section[R], entries: Mapping[str, R]) -> dict[str, Any]:
    plain = {}
    for key in sorted(entries):
        plain[key] = to_plain(entries[key])
        _entry(section, key, plain[key])
    return plain


def _entries(section: Section[R], data: dict[str, Any], invalid: list[str]) -> dict[str, R]:
    """The valid entries of one section of a document; a line for each other is added."""
    plain = data.get(section.field, {})
    if not isinstance(plain, dict):
        raise DataError(section.field, "not a JSON object")
    entries = {}
    for key, value in plain.items():
        try:
            entries[key] = _entry(section, key, value)
        except DataError as error:
            invalid.append(f"{key[:120]}: {error}")
    return entries


def _entry(section: Section[R], key: str, plain: object) -> R:
    result = from_plain(section.result, plain)
    if result.problem.key != key:
        raise DataError("problem", f"it belongs under the key {result.problem.key}")
    return result


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _refuse_constant(name: str) -> None:
    raise DataError("", f"{name} is not valid JSON")


def _open_without_waiting(path: str, flags: int) -> int:
    """Open for reading without hanging on a pipe that nobody writes."""
    return os.open(path, flags | os.O_NONBLOCK)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
