"""Which of a sweep's differences are real: ours against both runs of stock, spread and drift known.

A CSV has one row per cell, with these ratios.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slidesparse.bench.result_file import write_rows
from slidesparse.bench.sweep.job import System, Variant
from slidesparse.bench.sweep.plan import Block
from slidesparse.bench.sweep.record import Cell, Figures, SweepRecord

KINDS = ("gemm", "fused", "attention", "other")
"""Of kernels, as tables list their shares."""

STOCK = Variant(System.STOCK)

CSV_COLUMNS = (
    *("stage", "engine", "model", "dtype", "mode", "system", "pattern", "again", "m", "wide"),
    *("step_us", "spread_us", "tokens_per_s", "tokens_per_s_spread"),
    *("ratio_to_stock", "clear", "stock_drift", "ratio_to_stock_same_weights"),
    *("clock_mhz", "power_w", "joules_per_token"),
    *(f"share_{kind}" for kind in KINDS),
    *("largest", "samples", "failure", "reason"),
)


@dataclass(frozen=True)
class Baseline:
    """Stock at one M: what all others of its block are compared with.

    Args:
        first: what it took before ours, None if that failed.
        again: what it took after ours, None if that failed.
    """

    first: Figures | None
    again: Figures | None

    @property
    def us(self) -> float | None:
        """Microseconds of a step: the mean of both runs, or the only one; None without any."""
        both = [run.median_us for run in (self.first, self.again) if run is not None]
        return sum(both) / len(both) if both else None

    @property
    def drift(self) -> float | None:
        """How much slower the second run was, as a share; None without both."""
        if self.first is None or self.again is None:
            return None
        return self.again.median_us / self.first.median_us - 1

    @property
    def doubt_us(self) -> float:
        """Half the difference of the runs and half the larger spread of them, in microseconds."""
        both = [run for run in (self.first, self.again) if run is not None]
        medians = [run.median_us for run in both]
        spread = max((run.spread_us for run in both), default=0.0)
        return (max(medians, default=0.0) - min(medians, default=0.0) + spread) / 2


@dataclass(frozen=True)
class Ratio:
    """Stock's time over that of another cell.

    Args:
        value: above 1 the other is faster.
        clear: whether the difference is larger than the doubt about either.
    """

    value: float
    clear: bool


class Comparison:
    """All ratios of one block.

    Args:
        record: of the sweep.
        block: of it.
    """

    def __init__(self, record: SweepRecord, block: Block) -> None:
        """Sort the cells."""
        self._cells = {(c.key.variant, c.again, c.m): c for c in record.of(block)}
        self.ms = tuple(sorted({m for _, _, m in self._cells}))
        found = dict.fromkeys(variant for variant, _, _ in self._cells)
        self.variants = tuple(variant for variant in found if variant != STOCK)

    def cell(self, variant: Variant, m: int, again: bool = False) -> Cell | None:
        """One cell; None if the sweep has not come to it."""
        return self._cells.get((variant, again, m))

    def baseline(self, m: int) -> Baseline:
        """Both runs of stock."""
        return Baseline(self._figures(STOCK, m), self._figures(STOCK, m, again=True))

    def ratio(self, variant: Variant, m: int) -> Ratio | None:
        """Both runs of stock over a variant; None where one of them has no time."""
        baseline, other = self.baseline(m), self._figures(variant, m)
        if baseline.us is None or other is None:
            return None
        doubt = baseline.doubt_us + other.spread_us / 2
        apart = abs(baseline.us - other.median_us)
        return Ratio(baseline.us / other.median_us, apart > doubt)

    def harder(self, variant: Variant, m: int) -> Ratio | None:
        """Stock on the same pruned weights over ours; None where one of them has no time."""
        if variant.system is not System.OURS or variant.pattern.dense:
            return None
        stock = self._figures(Variant(System.STOCK, variant.pattern), m)
        other = self._figures(variant, m)
        if stock is None or other is None:
            return None
        drift = abs(self.baseline(m).drift or 0.0) * stock.median_us
        doubt = (drift + stock.spread_us + other.spread_us) / 2
        return Ratio(
            stock.median_us / other.median_us, abs(stock.median_us - other.median_us) > doubt
        )

    def _figures(self, variant: Variant, m: int, again: bool = False) -> Figures | None:
        found = self.cell(variant, m, again)
        return None if found is None else found.figures


def write_csv(record: SweepRecord, path: Path) -> None:
    """Write one line per cell.

    Raises:
        UsageError: the file cannot be written.
    """
    write_rows(path, CSV_COLUMNS, _lines(record))


def _lines(record: SweepRecord) -> Iterator[Sequence[object]]:
    compared = {block: Comparison(record, block) for block in record.blocks}
    for cell in record.cells:
        yield [
            *(record.stage, record.engine, cell.model, cell.dtype, cell.mode),
            *(cell.system, cell.pattern, int(cell.again), cell.m, int(cell.wide)),
            *_figures(cell, compared[cell.block]),
            *("" if cell.failure is None else str(cell.failure), cell.reason),
        ]


def _figures(cell: Cell, compared: Comparison) -> Iterator[str]:
    """The columns from step_us to samples, empty where the cell failed."""
    it = cell.figures
    if it is None:
        yield from [""] * (CSV_COLUMNS.index("failure") - CSV_COLUMNS.index("step_us"))
        return
    yield from (f"{it.median_us:.3f}", f"{it.spread_us:.3f}", f"{it.tokens_per_s:.2f}")
    # To first order: a share of the time is the same share of the rate.
    yield f"{it.tokens_per_s * it.spread_us / it.median_us:.2f}"
    variant, drift = cell.key.variant, compared.baseline(cell.m).drift
    ratio = None if variant == STOCK else compared.ratio(variant, cell.m)
    harder = compared.harder(variant, cell.m)
    yield from ("", "") if ratio is None else (f"{ratio.value:.4f}", str(int(ratio.clear)))
    yield "" if drift is None else f"{drift:.4f}"
    yield "" if harder is None else f"{harder.value:.4f}"
    for value in (it.clock_mhz, it.power_w, it.joules_per_token):
        yield "" if value is None else f"{value:.6g}"
    for kind in KINDS:
        yield f"{it.shares[kind]:.4f}" if kind in it.shares else ""
    yield from (str(it.largest), str(len(it.step_us)))
