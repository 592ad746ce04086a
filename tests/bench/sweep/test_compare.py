"""Which differences are real: outside the spread and the drift of stock, or none."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from sweep_records import (
    BLOCK,
    OURS,
    OURS_SIX,
    STOCK,
    STOCK_SIX,
    make_heading,
    make_record,
    outcome,
)

from slidesparse.bench.sweep.book import SweepBook
from slidesparse.bench.sweep.compare import CSV_COLUMNS, Comparison, write_csv
from slidesparse.bench.sweep.runner import Outcome


def compare(*outcomes: Outcome) -> Comparison:
    book = SweepBook(make_heading())
    for each in outcomes:
        book.add(each)
    return Comparison(book.record(False), BLOCK)


def test_the_baseline_is_both_runs_of_stock() -> None:
    compared = Comparison(make_record(), BLOCK)
    baseline = compared.baseline(512)
    assert baseline.us == 1050.0
    assert baseline.drift == pytest.approx(0.1)
    assert baseline.doubt_us == (100.0 + 20.0) / 2
    assert compared.ms == (512, 4096)
    assert compared.variants == (OURS, OURS_SIX)


@pytest.mark.parametrize(
    ("us", "spread", "clear"),
    [
        # Stock took 1000 and 1100: 1050, give or take 50, and 10 for its spread.
        (989.0, 0.0, True),
        (991.0, 0.0, False),
        (1109.0, 0.0, False),
        (1111.0, 0.0, True),
        (985.0, 10.0, False),
        (984.0, 10.0, True),
    ],
)
def test_within_spread_and_drift_there_is_no_difference(
    us: float, spread: float, clear: bool
) -> None:
    ratio = compare(
        outcome(STOCK, 512, 1000.0, 20.0),
        outcome(OURS, 512, us, spread),
        outcome(STOCK, 512, 1100.0, 20.0, again=True),
    ).ratio(OURS, 512)
    assert ratio is not None
    assert ratio.value == pytest.approx(1050.0 / us)
    assert ratio.clear is clear


def test_one_run_of_stock_is_a_baseline_without_a_drift() -> None:
    compared = compare(outcome(STOCK, 512, 1000.0), outcome(OURS, 512, 500.0))
    assert (compared.baseline(512).us, compared.baseline(512).drift) == (1000.0, None)
    ratio = compared.ratio(OURS, 512)
    assert ratio is not None
    assert ratio.value == 2.0
    only_again = compare(outcome(STOCK, 512, 800.0, again=True), outcome(OURS, 512, 500.0))
    assert only_again.baseline(512).us == 800.0
    assert only_again.variants == (OURS,)


def test_without_either_time_there_is_no_ratio() -> None:
    compared = Comparison(make_record(), BLOCK)
    assert compared.ratio(OURS_SIX, 4096) is None, "it crashed"
    assert compared.ratio(OURS_SIX, 64) is None
    assert compare(outcome(OURS, 512, 1.0)).ratio(OURS, 512) is None
    assert compare(outcome(OURS, 512, 1.0)).baseline(512).doubt_us == 0.0


def test_the_harder_baseline_is_stock_on_the_same_weights() -> None:
    compared = compare(
        outcome(STOCK, 512, 1000.0),
        outcome(STOCK_SIX, 512, 900.0),
        outcome(OURS, 512, 950.0),
        outcome(OURS_SIX, 512, 880.0),
        outcome(STOCK, 512, 1020.0, again=True),
    )
    harder = compared.harder(OURS_SIX, 512)
    assert harder is not None
    assert harder.value == pytest.approx(900.0 / 880.0)
    assert harder.clear, "20 us apart, half of 2 % of drift is 9 us"
    assert compared.harder(OURS, 512) is None, "dense weights have no zeros"
    assert compared.harder(STOCK_SIX, 512) is None
    assert compared.ratio(STOCK_SIX, 512) is not None


def test_the_csv_has_a_row_per_cell(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    record = make_record()
    write_csv(record, path)
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert len(rows) == len(record.cells) == 8
    assert tuple(rows[0]) == CSV_COLUMNS
    stock, six, crashed, again = rows[0], rows[4], rows[5], rows[7]
    assert (stock["system"], stock["pattern"], stock["m"]) == ("stock", "dense", "512")
    assert (stock["ratio_to_stock"], stock["stock_drift"]) == ("", "0.1000")
    assert (six["system"], six["pattern"], six["mode"]) == ("ours", "6:8", "graphs")
    assert six["ratio_to_stock"] == f"{1050 / 870:.4f}"
    assert (six["clear"], six["step_us"], six["samples"]) == ("1", "870.000", "5")
    assert six["tokens_per_s"] == f"{512e6 / 870:.2f}"
    assert (six["clock_mhz"], six["power_w"], six["joules_per_token"]) == ("1500", "690.5", "0.012")
    assert (six["share_gemm"], six["share_other"]) == ("0.7000", "0.1500")
    assert (crashed["failure"], crashed["reason"]) == ("crash", "killed by SIGSEGV")
    assert crashed["step_us"] == crashed["samples"] == ""
    assert (again["again"], again["wide"], again["largest"]) == ("1", "1", str(2**31))
