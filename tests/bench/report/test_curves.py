"""Speedup curves follow from the records, each against its own dense way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import accuracy_records
import linear_records
import search_records
from report_records import MS, make_sweep_record

from slidesparse.bench.published.record import PublishedRecord, PublishedStep
from slidesparse.bench.report.curves import Curve, Point, curves_of
from slidesparse.bench.search.totals import totals, totals_clear
from slidesparse.bench.sweep.job import Stage
from slidesparse.candidate import Provenance
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType

SIX = Pattern.parse("6:8")


def test_a_sweep_against_both_runs_of_stock() -> None:
    (found,) = curves_of(make_sweep_record())
    assert (found.what, found.against) == ("prefill step", "stock vLLM")
    assert found.title == "qwen2.5-7b fp8_e4m3 graphs"
    assert found.ms == MS
    assert [curve.pattern for curve in found.curves] == [DENSE, SIX]
    values = [round(point.value, 3) for point in found.curves[1].points]
    assert values == [0.9, 1.0, 1.12, 1.2, 1.25]
    assert [point.clear for point in found.curves[1].points] == [True, False, True, True, True]
    assert found.at(SIX, 512) == found.curves[1].points[0]
    assert found.at(SIX, 7) is None


def test_linears_count_as_often_as_the_model_has_them() -> None:
    (found,) = curves_of(linear_records.make_record())
    assert (found.what, found.model, found.dtype) == ("whole linears", "tiny", DType.FP8)
    # o twice, down three times; at M=64 down was skipped, in INT8 nothing of ours ran.
    theirs, ours = 2 * 48.0 + 3 * 75.0, 2 * 40.0 + 3 * 100.0
    assert found.curves[1] == Curve(SIX, (Point(16, theirs / ours, True, theirs, ours),))
    (dense,) = found.curves[0].points
    assert (dense.m, dense.clear) == (16, False)


def test_a_search_against_dense_on_the_same_weights() -> None:
    record = search_records.make_record()
    (found,) = curves_of(record)
    assert (found.what, found.title) == ("GEMM only", "tiny fp8_e4m3 to bf16, scales tensor")
    (curve,) = found.curves
    assert curve.points == (Point(64, 10.0 / 8.0, True, 280.0, 224.0),)
    assert totals(record, 64, SIX) == (280.0, 224.0)
    assert totals_clear(record, 64, SIX)
    assert not totals_clear(record, 64, Pattern.parse("2:4"))


def test_a_search_is_measured_only_if_all_of_it_was() -> None:
    record = search_records.make_record()
    results = {it: (result, Provenance.MEASURED) for it, (result, _) in record.results.items()}
    (found,) = curves_of(replace(record, results=results))
    assert found.provenance is Provenance.MEASURED
    first = next(iter(results))
    results[first] = (results[first][0], Provenance.CACHED)
    (found,) = curves_of(replace(record, results=results))
    assert found.provenance is Provenance.CACHED


def published(*steps: PublishedStep) -> PublishedRecord:
    return PublishedRecord("H100", "a paper", None, {}, {}, steps, ())


def test_published_steps_against_their_own_dense_run() -> None:
    (found,) = curves_of(
        published(
            PublishedStep(Stage.DECODE, "tiny", DType.INT8, 64, DENSE, 1000.0),
            PublishedStep(Stage.DECODE, "tiny", DType.INT8, 64, SIX, 1250.0),
            PublishedStep(Stage.DECODE, "tiny", DType.INT8, 128, SIX, 1250.0),
        )
    )
    assert (found.what, found.provenance) == ("published decode step", Provenance.PUBLISHED)
    assert found.curves == (Curve(SIX, (Point(64, 1.25, True, 64000.0, 51200.0),)),)


def test_what_has_no_speedups_has_no_curves() -> None:
    assert curves_of(accuracy_records.make_accuracy()) == ()
    assert curves_of(published()) == ()
    assert curves_of(Path()) == ()


def test_only_the_dense_run_of_a_published_model_is_no_curve() -> None:
    step = PublishedStep(Stage.PREFILL, "tiny", DType.FP8, 512, DENSE, 100.0)
    assert curves_of(published(step)) == ()
