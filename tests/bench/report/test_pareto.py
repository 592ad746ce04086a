"""Accuracy against speed: the frontier, which speedups stand for a pattern, and what is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from accuracy_records import make_accuracy
from hypothesis import given
from hypothesis import strategies as st
from report_records import read_all, write_results

from slidesparse.bench.report.pareto import frontier, pareto_section, speed_for
from slidesparse.bench.report.view import LineChart, Mark
from slidesparse.bench.rows import ResultFile
from slidesparse.problem import DType

MARKS = st.lists(
    st.builds(Mark, st.integers(1, 20).map(float), st.integers(0, 20).map(float)), min_size=1
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ResultFile]:
    paths = write_results(tmp_path_factory.mktemp("results"))
    return {file.path.stem: file for file in read_all(paths)}


def test_the_frontier_by_hand() -> None:
    marks = [Mark(1.0, 0.0), Mark(1.2, 0.1), Mark(1.1, 0.2), Mark(1.4, 0.5)]
    assert frontier(marks) == ((1.4, 0.5), (1.2, 0.5), (1.2, 0.1), (1.0, 0.1), (1.0, 0.0))


@given(MARKS)
def test_nothing_beats_a_corner_and_something_beats_or_is_the_rest(marks: list[Mark]) -> None:
    places = {(mark.x, mark.y) for mark in marks}
    corners = set(frontier(marks)) & places
    best = {
        (x, y)
        for x, y in places
        if not any((a >= x and b <= y) and (a, b) != (x, y) for a, b in places)
    }
    assert best <= corners
    assert corners <= places


def test_speedups_of_the_whole_model_are_taken_first(files: dict[str, ResultFile]) -> None:
    speed = speed_for("SmolLM2-135M", DType.FP8, list(files.values()))
    assert speed is not None
    assert (speed.curves.what, speed.m) == ("prefill step", 65536)
    assert speed_for("SmolLM2-135M", DType.INT8, list(files.values())) is None


def test_speedups_of_the_same_model_come_before_all_others(files: dict[str, ResultFile]) -> None:
    speed = speed_for("models/Tiny/", DType.FP8, list(files.values()))
    assert speed is not None
    assert (speed.curves.model, speed.curves.what) == ("tiny", "whole linears")


def test_another_models_speedups_are_called_that(files: dict[str, ResultFile]) -> None:
    section = pareto_section([files["accuracy"], files["sweep"]])
    assert section is not None
    (group,) = section.groups
    notes = " ".join(group.notes)
    words = "prefill step of qwen2.5-7b (graphs) at M=65536 over stock vLLM on NVIDIA H200, "
    assert f"{words}sweep.json." in notes
    assert "not the model whose loss this is, SmolLM2-135M" in notes
    same = replace(files["accuracy"], record=replace(make_accuracy(), model="qwen2.5-7b"))
    section = pareto_section([same, files["sweep"]])
    assert section is not None
    assert "not the model" not in " ".join(section.groups[0].notes)


def test_an_evaluation_in_a_chart(files: dict[str, ResultFile]) -> None:
    section = pareto_section([files["accuracy"], files["sweep"]])
    assert section is not None
    (chart,) = section.groups[0].charts
    assert isinstance(chart, LineChart)
    marks = {one.name: [(mark.x, mark.y) for mark in one.marks] for one in chart.series}
    # Ours dense has a speedup of its own over stock.
    expected = {"dense": [(1.03, 0.0)], "magnitude": [(1.25, 0.25)], "wanda": [(1.25, 0.25)]}
    assert {n: [(round(x, 6), y) for x, y in m] for n, m in marks.items()} == expected
    (table,) = section.groups[0].tables
    assert len(table.rows) == 7
    assert table.rows[3][4].text == "> 1e300"


def test_a_speedup_within_the_spread_is_hollow(files: dict[str, ResultFile]) -> None:
    record = files["sweep"].record
    # At M=1024, which is then the largest, 6:8 is no different from stock.
    few = replace(record, cells=tuple(it for it in record.cells if it.m <= 1024))
    section = pareto_section([files["accuracy"], replace(files["sweep"], record=few)])
    assert section is not None
    (chart,) = section.groups[0].charts
    assert isinstance(chart, LineChart)
    hollow = {one.name: [mark.hollow for mark in one.marks] for one in chart.series}
    assert hollow == {"dense": [False], "magnitude": [True], "wanda": [True]}


def test_an_evaluation_without_speedups_is_a_table(files: dict[str, ResultFile]) -> None:
    section = pareto_section([files["accuracy"]])
    assert section is not None
    (group,) = section.groups
    assert group.charts == ()
    assert group.notes == ("No speedups of fp8_e4m3 are among these files, so it has no figure.",)


def test_an_allocation_has_both_by_itself(files: dict[str, ResultFile]) -> None:
    section = pareto_section([files["allocation"]])
    assert section is not None
    (chart,) = section.groups[0].charts
    assert isinstance(chart, LineChart)
    marks = [(mark.x, mark.y, mark.error) for one in chart.series for mark in one.marks]
    assert marks == [(1.0, 0.0, 0.0), (1.2, 0.03, 0.004)]
    assert section.findings == (
        "Allocation of tiny, NVIDIA H200: 1.20x for a loss of +0.0300 ± 0.0040 nats per token.",
    )


def test_losses_far_apart_are_drawn_over_decades(files: dict[str, ResultFile]) -> None:
    record = files["allocation"].record
    for loss, scale in ((0.03, "linear"), (3.0, "symlog")):
        dense, chosen = record.outcomes
        worse = replace(chosen, name="uniform 2:4", increase=loss)
        file = replace(files["allocation"], record=replace(record, outcomes=(dense, chosen, worse)))
        section = pareto_section([file])
        assert section is not None
        (chart,) = section.groups[0].charts
        assert isinstance(chart, LineChart)
        assert chart.y.scale == scale


def test_nothing_is_no_section(files: dict[str, ResultFile]) -> None:
    assert pareto_section([files["sweep"]]) is None
