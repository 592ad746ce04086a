"""Every kind of result file, and the one reader for all of them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from slidesparse.bench.result_file import FileKind, load_object
from slidesparse.bench.rows import Key, ResultFile, Row
from slidesparse.bench.schema import Definition, whole_schema
from slidesparse.devices import Fingerprint
from slidesparse.errors import UsageError
from slidesparse.libraries import ABSENT

MODULES = (
    "slidesparse.bench.search.rows",
    "slidesparse.bench.kernels.rows",
    "slidesparse.bench.linear.rows",
    "slidesparse.bench.sweep.rows",
    "slidesparse.bench.accuracy.rows",
    "slidesparse.bench.allocation.rows",
    "slidesparse.bench.agreement.rows",
    "slidesparse.bench.search.effort_record",
    "slidesparse.bench.published.record",
    "slidesparse.bench.compare.record",
    "slidesparse.bench.attention.rows",
    "slidesparse.bench.capacity.record",
    "slidesparse.bench.capacity.check_record",
    "slidesparse.bench.counters.rows",
)
"""One module per kind. Each has `FORM`, `read_json(path)` and `rows(record)`.

A record has `fingerprint`, `settings`, `commit`, `version` and `created`, where it needs them
`versions` of other software, and `machine`, its heading, where its fingerprint is None.
"""

VERSIONS = ("driver", "cublaslt", "cusparselt", "torch", "triton")
"""Fields of a fingerprint that are versions of software."""


def kind_modules() -> Iterator[ModuleType]:
    """The modules of all kinds, each imported when it is asked for."""
    return (importlib.import_module(name) for name in MODULES)


def result_schema() -> dict[str, Any]:
    """JSON Schema of a result file of any kind, older schema versions that can be read included."""
    return whole_schema(
        [
            Definition(module.FORM.kind.kind, version, schema)
            for module in kind_modules()
            for version, schema in module.FORM.schemas().items()
        ]
    )


def read_results(path: Path) -> ResultFile:
    """Read a result file of any kind.

    Args:
        path: of the file.

    Raises:
        UsageError: it is missing, truncated, of no kind or schema that this version knows, or holds
            wrong values or two figures of one thing; one line that names the file and the place.
    """
    module = _module_of(path)
    kind: FileKind = module.FORM.kind
    record = module.read_json(path)
    rows: tuple[Row, ...] = module.rows(record)
    _require_once(path, rows)
    fingerprint: Fingerprint | None = record.fingerprint
    return ResultFile(
        path=path,
        kind=kind.kind,
        command=kind.command,
        fingerprint=fingerprint,
        machine=record.machine if fingerprint is None else fingerprint.name,
        versions=_versions(record, fingerprint),
        settings=record.settings,
        commit=record.commit,
        created=record.created,
        rows=rows,
        record=record,
    )


def _require_once(path: Path, rows: tuple[Row, ...]) -> None:
    """Refuse a file of which two rows are about the same: any reader would take one of them.

    Raises:
        UsageError: it is; names both figures.
    """
    seen: dict[Key, Row] = {}
    for row in rows:
        other = seen.setdefault(row.key, row)
        if other is not row:
            what = " ".join(
                f"{name}={value}" for name, value in {**row.workload, **row.variant}.items()
            )
            raise UsageError(
                f"{path} is damaged: it gives {row.metric} of {what} twice: {other.value:g} and "
                f"{row.value:g} {row.unit}".rstrip()
            )


def _module_of(path: Path) -> ModuleType:
    """The module of the kind that a file names.

    Raises:
        UsageError: there is none.
    """
    kind = load_object(path).get("kind")
    known = []
    for module in kind_modules():
        if module.FORM.kind.kind == kind:
            return module
        known.append(module.FORM.kind.kind)
    if kind is None:
        raise UsageError(f"{path} is not a result file: it names no kind")
    near = difflib.get_close_matches(str(kind), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    raise UsageError(f"{path} is of an unknown kind {_short(kind)}; {hint}")


def _versions(record: Any, fingerprint: Fingerprint | None) -> dict[str, str]:
    """What the fingerprint, the record and the record's own list of versions say."""
    own = dict(getattr(record, "versions", {}))
    if fingerprint is None:
        # Of what others ran; this package only read it.
        return own
    fields = asdict(fingerprint)
    found = {name: fields[name] for name in VERSIONS if fields[name] != ABSENT}
    return {"slidesparse": record.version, **found, **own}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
