"""Which rows are compared: where, metrics, the adapted phase; what is refused."""

from __future__ import annotations

import pytest
from compare_cases import H100, STEP, file, rate, row

from slidesparse.bench.compare.lines import compare
from slidesparse.bench.compare.select import Options, Phase
from slidesparse.errors import UsageError

HERE = file(
    row(10.0, variant={"system": "stock"}),
    row(8.0, variant={"system": "ours"}),
    rate(5.0),
    name="here.json",
)
THERE = file(row(9.0), rate(6.0), name="there.json", fingerprint=H100)


def refusal(options: Options) -> str:
    with pytest.raises(UsageError) as caught:
        compare([HERE, THERE], options)
    return str(caught.value)


def test_where_keeps_rows_by_workload_or_variant() -> None:
    found = compare([HERE, THERE], Options(where={"system": ("stock",), "m": ("512",)}))
    assert [it.value for it in found.lines[0].cells if it] == [10.0, 9.0]


def test_metrics_keep_rows() -> None:
    found = compare([HERE, THERE], Options(metrics=("throughput",)))
    assert [line.metric for line in found.lines] == ["throughput"]


def test_a_value_that_no_row_has() -> None:
    assert refusal(Options(where={"system": ("ours",)})) == (
        "there.json has no row with system=ours; it has stock"
    )


def test_a_name_that_no_row_has() -> None:
    assert refusal(Options(where={"colour": ("red",)})) == (
        "here.json has no row with colour=red; its rows have no colour"
    )


def test_a_metric_that_no_row_has() -> None:
    assert refusal(Options(metrics=("perplexity",))) == (
        "here.json has no metric perplexity; it has throughput, time"
    )


def test_values_that_no_single_row_has() -> None:
    assert refusal(Options(metrics=("throughput",), where={"system": ("ours",)})) == (
        "here.json has no row that fits all of what was asked for; ask for less"
    )


def test_a_file_without_rows() -> None:
    with pytest.raises(UsageError, match=r"^empty\.json holds no figures to compare$"):
        compare([HERE, file(name="empty.json")], Options())


def test_a_split_by_what_no_row_has() -> None:
    assert refusal(Options(split="colour")) == (
        "here.json has no 'colour' to split by; its rows have dtype, m, model, system, what"
    )


def test_adapted_each_file_chooses_its_dtype() -> None:
    volta = file(row(70.0, workload={**STEP, "dtype": "fp16"}), name="v.json", fingerprint=H100)
    hopper = file(
        row(20.0, workload={**STEP, "dtype": "int8"}),
        row(10.0, workload={**STEP, "dtype": "fp8_e4m3"}),
    )
    with pytest.raises(UsageError, match="dtype is int8, fp8_e4m3 against fp16; use --phase ad"):
        compare([hopper, volta], Options())
    (line,) = compare([hopper, volta], Options(phase=Phase.ADAPTED)).lines
    assert "dtype" not in line.workload
    assert [it.variant["dtype"] for it in line.cells if it] == ["fp8_e4m3", "fp16"]
    assert line.ratios[1] is not None
    assert line.ratios[1].value == pytest.approx(1 / 7)


def test_adapted_the_pattern_belongs_to_the_weights() -> None:
    dense = file(row(1.0, workload={**STEP, "pattern": "dense"}))
    sparse = file(row(1.0, workload={**STEP, "pattern": "2:4"}), name="b.json")
    with pytest.raises(UsageError, match="pattern is dense against 2:4"):
        compare([dense, sparse], Options(phase=Phase.ADAPTED))


def test_what_may_be_adapted_can_be_named() -> None:
    small = file(rate(100.0, workload={**STEP, "m": 64}), name="small.json", fingerprint=H100)
    large = file(rate(300.0, workload={**STEP, "m": 64}), rate(900.0, workload={**STEP, "m": 512}))
    (line,) = compare([large, small], Options(phase=Phase.ADAPTED, adapt=("m",))).lines
    assert [(it.value, it.variant["m"]) for it in line.cells if it] == [(900.0, 512), (100.0, 64)]
