"""Closed loops in a real vLLM, scheduler and engine loop included; the GPU's work is a clock."""

from __future__ import annotations

from typing import Any

import pytest
from vllm_on_cpu import SECONDS_PER_STEP, SECONDS_PER_TOKEN
from vllm_scripts import require_vllm, run_script, write_config

require_vllm()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

LOAD = {"prompt": 16, "outputs": 64, "seconds": 0.5, "settle": 0.1}
ROOM = {**LOAD, "ms": [1, 8, 24], "blocks": 2000}
TIGHT = {**LOAD, "ms": [64], "blocks": 140, "seconds": 0.4}
LATE = 2.0
"""How much longer than the clock's a step may take; the machine has other work."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One process for everything: importing vLLM takes longer than all the rest."""
    folder = tmp_path_factory.mktemp("loop")
    settings = {"ahead": True, "engines": [ROOM, TIGHT]}
    model = str(write_config(folder / "tiny"))
    made = run_script("vllm_closed_loop.py", folder / "cache", settings, model)
    engines: list[dict[str, Any]] = made["engines"]
    return engines


@pytest.fixture
def roomy(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything fits; the smallest and the largest cell also compare sampling with none."""
    return found[0]


@pytest.fixture
def tight(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The KV cache holds forty of 64 requests: 139 blocks, of which each needs two to five."""
    return found[1]["64"]


@pytest.mark.parametrize("concurrency", [1, 8, 24])
def test_all_requests_run_all_the_time(roomy: dict[str, Any], concurrency: int) -> None:
    found = roomy[str(concurrency)]
    running = found["quantities"]["running"]
    assert running["most"] <= concurrency
    # Of those that just ended, the next ones are there two steps later.
    assert running["mean"] >= 0.9 * concurrency
    assert found["preemptions"] == 0
    assert found["cut"]["dropped"] == concurrency
    assert found["unfinished"] is False


@pytest.mark.parametrize("concurrency", [1, 8, 24])
def test_the_rate_is_that_of_the_clock(roomy: dict[str, Any], concurrency: int) -> None:
    found = roomy[str(concurrency)]
    step = found["seconds"] / found["steps"]
    # One token per sequence and step, and the prompts of the requests that began.
    quickest = SECONDS_PER_STEP + SECONDS_PER_TOKEN * 0.9 * concurrency
    assert 0.98 * quickest < step < LATE * (SECONDS_PER_STEP + SECONDS_PER_TOKEN * 2 * concurrency)
    assert found["tokens_per_s"] == pytest.approx(found["tokens"] / found["seconds"])
    assert found["tokens"] <= concurrency * found["steps"]
    assert found["tokens"] >= 0.9 * concurrency * found["steps"]


def test_the_kv_cache_is_as_full_as_requests_of_all_ages_make_it(roomy: dict[str, Any]) -> None:
    found = roomy["24"]
    # A request holds 16 + 32 tokens on average: 3.5 blocks of 16 in 2,000, since blocks are whole.
    assert found["quantities"]["kv_percent"]["mean"] == pytest.approx(24 * 3.5 / 20, rel=0.15)
    assert found["kv_tokens"] == 1999 * 16


def test_the_steady_state_has_no_waves(roomy: dict[str, Any]) -> None:
    """Requests that began together would all end in the same few steps."""
    found = roomy["24"]
    finished = [step[2] for step in found["flow"]]
    assert sum(finished) >= 24
    assert max(finished) <= 2


def test_the_smallest_and_the_largest_cell_say_what_sampling_costs(roomy: dict[str, Any]) -> None:
    for concurrency in ("1", "24"):
        found = roomy[concurrency]
        cost = found["cost"]
        assert len(cost["with_sampling"]) == len(cost["without"]) == 6
        assert abs(cost["percent"]) < 50
        assert found["window_s"] > 1.9 * found["seconds"]
    assert roomy["8"]["cost"] is None


def test_what_the_engine_runs_is_said(roomy: dict[str, Any]) -> None:
    said = roomy["said"]
    assert said["async scheduling"] == "on"
    assert said["graphs of"] == "nothing"
    assert int(said["max sequences"]) >= 24
    assert roomy["1"]["why"] == "cpu is no GPU"


def test_a_cache_that_is_too_small_shows_in_what_runs(tight: dict[str, Any]) -> None:
    quantities = tight["quantities"]
    assert 25 <= quantities["running"]["mean"] <= 50
    assert quantities["running"]["mean"] + quantities["waiting"]["mean"] >= 60
    assert quantities["kv_percent"]["mean"] > 85
    assert tight["preemptions"] > 0
    # Preempted requests begin anew and still generate no more than they should.
    assert tight["tokens"] <= 64 * tight["steps"]
