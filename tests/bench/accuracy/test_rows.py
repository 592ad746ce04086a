"""Rows of `slidesparse eval`."""

from __future__ import annotations

import pytest
from accuracy_records import make_accuracy

from slidesparse.bench.accuracy.record import TextSource
from slidesparse.bench.accuracy.rows import rows, text_name


def test_variants_share_the_text_that_was_scored() -> None:
    found = {(*row.variant.values(), row.metric): row for row in rows(make_accuracy())}
    workloads = {tuple(row.workload.items()) for row in found.values()}
    assert workloads == {
        (
            ("what", "accuracy"),
            ("model", "SmolLM2-135M"),
            ("text", "evaluation.txt 00ff"),
            ("tokens", 51175),
        )
    }
    assert found["dense", "none", "none", "perplexity"].value == 20.0855
    assert found["6:8", "wanda", "none", "perplexity"].value == 31.06
    assert found["recipe", "wanda", "none", "perplexity"].value == 25.0
    agreement = found["6:8", "wanda", "fp8_e4m3", "agreement"]
    assert (agreement.value, agreement.better) == (0.875, "higher")


def test_a_perplexity_that_no_float_holds_has_no_row() -> None:
    found = {(*row.variant.values(), row.metric) for row in rows(make_accuracy())}
    assert ("6:8", "magnitude", "fp8_e4m3", "perplexity") not in found
    assert ("6:8", "magnitude", "fp8_e4m3", "divergence") in found


def test_standard_errors_become_interquartile_ranges() -> None:
    found = {(*row.variant.values(), row.metric): row for row in rows(make_accuracy())}
    increase = found["6:8", "wanda", "none", "loss increase"]
    assert increase.value == 0.25
    assert increase.spread == pytest.approx(2 * 0.67449 * 0.0123, rel=1e-4)


def test_tasks_have_rows() -> None:
    (task,) = [row for row in rows(make_accuracy()) if row.metric.startswith("arc")]
    assert (task.metric, task.value, task.better) == ("arc acc,none", 0.25, "higher")


def test_texts_of_one_name_are_told_apart() -> None:
    assert text_name(TextSource("a.txt", "ab" * 32, 3)) == "a.txt abababababab"
    assert text_name(TextSource("dataset:x", "", 3)) == "dataset:x"
