"""Rows of a sweep: ours against stock in one file, ours here against ours there in two."""

from __future__ import annotations

import pytest
from sweep_records import make_record

from slidesparse.bench.rows import Row
from slidesparse.bench.sweep.compare import Comparison
from slidesparse.bench.sweep.job import System, Variant
from slidesparse.bench.sweep.rows import rows
from slidesparse.pattern import Pattern


def by_name() -> dict[tuple[str, int], Row]:
    return {
        (f"{row.variant['system']} {row.variant['pattern']}", int(row.workload["m"])): row
        for row in rows(make_record())
    }


def test_systems_and_patterns_share_a_workload() -> None:
    found = by_name()
    assert set(found) == {
        ("stock dense", 512),
        ("stock dense", 4096),
        ("ours dense", 512),
        ("ours dense", 4096),
        ("ours 6:8", 512),
    }
    stock, ours = found["stock dense", 512], found["ours 6:8", 512]
    assert stock.workload == ours.workload
    assert dict(ours.workload) == {
        "what": "step",
        "stage": "prefill",
        "engine": "vllm",
        "model": "qwen2.5-7b",
        "tp": 1,
        "dtype": "fp8_e4m3",
        "mode": "graphs",
        "m": 512,
    }
    assert ours.value == ours.tokens_per_s == pytest.approx(512e6 / 870)
    assert (ours.joules_per_token, ours.power_w, ours.how) == (0.012, 690.5, "ours 6:8")


def test_stock_is_the_mean_of_both_runs_and_doubts_as_the_sweep_does() -> None:
    record = make_record()
    stock = by_name()["stock dense", 512]
    us = 512e6 / stock.value
    assert us == pytest.approx(1050.0)
    compared = Comparison(record, record.blocks[0])
    assert stock.spread is not None
    assert stock.spread / stock.value * us / 2 == pytest.approx(compared.baseline(512).doubt_us)
    assert compared.baseline(512).doubt_us == pytest.approx((100 + 20) / 2)


def test_ratios_of_rows_are_the_ratios_of_the_sweep() -> None:
    record, found = make_record(), by_name()
    ratio = Comparison(record, record.blocks[0]).ratio(
        Variant(System.OURS, Pattern.parse("6:8")), 512
    )
    assert ratio is not None
    both = found["ours 6:8", 512].value / found["stock dense", 512].value
    assert both == pytest.approx(ratio.value)


def test_the_spread_is_a_share_of_the_rate() -> None:
    ours = by_name()["ours 6:8", 512]
    assert ours.spread == pytest.approx(ours.value * 10.0 / 870.0)
