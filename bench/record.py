"""Result files: what a search measured, with everything that is needed to read it critically.

One JSON form, versioned, written by the tool and never by hand; a CSV beside it for spreadsheets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slidesparse import __version__
from slidesparse.bench.result_file import (
    FileKind,
    read_data,
    source_commit,
    write_data,
    write_rows,
)
from slidesparse.bench.workload import LayerProblem
from slidesparse.candidate import ProblemResult, Provenance, timestamp
from slidesparse.devices import Fingerprint
from slidesparse.errors import UsageError
from slidesparse.models import LinearLayer
from slidesparse.problem import GemmProblem
from slidesparse.serialize import DataError, from_plain, to_plain

KIND = FileKind("slidesparse-search", 1, "slidesparse search")

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
        return replace(self, commit=source_commit(), created=timestamp())


def write_json(record: SearchRecord, path: Path) -> None:
    """Write the result file; the folder must exist.

    Raises:
        UsageError: the file cannot be written.
    """
    data = {
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
    write_data(path, KIND, data)


def read_json(path: Path) -> SearchRecord:
    """Read a result file back.

    Raises:
        UsageError: it is missing, truncated, of another kind or schema, or holds wrong values.
    """
    data = read_data(path, KIND)
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
    lines = (line for item in record.layers for line in _rows(record, item))
    write_rows(path, CSV_COLUMNS, lines)


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
