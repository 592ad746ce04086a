"""What the result file of `slidesparse eval` says, as rows."""

from __future__ import annotations

from collections.abc import Iterator

from slidesparse.bench.accuracy.record import (
    FORM,
    AccuracyRecord,
    AccuracyRow,
    TextSource,
    read_json,
)
from slidesparse.bench.rows import Row, Value, model_name
from slidesparse.candidate import Provenance
from slidesparse.stats import NORMAL_QUARTILES

__all__ = ["FORM", "read_json", "rows", "text_name"]

NONE = "none"
"""Where nothing was pruned, or nothing quantised."""

BETTER = ("acc", "exact_match", "f1")
"""Beginnings of the task metrics that are known to be better when higher; others have no row."""


def text_name(text: TextSource) -> str:
    """A text as workloads name it: two files of one name may hold two texts."""
    return f"{text.name} {text.sha256[:12]}".strip()


def rows(record: AccuracyRecord) -> tuple[Row, ...]:
    """Perplexity, loss increase, agreement and divergence of every variant, and its tasks."""
    workload: dict[str, Value] = {
        "what": "accuracy",
        "model": model_name(record.model),
        "text": text_name(record.evaluation),
        "tokens": record.evaluation.tokens,
    }
    # A variant that was measured twice counts once, as it was last.
    found = {row.key: row for it in record.rows for row in _rows(workload, it)}
    return tuple(found.values())


def _rows(workload: dict[str, Value], it: AccuracyRow) -> Iterator[Row]:
    variant: dict[str, Value] = {
        "pattern": "recipe" if it.recipe else str(it.pattern),
        "method": NONE if it.method is None else str(it.method),
        "dtype": NONE if it.dtype is None else str(it.dtype),
    }
    measured = Provenance.MEASURED
    if it.perplexity is not None:
        yield Row(workload, variant, "perplexity", "", it.perplexity, "lower", measured)
    # The interquartile range of a normal distribution with this standard error.
    spread = NORMAL_QUARTILES * it.error
    yield Row(
        workload, variant, "loss increase", "nats/token", it.increase, "lower", measured, spread
    )
    yield Row(workload, variant, "agreement", "", it.agreement, "higher", measured)
    yield Row(workload, variant, "divergence", "nats/token", it.kl, "lower", measured)
    for task, results in it.tasks.items():
        scores = results.items() if isinstance(results, dict) else ()
        for name, score in scores:
            if name.startswith(BETTER) and "stderr" not in name and isinstance(score, int | float):
                yield Row(workload, variant, f"{task} {name}", "", float(score), "higher", measured)
