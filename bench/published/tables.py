"""Reading the tables that the SlideSparse paper's authors published (arXiv 2603.05232).

Two forms of CSV: tokens per second in vLLM, and microseconds of single GEMMs, each for several
GPUs. A table becomes one result file per GPU.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from slidesparse.bench.published.record import PublishedGemm, PublishedRecord, PublishedStep
from slidesparse.bench.rows import model_name
from slidesparse.bench.sweep.job import Stage
from slidesparse.errors import UsageError
from slidesparse.models import load_model, preset_names
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, GemmProblem, default_output, default_scales, parse_dtype

SOURCE = "SlideSparse paper, arXiv 2603.05232, published results"

STEPS = ("gpu", "stage", "model", "dtype", "m", "pattern", "tokens_per_s")
GEMMS = ("gpu", "cc", "dtype", "model", "m", "n", "k", "pattern", "latency_us")
"""Columns of the two tables; others beside them are passed over."""

DENSE_AS_SPARSE = "dense-as-2:4"
"""The table's word for full weights on sparse tensor cores."""

MOST = 2**31 - 1
"""Sizes beyond are no GEMM's; the libraries count in 32 bits."""

T = TypeVar("T")


@dataclass(frozen=True)
class Imported:
    """What became of a table.

    Args:
        record: of the GPU that was asked for.
        left_out: how many of its lines have no place beside our figures, by the reason.
    """

    record: PublishedRecord
    left_out: Mapping[str, int]


class _NoPlace(Exception):
    """A line that nothing of ours stands beside; says why."""


@dataclass(frozen=True)
class _Line:
    """One line of a table.

    Args:
        where: file and number, for messages.
        cells: by column.
    """

    where: str
    cells: Mapping[str, str]

    def read(self, column: str, parse: Callable[[str], T]) -> T:
        """A cell as `parse` takes it.

        Raises:
            UsageError: it does not; names line and column.
        """
        try:
            return parse(self.cells[column].strip())
        except ValueError as error:
            raise UsageError(f"{self.where}, column {column!r}: {error}") from error


def import_table(path: Path, gpu: str, source: str = SOURCE) -> Imported:
    """Read the lines of one GPU.

    Args:
        path: of the CSV; its header says which of the two tables it is.
        gpu: as the table names it, in upper or lower case.
        source: who published the table, and where.

    Raises:
        UsageError: the table cannot be read, is neither of the two, lacks the GPU, holds a wrong
            value, or nothing that has a place beside our figures; says where.
    """
    content, lines = _read(path)
    header = tuple(lines[0].cells)
    form = next((form for form in (STEPS, GEMMS) if set(form) <= set(header)), None)
    if form is None:
        raise UsageError(
            f"{path}: line 1: its columns are those of no known table ({','.join(header)}); "
            f"known: {','.join(STEPS)} and {','.join(GEMMS)}"
        )
    own = _of_gpu(path, lines, gpu)
    steps, gemms, left_out = _figures(own, form is STEPS)
    if not steps and not gemms:
        raise UsageError(
            f"{path} has nothing of {gpu} that stands beside figures of ours: {'; '.join(left_out)}"
        )
    settings = {"table": path.name, "sha256": hashlib.sha256(content).hexdigest()}
    record = PublishedRecord(
        gpu=own[0].cells["gpu"].strip(),
        source=source,
        fingerprint=None,
        versions=_VERSIONS if form is STEPS else {},
        settings={**settings, **(_STEP_SETTINGS if form is STEPS else _GEMM_SETTINGS)},
        steps=steps,
        gemms=gemms,
    )
    return Imported(record.stamped(), left_out)


def _figures(
    lines: list[_Line], end_to_end: bool
) -> tuple[tuple[PublishedStep, ...], tuple[PublishedGemm, ...], dict[str, int]]:
    """What the lines say, and how many have no place beside our figures, by the reason."""
    steps: list[PublishedStep] = []
    gemms: list[PublishedGemm] = []
    seen: dict[object, _Line] = {}
    left_out: Counter[str] = Counter()
    for line in lines:
        try:
            if end_to_end:
                step = _step(line)
                _once(seen, replace(step, tokens_per_s=1.0), line)
                steps.append(step)
                continue
            for gemm in _gemms(line):
                _once(seen, replace(gemm, us=1.0), line)
                gemms.append(gemm)
        except _NoPlace as error:
            left_out[str(error)] += 1
    return tuple(steps), tuple(gemms), dict(left_out)


def _once(seen: dict[object, _Line], what: object, line: _Line) -> None:
    """Note what a line is about.

    Raises:
        UsageError: another line is about the same.
    """
    if what in seen:
        before = seen[what].where.rpartition(": ")[2]
        raise UsageError(f"{line.where} is about the same as {before}: {dict(line.cells)}")
    seen[what] = line


_VERSIONS = {"vllm": "0.13"}

_STEP_SETTINGS = {
    "engine": "vllm",
    "tp": 1,
    "modes": ["graphs"],
    "assumed": "CUDA graphs and one GPU, as vLLM does unless told otherwise; not in the table",
}
_GEMM_SETTINGS = {
    "assumed": "FP8 to BF16, dense INT8 to INT32, sparse INT8 to BF16; the table does not say it",
}


def _read(path: Path) -> tuple[bytes, list[_Line]]:
    """The file's content and its lines, one at least.

    Raises:
        UsageError: it cannot be read, has no line, one of another length than the header, or two
            columns of one name.
    """
    try:
        content = path.read_bytes()
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header, *rest = [(reader.line_num, cells) for cells in reader if cells] or [(1, [])]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is no CSV: {error}") from error
    names = [name.strip() for name in header[1]]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{path}: line {header[0]}: two columns are named {twice!r}; keep one")
    for number, cells in rest:
        if len(cells) != len(names):
            raise UsageError(
                f"{path}: line {number}: {len(cells)} columns, the header has {len(names)}"
            )
    if not rest:
        raise UsageError(f"{path}: no lines after the header; it is empty or truncated")
    lines = [
        _Line(f"{path}: line {number}", dict(zip(names, cells, strict=True)))
        for number, cells in rest
    ]
    return content, lines


def _of_gpu(path: Path, lines: list[_Line], gpu: str) -> list[_Line]:
    """The lines of one GPU.

    Raises:
        UsageError: there are none, with the nearest name.
    """
    wanted = gpu.strip().lower()
    own = [line for line in lines if line.cells["gpu"].strip().lower() == wanted]
    if own:
        return own
    known = {name.lower(): name for name in (line.cells["gpu"].strip() for line in lines)}
    near = difflib.get_close_matches(wanted, known, n=1)
    hint = f"did you mean {known[near[0]]}? It" if near else "it"
    raise UsageError(f"{path} has no GPU {gpu!r}; {hint} has {', '.join(known.values())}")


def _step(line: _Line) -> PublishedStep:
    return PublishedStep(
        stage=line.read("stage", lambda text: Stage(text.lower())),
        model=_model(line),
        dtype=_dtype(line),
        m=line.read("m", _count),
        pattern=line.read("pattern", Pattern.parse),
        tokens_per_s=line.read("tokens_per_s", _positive),
    )


def _gemms(line: _Line) -> Iterator[PublishedGemm]:
    """One per layer of the model that has this shape."""
    model, dtype = _model(line), _dtype(line)
    m, n, k = (line.read(name, _count) for name in ("m", "n", "k"))
    us = line.read("latency_us", _positive)
    as_sparse = line.cells["pattern"].strip() == DENSE_AS_SPARSE
    pattern = DENSE if as_sparse else line.read("pattern", Pattern.parse)
    sparse = as_sparse or not pattern.dense
    out = DType.BF16 if sparse else default_output(dtype)
    problem = GemmProblem(m, n, k, dtype, out, default_scales(out), pattern)
    layers = [it.name for it in load_model(model).linears(1) if (it.n, it.k) == (n, k)]
    if not layers:
        raise _NoPlace(f"{model} has no linear of {n} x {k}")
    for layer in layers:
        yield PublishedGemm(model, layer, problem, as_sparse, us)


def _model(line: _Line) -> str:
    name = line.read("model", _model_name)
    if name not in preset_names():
        raise _NoPlace(f"{name} is no preset")
    return name


def _model_name(text: str) -> str:
    if not text:
        raise ValueError("it is empty; name the model")
    return model_name(text)


def _dtype(line: _Line) -> DType:
    text = line.cells["dtype"].strip()
    if text.lower() in ("bf16", "fp16"):
        raise _NoPlace(f"{text} is not W8A8")
    return line.read("dtype", parse_dtype)


def _count(text: str) -> int:
    digits = text.lstrip("0") if text.isascii() and text.isdigit() else ""
    if not digits:
        raise ValueError(f"{text!r} is not a positive whole number")
    # Python itself refuses to read thousands of digits.
    if len(digits) > len(str(MOST)) or int(digits) > MOST:
        raise ValueError(f"{digits if len(digits) <= 20 else digits[:17] + '...'} is over {MOST}")
    return int(digits)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{text!r} is not a positive number")
    return value
