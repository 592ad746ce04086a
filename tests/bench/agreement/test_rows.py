"""Rows of `bench agreement`: what each vLLM measured, and how far ours is from stock."""

from __future__ import annotations

import math

import pytest
from agreement_records import make_checkpoint, make_record

from slidesparse.bench.agreement.rows import rows


def test_each_vllm_has_perplexity_and_times() -> None:
    found = {
        (row.variant["system"], row.workload["mode"], row.metric): row.value
        for row in rows(make_record())
        if row.workload["what"] == "serving"
    }
    assert found["stock", "graphs", "perplexity"] == pytest.approx(math.exp(3.25))
    assert found["ours", "graphs", "load time"] == 2.3
    assert found["stock", "eager", "start time"] == 21.5
    assert len(found) == 12


def test_pairs_name_their_reference() -> None:
    found = {
        (row.workload["reference"], *row.variant.values(), row.metric): row.value
        for row in rows(make_record())
        if row.workload["what"] == "agreement"
    }
    assert found["stock, graphs", "ours", "graphs", "agreement"] == 0.996
    assert found["stock, eager", "stock", "graphs", "agreement"] == 0.997
    assert found["stock, graphs", "ours", "graphs", "perplexity difference"] == 0.001
    assert len(found) == 8


def test_what_was_not_measured_has_no_row() -> None:
    record = make_record(make_checkpoint(loss=None, tokens=0, load_s=None))
    found = {
        row.metric
        for row in rows(record)
        if (row.variant["system"], row.workload.get("mode")) == ("ours", "graphs")
    }
    assert found == {"start time"}
