"""What a sweep has measured so far, and when a file may be continued."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sweep_records import (
    H200,
    MODEL,
    OURS,
    OURS_SIX,
    SIX,
    STOCK,
    STOCK_SIX,
    failed,
    make_heading,
    make_record,
    make_sweep,
    outcome,
)

from slidesparse.bench.sweep.book import SweepBook
from slidesparse.bench.sweep.job import Stage
from slidesparse.bench.sweep.record import read_json, write_json
from slidesparse.bench.sweep.runner import Kind
from slidesparse.models import load_model


def test_cells_are_in_the_order_of_the_sweep_however_they_came() -> None:
    book = SweepBook(make_heading())
    for each in (
        outcome(STOCK, 512, 10.0, again=True),
        outcome(OURS_SIX, 4096, 10.0),
        outcome(STOCK_SIX, 512, 10.0),
        outcome(OURS_SIX, 512, 10.0),
        outcome(OURS, 512, 10.0),
        outcome(STOCK, 4096, 10.0),
        outcome(STOCK, 512, 10.0),
    ):
        book.add(each)
    assert [f"{cell.key.label} {cell.m}" for cell in book.record(False).cells] == [
        *("stock 512", "stock 4096", "ours dense 512", "stock 6:8 512", "ours 6:8 512"),
        *("ours 6:8 4096", "stock again 512"),
    ]


def test_a_later_outcome_replaces_an_earlier_one() -> None:
    book = SweepBook(make_heading())
    book.add(failed(OURS, 512))
    assert book.measured == ()
    book.add(outcome(OURS, 512, 12.0))
    (cell,) = book.record(False).cells
    assert (cell.median_us, cell.failure, cell.reason) == (12.0, None, "")
    assert len(book.measured) == 1


def test_wide_cells_are_marked_whether_they_ran_or_not() -> None:
    """65536 x 37888 outputs of gate_up; 65536 x 28416 lifted inputs of down do not pass."""
    book = SweepBook(make_heading())
    assert book.add(outcome(OURS, 512, 10.0, largest=2**31)).wide
    assert not book.add(outcome(OURS, 512, 10.0, largest=2**31 - 1)).wide
    assert book.add(failed(OURS_SIX, 65536, Kind.MEMORY, "out of memory")).wide
    assert not book.add(failed(OURS_SIX, 32768, Kind.MEMORY, "out of memory")).wide


def test_what_was_built_is_kept_once() -> None:
    record = make_record()
    assert [ran["linears"] for ran in record.ran] == ["stock", "ours dense", "ours 6:8"]
    by_label = {cell.key.label: cell.ran for cell in record.measured}
    assert by_label == {"stock": 0, "ours dense": 1, "ours 6:8": 2, "stock again": 0}
    assert record.failed[0].ran is None


def test_a_second_session_adds_to_the_first(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    write_json(make_record(), path)
    before = read_json(path)
    sweep = make_sweep(ms=(4096,), patterns=(SIX,), same_weights=True)
    book = SweepBook(make_heading(sweep), before)
    assert len(book.measured) == 7
    book.add(outcome(OURS_SIX, 4096, 6000.0))
    record = book.record(interrupted=False)
    write_json(record, path)
    assert read_json(path) == record
    assert [cell.session for cell in record.cells] == [0, 0, 0, 0, 0, 1, 0, 0]
    assert record.failed == ()
    assert len(record.sessions) == 2
    assert record.seconds == sum(session.seconds for session in record.sessions)
    assert record.settings["m"] == [4096, 512]
    assert record.settings["patterns"] == ["dense", "6:8"]
    assert record.settings["same_weights"] is True


def test_equal_settings_continue_and_lists_may_grow() -> None:
    record = make_record()
    assert make_heading().differences(record) == []
    grown = make_sweep(ms=(64,), patterns=(SIX,), models=("llama3.2-1b",))
    assert make_heading(grown).differences(record) == []


@pytest.mark.parametrize(
    ("heading", "texts"),
    [
        (make_heading(make_sweep(prompt=512)), ["prompt 512 here, 1024 there"]),
        (make_heading(make_sweep(seed=8, repeats=4)), ["repeats 4 here, 3", "seed 8 here, 7"]),
        (make_heading(make_sweep(tp=2)), ["tp 2 here, 1 there"]),
        (make_heading(engine="linear"), ["engine linear here, vllm there"]),
        (make_heading(versions={"slidesparse": "0.1.0"}), ["vllm none here, 0.25.1 there"]),
        (make_heading(device="cuda:1"), ["device cuda:1 here, cuda:0 there"]),
        (
            make_heading(fingerprint=replace(H200, torch="2.12.0")),
            ["torch 2.12.0 here, 2.11.0 there"],
        ),
        (
            make_heading(specs={MODEL: replace(load_model(MODEL), hidden=4096)}),
            [f"{MODEL} qwen2 hidden 4096", "there"],
        ),
    ],
)
def test_other_settings_are_named(heading, texts: list[str]) -> None:
    differences = "; ".join(heading.differences(make_record()))
    for text in texts:
        assert text in differences


def test_a_dump_in_the_middle_says_that_it_is_one() -> None:
    book = SweepBook(make_heading())
    book.add(outcome(STOCK, 512, 10.0))
    assert book.record(interrupted=True).interrupted
    assert not book.record(interrupted=False).interrupted


@pytest.mark.parametrize(
    ("engine", "stage", "differences"),
    [
        ("vllm", Stage.DECODE, ["prompt 16 here, 1024 there", "outputs 400 here, 128 there"]),
        ("vllm", Stage.PREFILL, ["prompt 16 here, 1024 there"]),
        ("linear", Stage.DECODE, []),
    ],
)
def test_lengths_of_requests_count_where_there_are_requests(
    engine: str, stage: Stage, differences: list[str]
) -> None:
    """A prefill step generates one token, and the linears alone know no requests."""
    before = SweepBook(make_heading(make_sweep(stage=stage), engine=engine)).record(False)
    other = make_sweep(stage=stage, prompt=16, outputs=400)
    assert make_heading(other, engine=engine).differences(before) == differences
