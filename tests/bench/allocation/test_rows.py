"""Rows of `slidesparse allocate`: what each allocation costs and takes."""

from __future__ import annotations

from allocation_records import make_record

from slidesparse.bench.allocation.rows import rows
from slidesparse.candidate import Provenance


def test_time_and_loss_of_every_outcome() -> None:
    found = {(row.variant["allocation"], row.metric): row for row in rows(make_record())}
    assert {key: row.value for key, row in found.items()} == {
        ("dense", "time"): 6.0,
        ("dense", "loss"): 2.5,
        ("dense", "loss increase"): 0.0,
        ("chosen", "time"): 5.0,
        ("chosen", "loss"): 2.53,
        ("chosen", "loss increase"): 0.03,
    }
    assert found["chosen", "time"].provenance is Provenance.DERIVED
    assert found["chosen", "loss"].provenance is Provenance.MEASURED
    assert found["chosen", "time"].workload == {
        "what": "allocation",
        "model": "tiny",
        "gemm": "fp8_e4m3 -> bf16, scales rowcol",
        "m": "64",
        "text tokens": 100,
    }
