"""Alignment of result files: by workload, the best of each, one variant, one value per column."""

from __future__ import annotations

import pytest
from compare_cases import H100, STEP, file, rate, row
from hypothesis import given
from hypothesis import strategies as st

from slidesparse.bench.compare.lines import better, compare
from slidesparse.bench.compare.select import Options
from slidesparse.bench.rows import ResultFile, Row
from slidesparse.candidate import Provenance
from slidesparse.errors import UsageError

OURS, STOCK = {"system": "ours"}, {"system": "stock"}
DERIVED = Provenance.DERIVED
LARGE = {**STEP, "m": 4096}
ROWS = st.builds(
    lambda m, system, value: row(value, 0.01 * value, {**STEP, "m": m}, {"system": system}),
    st.sampled_from([1, 2, 3]),
    st.sampled_from(["stock", "ours"]),
    st.floats(min_value=1.0, max_value=1e6),
)


def two() -> tuple[ResultFile, ResultFile]:
    here = file(
        row(10.0, 0.1, variant=STOCK),
        row(8.0, 0.1, variant=OURS),
        row(90.0, 0.1, LARGE),
        name="here.json",
    )
    there = file(
        row(6.0, 0.1, variant=STOCK),
        row(7.0, 0.1, variant=OURS),
        row(1.0, 0.1, {**STEP, "m": 1}),
        name="there.json",
        fingerprint=H100,
    )
    return here, there


def test_the_best_of_each_file_stands_beside_the_other_with_its_variant() -> None:
    found = compare(two(), Options())
    (line,) = found.lines
    assert dict(line.workload) == dict(STEP)
    assert [(it.value, it.variant) for it in line.cells if it] == [(8.0, OURS), (6.0, STOCK)]
    assert line.ratios[0] is None
    assert line.ratios[1] is not None
    assert line.ratios[1].value == pytest.approx(8 / 6)


def test_by_variant_pairs_only_what_is_of_one_variant() -> None:
    found = compare(two(), Options(by="variant"))
    pairs = {str(line.variant["system"]): line for line in found.lines}
    assert [it.value for it in pairs["stock"].cells if it] == [10.0, 6.0]
    assert [it.value for it in pairs["ours"].cells if it] == [8.0, 7.0]


def test_what_one_file_has_alone_is_told_apart() -> None:
    found = compare(two(), Options())
    alone = [(line.workload["m"], line.cells.index(None)) for line in found.alone]
    assert alone == [(4096, 1), (1, 0)]


def test_the_base_is_the_file_that_was_chosen() -> None:
    found = compare(two(), Options(base=1))
    assert found.base == 1
    (line,) = found.lines
    assert line.ratios[1] is None
    assert line.ratios[0] is not None
    assert line.ratios[0].value == pytest.approx(6 / 8)


def test_three_files_of_which_two_share_a_workload() -> None:
    third = file(row(3.0, 0.1), row(30.0, 0.1, LARGE), name="third.json")
    found = compare((*two(), third), Options())
    assert [[None if it is None else it.value for it in line.cells] for line in found.lines] == [
        [8.0, 6.0, 3.0],
        [90.0, None, 30.0],
    ]
    assert found.lines[1].ratios[1] is None


def test_a_split_makes_a_column_of_each_value_so_that_one_file_is_enough() -> None:
    here, _ = two()
    found = compare([here], Options(split="system"))
    assert [column.value for column in found.columns] == ["stock", "ours"]
    (line,) = found.lines
    assert [it.value for it in line.cells if it] == [10.0, 8.0]
    assert line.ratios[1] is not None
    assert line.ratios[1].value == pytest.approx(1.25)


def test_a_split_takes_its_name_out_of_the_workload() -> None:
    both = file(
        row(10.0, 0.1, {**STEP, "pattern": "dense"}), row(5.0, 0.1, {**STEP, "pattern": "2:4"})
    )
    found = compare([both], Options(split="pattern"))
    (line,) = found.lines
    assert "pattern" not in line.workload
    assert line.ratios[1] is not None
    assert line.ratios[1].value == 2


def test_one_file_without_a_split_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        compare([file(row(1.0))], Options())
    assert str(caught.value) == (
        "there is nothing to compare a.json with; name a second file, or a --split"
    )


@given(st.lists(ROWS, min_size=1), st.lists(ROWS, min_size=1))
def test_aligned_rows_never_mix_workloads_or_metrics(one: list[Row], other: list[Row]) -> None:
    files = (file(*one), file(*other, name="b.json", fingerprint=H100))
    shared = {it.workload["m"] for it in one} & {it.workload["m"] for it in other}
    if not shared:
        with pytest.raises(UsageError, match="no workload in common"):
            compare(files, Options())
        return
    found = compare(files, Options())
    assert {line.workload["m"] for line in found.lines} == shared
    for line in (*found.lines, *found.alone):
        for cell, rows in zip(line.cells, (one, other), strict=True):
            mine = [it for it in rows if it.workload == line.workload]
            assert (cell is None) == (not mine)
            if cell is not None:
                assert cell.value == min(it.value for it in mine)
                assert (cell.workload, cell.metric) == (line.workload, line.metric)


@given(st.lists(ROWS, min_size=1))
def test_turning_the_files_round_inverts_every_ratio(rows: list[Row]) -> None:
    slower = [row(3 * it.value, it.spread, it.workload, it.variant) for it in rows]
    files = file(*rows), file(*slower, name="b.json", fingerprint=H100)
    forth, back = compare(files, Options()), compare(files[::-1], Options())
    for line, turned in zip(forth.lines, back.lines, strict=True):
        assert line.ratios[1] is not None
        assert turned.ratios[1] is not None
        assert line.ratios[1].value == pytest.approx(1 / 3)
        assert turned.ratios[1].value == pytest.approx(3)


def test_the_better_of_two_rows() -> None:
    assert better(row(1.0), row(2.0)).value == 1
    assert better(rate(1.0), rate(2.0)).value == 2
    assert better(None, row(2.0)).value == 2


def test_a_bound_and_an_estimate_never_beat_what_ran() -> None:
    ran, bound = rate(5.0, provenance=DERIVED), rate(9.0, variant={"backend": "bound"})
    assert better(ran, bound) is ran
    assert better(bound, ran) is ran
    estimate = row(1.0, provenance=Provenance.ESTIMATED)
    assert better(estimate, row(2.0)).value == 2
    assert better(row(2.0), estimate).value == 2
