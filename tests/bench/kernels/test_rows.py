"""Rows of `bench kernels`: ours, the alternatives that ran, and what the machine can do."""

from __future__ import annotations

from bench_records import make_record

from slidesparse.bench.kernels.rows import rows


def test_ours_and_the_alternatives_that_ran() -> None:
    found = {
        (row.workload["op"], row.workload["m"], *row.variant.values()): row.value
        for row in rows(make_record())
        if row.workload["what"] == "kernel"
    }
    assert found == {
        ("quantize", 16, "ours"): 4.0,
        ("quantize", 16, "vllm", "quant + index_select"): 3.5,
        ("quantize", 16, "vllm", "quant + unfold"): 3.0,
        ("quantize", 16, "torch.compile", "dynamic M"): 6.0,
        ("quantize", 4096, "ours"): 50.0,
        ("quantize", 4096, "torch.compile", "dynamic M"): 60.0,
    }


def test_the_workload_is_the_problem_without_its_model() -> None:
    row = next(row for row in rows(make_record()) if row.workload["what"] == "kernel")
    assert dict(row.workload) == {
        "what": "kernel",
        "op": "quantize",
        "m": 16,
        "k": 3584,
        "source": "bf16",
        "out": "fp8_e4m3",
        "pattern": "6:8",
        "residual": 0,
    }
    assert (row.spread, row.unit) == (0.5, "us")
    assert row.how.startswith("block=2048 warps=4")


def test_ceilings_have_rows() -> None:
    copy, empty, *_ = rows(make_record())
    assert (copy.metric, copy.unit, copy.value, copy.better) == (
        "bandwidth",
        "GB/s",
        4000.0,
        "higher",
    )
    assert (empty.workload["what"], empty.value) == ("empty kernel", 1.5)
