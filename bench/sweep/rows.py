"""What the result file of `slidesparse bench prefill` or `decode` says, as rows."""

from __future__ import annotations

from collections.abc import Iterator

from slidesparse.bench.rows import Row, Value, model_name
from slidesparse.bench.sweep.compare import STOCK, Comparison
from slidesparse.bench.sweep.job import Mode, Stage, Variant
from slidesparse.bench.sweep.plan import Block
from slidesparse.bench.sweep.record import FORM, Cell, SweepRecord, read_json
from slidesparse.candidate import Provenance

__all__ = ["FORM", "read_json", "rows", "step_variant", "step_workload"]


def step_workload(
    stage: Stage, engine: str, model: str, tp: int, dtype: str, mode: Mode, m: int
) -> dict[str, Value]:
    """What must be equal for two steps to be compared.

    The pattern is no part of it: a step of stock on full weights and one of ours on pruned weights
    do the same for the user. Both are in the variant.
    """
    return {
        "what": "step",
        "stage": str(stage),
        "engine": engine,
        "model": model,
        "tp": tp,
        "dtype": dtype,
        "mode": str(mode),
        "m": m,
    }


def step_variant(variant: Variant) -> dict[str, Value]:
    """Whose linears run, and the pattern of the weights."""
    return {"system": str(variant.system), "pattern": str(variant.pattern)}


def rows(record: SweepRecord) -> tuple[Row, ...]:
    """Tokens per second of every variant at every M that has a time.

    Stock is measured before and after ours: its row is the mean of both runs, and its spread holds
    their difference, so that half of it is what the sweep's own tables doubt.
    """
    return tuple(row for block in record.blocks for row in _rows(record, block))


def _rows(record: SweepRecord, block: Block) -> Iterator[Row]:
    compared = Comparison(record, block)
    tp = record.settings.get("tp")
    for m in compared.ms:
        workload = step_workload(
            record.stage,
            record.engine,
            model_name(block.model),
            tp if isinstance(tp, int) else 1,
            str(block.dtype),
            block.mode,
            m,
        )
        for variant in (STOCK, *compared.variants):
            again = (False, True) if variant == STOCK else (False,)
            cells = [compared.cell(variant, m, it) for it in again]
            measured = [cell for cell in cells if cell is not None and cell.figures is not None]
            if not measured:
                continue
            baseline = compared.baseline(m) if variant == STOCK else None
            doubt = None if baseline is None else 2 * baseline.doubt_us
            yield _row(record, workload, variant, measured, doubt)


def _row(
    record: SweepRecord,
    workload: dict[str, Value],
    variant: Variant,
    cells: list[Cell],
    spread_us: float | None,
) -> Row:
    """One row from the runs of a variant.

    Args:
        record: of the sweep.
        workload: of the row.
        variant: of the row.
        cells: with figures, at least one.
        spread_us: of the row; None for that of the one cell.
    """
    figures = [cell.figures for cell in cells if cell.figures is not None]
    us = sum(it.median_us for it in figures) / len(figures)
    rate = 1e6 * cells[0].m / us
    spread = figures[0].spread_us if spread_us is None else spread_us
    ran = None if cells[0].ran is None or not record.ran else record.ran[cells[0].ran]
    return Row(
        workload=workload,
        variant=step_variant(variant),
        metric="throughput",
        unit="tok/s",
        value=rate,
        better="higher",
        provenance=Provenance.MEASURED,
        # To first order: a share of the time is the same share of the rate.
        spread=rate * spread / us,
        tokens_per_s=rate,
        joules_per_token=_mean([it.joules_per_token for it in figures]),
        power_w=_mean([it.power_w for it in figures]),
        how="" if ran is None else ran.get("linears", ""),
    )


def _mean(values: list[float | None]) -> float | None:
    """The mean of what was measured, None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
