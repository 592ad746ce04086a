"""Rows of `bench linear`: ours beside torch's, and sums over the model."""

from __future__ import annotations

from linear_records import make_record

from slidesparse.bench.linear.rows import rows


def test_ours_stands_beside_torch() -> None:
    found = {
        (
            *list(row.workload.values())[2:4],
            *list(row.workload.values())[-2:],
            *row.variant.values(),
        ): row.value
        for row in rows(make_record())
        if row.workload["what"] == "linear"
    }
    assert found["o", 16, "fp8_e4m3", "6:8", "ours"] == 40.0
    assert found["o", 16, "fp8_e4m3", "6:8", "torch"] == 48.0
    assert found["o", 64, "fp8_e4m3", "6:8", "ours"] == 90.0
    # Torch's did not run there, and ours failed here.
    assert ("o", 64, "fp8_e4m3", "6:8", "torch") not in found
    assert ("o", 16, "int8", "6:8", "ours") not in found
    assert found["o", 16, "int8", "6:8", "torch"] == 60.0
    assert len(found) == 12


def test_what_ran_is_told_and_not_compared() -> None:
    ours = next(row for row in rows(make_record()) if row.how == "native tile 128x256")
    assert dict(ours.variant) == {"system": "ours"}
    assert (ours.spread, ours.workload["model"]) == (0.5, "tiny")


def test_sums_are_of_whole_models() -> None:
    found = {
        (row.workload["tokens"], row.workload["pattern"], row.variant["system"]): row.value
        for row in rows(make_record())
        if row.workload["what"] == "linears of the model"
    }
    # Two of `o` and three of `down`; at M=64 `down` was not measured.
    assert found == {
        (16, "dense", "torch"): 2 * 50.5 + 3 * 80.0,
        (16, "dense", "ours"): 2 * 50.0 + 3 * 80.0,
        (16, "6:8", "torch"): 2 * 48.0 + 3 * 75.0,
        (16, "6:8", "ours"): 2 * 40.0 + 3 * 100.0,
    }
