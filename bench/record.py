"""Result files: what a search measured, with everything that is needed to read it critically.

One JSON form, versioned, written by the tool and never by hand; a CSV beside it for spreadsheets.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from slidesparse import __version__
from slidesparse.bench.workload import LayerProblem
from slidesparse.candidate import ProblemResult, Provenance
from slidesparse.devices import Fingerprint
from slidesparse.errors import UsageError
from slidesparse.models import LinearLayer
from slidesparse.problem import GemmProblem
from slidesparse.serialize import DataError, from_plain, to_plain

KIND = "slidesparse-search"
SCHEMA_VERSION = 1

CSV_COLUMNS = (
    "layer",
    "count",
    "tokens",
    "m",
    "n",
    "k",
    "dtype",
    "out",
    "scales",
    "pattern",
    "rank",
    "backend",
    "sparse",
    "candidate",
    "median_us",
    "spread_us",
    "tflops",
    "ratio_to_dense",
    "error",
    "provenance",
)


@dataclass(frozen=True)
class SearchRecord:
    """One search, as its result file holds it.

    Args:
        model: name as it was given, and the tensor-parallel size.
        tp: tensor-parallel size.
        fingerprint: of the machine.
        settings: the options of the command.
        seconds: wall time of the search.
        interrupted: whether it was stopped by hand.
        layers: every (layer, M, pattern) that was asked for.
        results: by problem, with their provenance.
        skipped: problems without a result, with the reason.
        commit: of the source, "unknown" outside a checkout.
        version: of the package.
        created: UTC time in ISO 8601.
    """

    model: str
    tp: int
    fingerprint: Fingerprint
    settings: Mapping[str, Any]
    seconds: float
    interrupted: bool
    layers: tuple[LayerProblem, ...]
    results: Mapping[GemmProblem, tuple[ProblemResult, Provenance]]
    skipped: Mapping[GemmProblem, str]
    commit: str = ""
    version: str = __version__
    created: str = ""

    def stamped(self) -> SearchRecord:
        """The record with commit and time of now."""
        from dataclasses import replace

        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return replace(self, commit=source_commit(), created=now)


def write_json(record: SearchRecord, path: Path) -> None:
    """Write the result file; the folder must exist.

    Raises:
        UsageError: the file cannot be written.
    """
    data = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "version": record.version,
        "commit": record.commit,
        "created": record.created,
        "model": record.model,
        "tp": record.tp,
        "fingerprint": to_plain(record.fingerprint),
        "settings": dict(record.settings),
        "seconds": record.seconds,
        "interrupted": record.interrupted,
        "layers": [
            {
                "layer": to_plain(item.layer),
                "tokens": item.tokens,
                "problem": to_plain(item.problem),
            }
            for item in record.layers
        ],
        "results": [
            {"provenance": str(provenance), "result": to_plain(result)}
            for result, provenance in record.results.values()
        ],
        "skipped": [
            {"problem": to_plain(problem), "reason": reason}
            for problem, reason in record.skipped.items()
        ],
    }
    write_text(path, json.dumps(data, indent=1) + "\n")


def read_json(path: Path) -> SearchRecord:
    """Read a result file back.

    Raises:
        UsageError: it is missing, truncated, of another kind or schema, or holds wrong values.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise UsageError(f"{path} is not a result file of slidesparse search")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema version {data.get('schema_version')}, this is {SCHEMA_VERSION}"
        )
    try:
        return _from_data(data)
    except KeyError as error:
        raise UsageError(f"{path} is damaged: it lacks {error}") from error
    except (AttributeError, DataError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged: {error}") from error


def _from_data(data: Mapping[str, Any]) -> SearchRecord:
    results = {}
    for item in data["results"]:
        result = from_plain(ProblemResult, item["result"])
        results[result.problem] = (result, Provenance(item["provenance"]))
    return SearchRecord(
        model=data["model"],
        tp=data["tp"],
        fingerprint=from_plain(Fingerprint, data["fingerprint"]),
        settings=dict(data["settings"]),
        seconds=float(data["seconds"]),
        interrupted=data["interrupted"],
        layers=tuple(
            LayerProblem(
                from_plain(LinearLayer, item["layer"]),
                item["tokens"],
                from_plain(GemmProblem, item["problem"]),
            )
            for item in data["layers"]
        ),
        results=results,
        skipped={from_plain(GemmProblem, i["problem"]): i["reason"] for i in data["skipped"]},
        commit=data["commit"],
        version=data["version"],
        created=data["created"],
    )


def write_csv(record: SearchRecord, path: Path) -> None:
    """Write one row per layer, M, pattern and ranked candidate.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(CSV_COLUMNS)
            for item in record.layers:
                writer.writerows(_rows(record, item))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _rows(record: SearchRecord, item: LayerProblem) -> Sequence[Sequence[object]]:
    held = record.results.get(item.problem)
    if held is None:
        return []
    result, provenance = held
    problem = item.problem
    return [
        [
            item.layer.name,
            item.layer.count,
            item.tokens,
            problem.m,
            problem.n,
            problem.k,
            str(problem.dtype),
            str(problem.out),
            str(problem.scales),
            str(problem.pattern),
            rank,
            m.candidate.backend,
            int(m.candidate.sparse),
            m.candidate.label,
            f"{m.median_us:.3f}",
            f"{m.spread_us:.3f}",
            f"{problem.tflops(m.median_us):.2f}",
            f"{result.baseline.median_us / m.median_us:.4f}" if result.baseline else "",
            f"{m.error:.3e}",
            str(provenance),
        ]
        for rank, m in enumerate(result.ranked, start=1)
    ]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; what is no plain file is written to, never replaced.

    Raises:
        UsageError: the file cannot be written.
    """
    target = path.resolve()
    temporary = target.with_name(target.name + ".part")
    try:
        if target.exists() and not target.is_file():
            target.write_text(text, encoding="utf-8")  # A device or a pipe: never replaced.
            return
        temporary.write_text(text, encoding="utf-8")
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
