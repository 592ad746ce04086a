"""What all result files share: a JSON object that says its kind and schema, and a CSV beside it.

Written whole or not at all, by the tool and never by hand.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from slidesparse.errors import UsageError

R = TypeVar("R")

STAMPS = ("commit", "version", "created")
"""Fields that have defaults in memory and none in a file."""


@dataclass(frozen=True)
class FileKind:
    """What a result file says of itself.

    Args:
        kind: in its field "kind".
        schema_version: of its fields.
        command: that writes it, for messages.
        older: schema versions that can still be read, each with the fields that it lacks and what
            is read in their place.
    """

    kind: str
    schema_version: int
    command: str
    older: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


def write_data(path: Path, kind: FileKind, data: Mapping[str, Any]) -> None:
    """Write a result file; the folder must exist.

    Args:
        path: of the file.
        kind: heads it.
        data: the rest, plain values.

    Raises:
        UsageError: the file cannot be written.
    """
    whole = {"kind": kind.kind, "schema_version": kind.schema_version, **data}
    write_text(path, json.dumps(whole, indent=1) + "\n")


def load_object(path: Path, of: str = "") -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        path: of the file.
        of: for messages, the command that writes such files.

    Raises:
        UsageError: the file is missing, truncated, or no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} is not a result file{f' of {of}' if of else ''}")
    return data


def read_data(path: Path, kind: FileKind) -> dict[str, Any]:
    """What a result file holds behind its kind and schema, whole if it is of an older schema.

    Raises:
        UsageError: it is missing, truncated, or of another kind or schema.
    """
    data = load_object(path, kind.command)
    if data.pop("kind", None) != kind.kind:
        raise UsageError(f"{path} is not a result file of {kind.command}")
    version = _known_version(path, kind, data.pop("schema_version", None))
    return {**kind.older.get(version, {}), **data}


def _known_version(path: Path, kind: FileKind, version: object) -> int:
    """The schema version that a file names.

    Raises:
        UsageError: it cannot be read, with the remedy.
    """
    # Not by ==, for which true is 1.
    if type(version) is int and version in (kind.schema_version, *kind.older):
        return version
    newer = type(version) is int and version > kind.schema_version
    remedy = "update slidesparse" if newer else f"measure again with {kind.command}"
    raise UsageError(
        f"{path} has schema version {version}, this is {kind.schema_version}; {remedy}"
    )


def read_record(path: Path, kind: FileKind, adapter: TypeAdapter[R]) -> R:
    """The record that a result file holds.

    Args:
        path: of the file.
        kind: that it must be.
        adapter: of the record.

    Raises:
        UsageError: it is missing, truncated, of another kind or schema, or holds a wrong value,
            which is named.
    """
    data = read_data(path, kind)
    for name in STAMPS:
        if name not in data:
            raise UsageError(f"{path} is damaged: it lacks '{name}'")
    try:
        # As JSON: there a list may stand for a tuple and an object for a dataclass.
        return adapter.validate_json(json.dumps(data))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the record"
        if first["type"] == "missing":
            raise UsageError(f"{path} is damaged: it lacks '{place}'") from error
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{path} is damaged: {place}: {reason[:1].lower()}{reason[1:]}") from error


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV with a header line.

    Raises:
        UsageError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def as_cell(value: float | None) -> str:
    """A number as a CSV holds it, six digits long; "" for none."""
    return "" if value is None else f"{value:.6g}"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; what is no plain file is written to, never replaced.

    Raises:
        UsageError: the file cannot be written.
    """
    target = path.resolve()
    temporary = target.with_name(target.name + ".part")
    try:
        if path.exists() and not path.is_file():
            # A device or a pipe, never replaced. The pipe behind /dev/stdout has no other name.
            path.write_text(text, encoding="utf-8", newline="")
            return
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def source_commit() -> str:
    """The commit of the checkout that this code runs from, "-dirty" if it was changed.

    An installed package has no checkout; SLIDESPARSE_COMMIT may name its commit.
    """
    told = os.environ.get("SLIDESPARSE_COMMIT", "")
    if told:
        return told
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return "unknown"
    try:
        head = _git(folder, "rev-parse", "HEAD")
        dirty = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}-dirty" if dirty else head


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return done.stdout.strip()
