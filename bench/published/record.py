"""Result files of `slidesparse results import`: figures that another project published.

One JSON form, versioned, written by the tool and never by hand. They stand beside figures of our
own and are always labelled: nobody here measured them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict

from slidesparse import __version__
from slidesparse.bench.fields import STRICT, Duration, Name, Positive, Problem, Text, Zeros
from slidesparse.bench.record_form import RecordForm, Stamped
from slidesparse.bench.result_file import FileKind
from slidesparse.bench.rows import Row, Value
from slidesparse.bench.search.rows import DENSE, SPARSE, gemm_workload
from slidesparse.bench.sweep.job import Mode, Stage, System, Variant
from slidesparse.bench.sweep.rows import step_variant, step_workload
from slidesparse.candidate import Provenance
from slidesparse.problem import DType

KIND = FileKind("slidesparse-published", 1, "slidesparse results import")

AS_SPARSE = "dense as 2:4"
"""System of rows of full weights that ran on sparse tensor cores, in twice the K."""


@dataclass(frozen=True)
class PublishedStep:
    """Tokens per second of a model in vLLM.

    Args:
        stage: prefill or decode.
        model: a preset's name.
        dtype: FP8 or INT8.
        m: tokens of a prefill step, or sequences of a decode step.
        pattern: of the weights; dense is what the others are compared with.
        tokens_per_s: as it was published.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    stage: Stage
    model: Name
    dtype: DType
    m: Positive
    pattern: Zeros
    tokens_per_s: Duration


@dataclass(frozen=True)
class PublishedGemm:
    """Microseconds of a GEMM, that of the best algorithm.

    Args:
        model: a preset's name.
        layer: of it.
        problem: sizes, dtypes and the pattern of the weights.
        as_sparse: whether full weights ran on sparse tensor cores.
        us: as it was published.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: Name
    layer: Name
    problem: Problem
    as_sparse: bool
    us: Duration


@dataclass(frozen=True)
class PublishedRecord(Stamped):
    """The published figures of one GPU.

    Args:
        gpu: as the table names it.
        source: who published the figures, and where.
        fingerprint: None: only a machine that was here has one.
        versions: of the software that was measured, by name.
        settings: what the table does not say and was taken to be so.
        steps: of the end-to-end table.
        gemms: of the GEMM table.
        commit: of the source that read the table, "unknown" outside a checkout.
        version: of the package.
        created: UTC time of reading in ISO 8601.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    gpu: Name
    source: Name
    fingerprint: None
    versions: dict[Name, Text]
    settings: dict[Name, Any]
    steps: tuple[PublishedStep, ...]
    gemms: tuple[PublishedGemm, ...]
    commit: Text = ""
    version: Text = __version__
    created: Text = ""

    @property
    def machine(self) -> str:
        """For headings."""
        return f"{self.gpu} (published)"


FORM = RecordForm(KIND, PublishedRecord)
read_json, write_json = FORM.read, FORM.write


def rows(record: PublishedRecord) -> tuple[Row, ...]:
    """Steps as rows of a sweep, GEMMs as rows of a search.

    Dense steps stand beside stock, those of a pattern beside ours.
    """
    return (*map(_step, record.steps), *_gemms(record))


def _step(it: PublishedStep) -> Row:
    system = System.STOCK if it.pattern.dense else System.OURS
    return Row(
        workload=step_workload(it.stage, "vllm", it.model, 1, str(it.dtype), Mode.GRAPHS, it.m),
        variant=step_variant(Variant(system, it.pattern)),
        metric="throughput",
        unit="tok/s",
        value=it.tokens_per_s,
        better="higher",
        provenance=Provenance.PUBLISHED,
        tokens_per_s=it.tokens_per_s,
    )


def _gemms(record: PublishedRecord) -> Iterator[Row]:
    for it in record.gemms:
        system = DENSE if it.problem.pattern.dense else SPARSE
        variant: dict[str, Value] = {"system": AS_SPARSE if it.as_sparse else system}
        yield Row(
            workload=gemm_workload(it.model, it.layer, it.problem.m, it.problem),
            variant=variant,
            metric="time",
            unit="us",
            value=it.us,
            better="lower",
            provenance=Provenance.PUBLISHED,
        )
