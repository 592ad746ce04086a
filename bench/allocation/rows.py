"""What the result file of `slidesparse allocate` says, as rows: the outcomes, not each group."""

from __future__ import annotations

from collections.abc import Iterator

from slidesparse.bench.allocation.record import FORM, AllocationRecord, OutcomeRow, read_json
from slidesparse.bench.rows import Row, Value, model_name
from slidesparse.candidate import Provenance
from slidesparse.stats import NORMAL_QUARTILES

__all__ = ["FORM", "read_json", "rows"]


def rows(record: AllocationRecord) -> tuple[Row, ...]:
    """Time and loss of the dense model, of uniform patterns, of the rounds and of the choice.

    Times are sums over the groups of what searches measured. Sensitivities by group are what the
    choice was made from; they are in the record and have no rows.
    """
    workload: dict[str, Value] = {
        "what": "allocation",
        "model": model_name(record.model),
        "gemm": record.gemm,
        "m": ",".join(map(str, record.settings.get("m", ()))),
        "text tokens": record.tokens,
    }
    found = {row.key: row for it in record.outcomes for row in _rows(workload, it)}
    return tuple(found.values())


def _rows(workload: dict[str, Value], it: OutcomeRow) -> Iterator[Row]:
    variant: dict[str, Value] = {"allocation": it.name}
    measured, derived = Provenance.MEASURED, Provenance.DERIVED
    yield Row(workload, variant, "time", "us", it.us, "lower", derived)
    yield Row(workload, variant, "loss", "nats/token", it.loss, "lower", measured)
    # The interquartile range of a normal distribution with this standard error.
    spread = NORMAL_QUARTILES * it.error
    yield Row(
        workload, variant, "loss increase", "nats/token", it.increase, "lower", measured, spread
    )
