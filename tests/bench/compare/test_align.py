"""What is refused because it would mean nothing: mixed units and metrics, nothing in common."""

from __future__ import annotations

import pytest
from compare_cases import STEP, file, rate, row

from slidesparse.bench.compare.align import describe
from slidesparse.bench.compare.lines import compare
from slidesparse.bench.compare.select import Options
from slidesparse.bench.rows import ResultFile, Row
from slidesparse.errors import UsageError


def refusal(*files: ResultFile, options: Options | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        compare(files, options or Options())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def beside(*rows: Row) -> ResultFile:
    return file(*rows, name="b.json")


def test_two_units_of_one_metric() -> None:
    assert refusal(file(row(1.0)), beside(row(1.0, unit="ms"))) == (
        "mixed units: time of step qwen2.5-7b dtype=fp8_e4m3 m=512 is in 'us', lower better, in "
        "a.json and in 'ms', lower better, in b.json; bring them to one unit"
    )


def test_a_metric_that_improves_two_ways() -> None:
    assert "'us', higher better, in b.json" in refusal(
        file(row(1.0)), beside(row(1.0, better="higher"))
    )


def test_two_metrics_of_one_workload() -> None:
    assert refusal(file(row(1.0)), beside(rate(1.0))) == (
        "mixed metrics: a.json gives time of step qwen2.5-7b dtype=fp8_e4m3 m=512, b.json gives "
        "throughput; compare files of one metric"
    )


def test_one_metric_in_common_is_enough() -> None:
    found = compare([file(row(1.0), rate(9.0)), beside(row(2.0))], Options())
    assert [line.metric for line in found.lines] == ["time"]


def test_nothing_in_common_says_what_keeps_them_apart() -> None:
    other = {**STEP, "model": "llama3.2-1b", "m": 512}
    assert refusal(file(row(1.0)), beside(row(1.0, workload=other))) == (
        "a.json and b.json have no workload in common: model is qwen2.5-7b against llama3.2-1b; "
        "compare files of the same workloads"
    )


def test_kinds_that_share_nothing() -> None:
    kernel = row(1.0, workload={"what": "kernel", "op": "quantize"})
    assert refusal(file(row(1.0)), beside(kernel)) == (
        "a.json and b.json have no workload in common: what is step against kernel; only the "
        "first has model; only the first has dtype; compare files of the same workloads"
    )


def test_many_values_are_counted() -> None:
    here = file(*(row(1.0, workload={**STEP, "m": m}) for m in range(1, 7)))
    assert "m is 1, 2, 3, 4, ... (6) against 512" in refusal(here, beside(row(1.0)))


def test_no_value_of_its_own_keeps_them_apart() -> None:
    here = file(row(1.0, workload={**STEP, "dtype": "int8"}), row(1.0, workload={**STEP, "m": 1}))
    there = beside(row(1.0, workload={**STEP, "dtype": "int8", "m": 1}))
    assert "no two rows agree in all of it" in refusal(here, there)


def test_no_variant_in_common_has_another_remedy() -> None:
    ours = row(1.0, variant={"system": "ours"})
    assert refusal(file(row(1.0)), beside(ours), options=Options(by="variant")) == (
        "a.json and b.json have workloads in common, but no variant of one; leave out --by variant"
    )


def test_how_a_workload_is_told() -> None:
    assert describe({"what": "gemm", "layer": "qkv", "m": 16, "pattern": "6:8"}) == (
        "gemm qkv m=16 pattern=6:8"
    )
    assert describe({"system": "ours", "pattern": "dense"}) == "ours dense"
