"""What a load benchmark has measured: sessions, resumption, and figures that cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from counters_records import H200, LOAD, MODEL, found, heading, outcome, record

from slidesparse.bench.counters.book import LoadBook, LoadRunner
from slidesparse.bench.counters.job import due
from slidesparse.bench.sweep.job import Mode
from slidesparse.bench.sweep.runner import EngineKind, Failure, Kind, Limits
from slidesparse.devices import CPU
from slidesparse.errors import SearchError


def test_a_run_goes_on_where_it_was_left() -> None:
    before = record()
    book = LoadBook(heading(), before)
    left = due(LOAD.turns(), book.known)
    assert [(turn.job.mode, turn.job.ms) for turn in left] == [(Mode.GRAPHS, (1024,))]
    book.add(outcome(Mode.GRAPHS, found(1024, 17000.0), 1024))
    made = book.record(interrupted=False)
    assert len(made.measured) == 6
    assert [cell.session for cell in made.cells] == [0, 0, 0, 0, 0, 1]
    assert len(made.sessions) == 2
    assert due(LOAD.turns(), book.known) == ()


def test_what_another_gpu_has_begun_starts_anew_with_its_other_mode() -> None:
    """Eager and graphs stand side by side: one GPU measures both."""
    here = heading(cards=("card-b",))
    assert here.differences(record()) == []
    begun = LoadBook(heading(), record())
    begun.add(outcome(Mode.GRAPHS, Failure(Kind.CRASH, "killed by SIGSEGV"), 1024))
    book = LoadBook(here, begun.record(interrupted=False))
    assert set(book.elsewhere) == set(book.measured)
    assert due(LOAD.turns(), book.known) == LOAD.turns()
    book.add(outcome(Mode.EAGER, Failure(Kind.CRASH, "killed by SIGSEGV"), 1))
    assert len(book.elsewhere) == 4
    book.add(outcome(Mode.GRAPHS, found(1024, 17000.0), 1024))
    assert book.elsewhere == ()
    assert [cell.concurrency for cell in book.record(interrupted=True).measured] == [1024]
    assert [session.cards for session in book.record(interrupted=False).sessions] == [
        *(("card-a",), ("card-a",), ("card-b",)),
    ]
    # A file that is complete stays as it is, wherever it was measured.
    done = LoadBook(heading(), record())
    done.add(outcome(Mode.GRAPHS, found(1024, 17000.0), 1024))
    there = LoadBook(here, done.record(interrupted=False))
    assert due(LOAD.turns(), there.known) == ()


def test_more_concurrencies_are_added_to_a_file() -> None:
    more = heading(load=replace(LOAD, concurrencies=(64,), modes=(Mode.GRAPHS,)))
    assert more.differences(record()) == []
    book = LoadBook(more, record())
    book.add(outcome(Mode.GRAPHS, found(64, 3000.0), 64))
    made = book.record(interrupted=True)
    assert made.interrupted
    assert made.settings["concurrency"] == [1, 256, 1024, 64]
    graphs = [cell.concurrency for cell in made.cells if cell.mode is Mode.GRAPHS]
    assert graphs == [1, 64, 256, 1024]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"load": replace(LOAD, prompt=31)}, "prompt 31 here, 30 there"),
        ({"load": replace(LOAD, outputs=64)}, "max_tokens 64 here, 512 there"),
        ({"load": replace(LOAD, seconds=1.0)}, "seconds 1.0 here, 15.0 there"),
        ({"load": replace(LOAD, sample_ms=50)}, "sample_ms 50 here, 100 there"),
        ({"versions": {"slidesparse": "1", "vllm": "0.26"}}, "vllm 0.26 here, 0.25.1 there"),
        ({"fingerprint": replace(H200, driver="1")}, "driver 1 here, 580.159 there"),
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], text: str) -> None:
    assert heading(**changes).differences(record()) == [text]


def test_a_failure_is_replaced_when_it_is_measured() -> None:
    book = LoadBook(heading())
    book.add(outcome(Mode.EAGER, Failure(Kind.CRASH, "killed by SIGSEGV"), 1))
    assert book.measured == ()
    book.add(outcome(Mode.EAGER, found(1, 25.0), 1))
    (cell,) = book.record(interrupted=False).cells
    assert cell.failure is None
    assert (cell.model, cell.reason) == (MODEL, "")


def test_figures_that_cannot_be_are_the_engines_fault() -> None:
    runner = LoadRunner(CPU, EngineKind("a:b", "", "", False), Limits())
    good = found(256, 5000.0)
    assert runner.check(good, 256) is good
    with pytest.raises(SearchError, match="no figures of C=1 but"):
        runner.check(good, 1)
    with pytest.raises(SearchError, match="no figures of C=1 but None"):
        runner.check(None, 1)
    lost = replace(good, summaries={})
    with pytest.raises(SearchError, match="the engine's running is missing"):
        runner.check(lost, 256)
    endless = replace(good, window=replace(good.window, tokens=0))
    with pytest.raises(SearchError, match="cannot be: "):
        runner.check(endless, 256)
