"""Result files: what a search measured, with everything that is needed to read it critically.

One JSON form, versioned, written by the tool and never by hand; a CSV beside it for spreadsheets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, PlainValidator

from slidesparse import __version__
from slidesparse.bench.fields import (
    STRICT,
    Amount,
    Layer,
    Machine,
    Name,
    Positive,
    Problem,
    Text,
    plain_reader,
)
from slidesparse.bench.record_form import RecordForm, Stamped
from slidesparse.bench.result_file import FileKind, write_data, write_rows
from slidesparse.bench.schema import PlainSchema
from slidesparse.bench.workload import LayerProblem
from slidesparse.candidate import ProblemResult, Provenance
from slidesparse.devices import Fingerprint
from slidesparse.problem import GemmProblem
from slidesparse.serialize import to_plain

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
class SearchRecord(Stamped):
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
    form = FORM.read(path)
    return SearchRecord(
        model=form.model,
        tp=form.tp,
        fingerprint=form.fingerprint,
        settings=form.settings,
        seconds=form.seconds,
        interrupted=form.interrupted,
        layers=tuple(LayerProblem(it.layer, it.tokens, it.problem) for it in form.layers),
        results={it.result.problem: (it.result, it.provenance) for it in form.results},
        skipped={it.problem: it.reason for it in form.skipped},
        commit=form.commit,
        version=form.version,
        created=form.created,
    )


class _Form(BaseModel):
    model_config = STRICT


class LayerForm(_Form):
    """A layer at one M and pattern, as a file holds it."""

    layer: Layer
    tokens: Positive
    problem: Problem


class ResultForm(_Form):
    """What was found for a problem, as a file holds it."""

    provenance: Provenance
    result: Annotated[
        ProblemResult, PlainValidator(plain_reader(ProblemResult)), PlainSchema(ProblemResult)
    ]


class SkippedForm(_Form):
    """A problem without a result, as a file holds it."""

    problem: Problem
    reason: Text


class SearchForm(_Form):
    """A search as a file holds it; `SearchRecord` says what the fields are."""

    model: Name
    tp: Positive
    fingerprint: Machine
    settings: dict[Name, Any]
    seconds: Amount
    interrupted: bool
    layers: list[LayerForm]
    results: list[ResultForm]
    skipped: list[SkippedForm]
    commit: Text
    version: Text
    created: Text


FORM = RecordForm(KIND, SearchForm)


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
