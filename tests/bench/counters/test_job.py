"""What processes a load benchmark has, how long they are said to take, and their graphs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from counters_records import LOAD

from slidesparse.bench.counters.job import BUILD_S, LoadJob, capture_sizes, expected_seconds
from slidesparse.bench.counters.window import PAIRS
from slidesparse.bench.sweep.job import Mode, System


def test_there_is_a_process_per_mode_with_all_its_cells() -> None:
    turns = replace(LOAD, concurrencies=(1024, 1, 256)).turns()
    assert [(turn.job.mode, turn.job.ms) for turn in turns] == [
        (Mode.EAGER, (1, 256, 1024)),
        (Mode.GRAPHS, (1, 256, 1024)),
    ]
    job = turns[0].job
    assert isinstance(job, LoadJob)
    assert (job.compare_at, job.repeats) == ((1, 1024), PAIRS)
    assert job.variant.system is System.STOCK
    # What is left after a part was measured still compares at the ends of all.
    rest = turns[0].with_ms([256]).job
    assert isinstance(rest, LoadJob)
    assert rest.compare_at == (1, 1024)


def test_one_concurrency_is_both_ends() -> None:
    job = replace(LOAD, concurrencies=(64,)).turns()[0].job
    assert isinstance(job, LoadJob)
    assert job.compare_at == (64,)


def test_the_default_run_is_said_to_take_less_than_eight_minutes() -> None:
    seconds = expected_seconds(LOAD.turns())
    windows = 2 * (30 + 15 + 30)
    assert windows + sum(BUILD_S.values()) < seconds < 8 * 60


def test_only_what_is_left_is_expected() -> None:
    turns = LOAD.turns()
    one = turns[0].with_ms([1])
    assert expected_seconds([one]) == pytest.approx(BUILD_S[Mode.EAGER] + 33, abs=0.1)
    assert expected_seconds([]) == 0


def test_graphs_reach_beyond_the_largest_concurrency() -> None:
    sizes = capture_sizes((1, 256, 1024), 30, 512)
    assert sizes == sorted(set(sizes))
    assert {1, 256, 1024} <= set(sizes)
    # Two of 1,024 requests of 512 tokens end in a step: their prompts take the place of 2 tokens.
    for concurrency, begun in ((1024, 2), (1024, 3), (256, 1), (1, 1)):
        tokens = concurrency + begun * 29
        padded = min(size for size in sizes if size >= tokens)
        assert padded - tokens < 16
    assert len(sizes) < 32


def test_graphs_for_short_answers_hold_many_prompts() -> None:
    sizes = capture_sizes((64,), 100, 8)
    # Eight of the 64 end in every step.
    assert max(sizes) >= 64 + 2 * 8 * 99
