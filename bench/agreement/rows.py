"""What the result file of `slidesparse bench agreement` says, as rows."""

from __future__ import annotations

import math
from collections.abc import Iterator

from slidesparse.bench.accuracy.rows import text_name
from slidesparse.bench.agreement.record import FORM, AgreementRecord, Pair, Served, read_json
from slidesparse.bench.rows import Row, Value, model_name
from slidesparse.candidate import Provenance

__all__ = ["FORM", "read_json", "rows"]

MEASURED = Provenance.MEASURED


def rows(record: AgreementRecord) -> tuple[Row, ...]:
    """Perplexity and times to start of each vLLM, and how far each is from the other."""
    return tuple(row for row in _all(record))


def _all(record: AgreementRecord) -> Iterator[Row]:
    for it in record.checkpoints:
        base: dict[str, Value] = {
            "what": "serving",
            "model": model_name(it.name),
            "text": text_name(record.text),
        }
        for served in it.served:
            yield from _served(base, served)
        for pair in it.pairs:
            yield from _pair({**base, "what": "agreement"}, pair)


def _served(base: dict[str, Value], it: Served) -> Iterator[Row]:
    workload: dict[str, Value] = {**base, "mode": str(it.mode)}
    variant: dict[str, Value] = {"system": str(it.system)}
    how = it.ran.get("linears", "")
    for metric, unit, value in (
        ("perplexity", "", it.perplexity),
        ("load time", "s", it.load_s),
        ("start time", "s", it.start_s),
    ):
        if value is not None and math.isfinite(value):
            yield Row(workload, variant, metric, unit, value, "lower", MEASURED, how=how)


def _pair(base: dict[str, Value], it: Pair) -> Iterator[Row]:
    workload: dict[str, Value] = {
        **base,
        "tokens": it.tokens,
        "reference": f"{it.reference_system}, {it.reference_mode}",
    }
    variant: dict[str, Value] = {"system": str(it.system), "mode": str(it.mode)}
    yield Row(workload, variant, "agreement", "", it.agreement, "higher", MEASURED)
    apart = abs(it.perplexity)
    yield Row(workload, variant, "perplexity difference", "", apart, "lower", MEASURED)
