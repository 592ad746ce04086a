"""Cells in a real vLLM, its scheduler and engine loop included; only the GPU's work is a clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vllm_on_cpu import step_us
from vllm_scripts import require_vllm, run_script, write_config

require_vllm()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

LATE = 2.0
"""How much longer than the clock's the quickest sample may take; the machine has other work."""


def measure(folder: Path, **settings: Any) -> dict[str, Any]:
    """What the engine of the sweep measures for these settings."""
    model = write_config(folder / "tiny")
    given = {"ahead": True, "outputs": 1, "repeats": 3, "blocks": 2000, **settings}
    return run_script("vllm_on_cpu.py", folder / "cache", given, str(model))


def check_times(cell: dict[str, Any], tokens: int, repeats: int = 3) -> None:
    assert len(cell["step_us"]) == repeats
    # No sample can be quicker than the clock, whatever else the machine does.
    assert 0.98 * step_us(tokens) < min(cell["step_us"]) < LATE * step_us(tokens)


@pytest.mark.parametrize("ahead", [True, False])
def test_prefill_steps_have_exactly_m_tokens(ahead: bool, tmp_path: Path) -> None:
    # 300 is not a multiple of 32, and the engine could batch 300 tokens of the smaller cells, too.
    found = measure(tmp_path, ahead=ahead, stage="prefill", ms=[16, 64, 300], prompt=32)
    assert found["said"]["async scheduling"] == ("on" if ahead else "off")
    assert found["in_flight"] == (2 if ahead else 1)
    assert found["said"]["max batched tokens"] == "300"
    assert found["said"]["weights"] == "random, seed 1"
    assert found["said"]["kv cache"] == "31984 tokens in blocks of 16"
    for m, prompts in ((16, 1), (64, 2), (300, 10)):
        cell = found[str(m)]
        assert {tuple(step) for step in cell["steps"]} == {(m, prompts)}
        check_times(cell, m)
        # Three microseconds of a GEMM and one of what Inductor fused, says the executor.
        assert cell["shares"] == {"gemm": 0.75, "fused": 0.25, "attention": 0.0, "other": 0.0}
        assert (cell["m"], cell["largest"]) == (m, m * 1408)
        assert cell["joules_per_token"] is None
        assert cell["unfinished"] is False


def test_decode_steps_have_one_token_of_each_sequence(tmp_path: Path) -> None:
    settings = {"stage": "decode", "prompt": 40, "outputs": 48, "ms": [1, 16, 200]}
    found = measure(tmp_path, **settings)
    for m in (1, 16, 200):
        cell = found[str(m)]
        check_times(cell, m)
        assert cell["unfinished"] is False
    # 200 prompts of 40 tokens take more than one step of 4,096, and decode meanwhile.
    first = found["200"]["steps"].index([200, 200])
    assert first > 1
    assert sum(tokens for tokens, _ in found["200"]["steps"][:first]) > 200 * 40


def test_a_cell_that_cannot_run_says_why_and_the_next_one_runs(tmp_path: Path) -> None:
    settings = {"stage": "decode", "prompt": 32, "outputs": 40, "ms": [1, 4, 64], "blocks": 140}
    found = measure(tmp_path, **settings, cells=[64, 4])
    assert "64 sequences of up to 72 tokens need 320 blocks" in found["64"]["error"]
    assert "139 blocks of 16 tokens" in found["64"]["error"]
    check_times(found["4"], 4)


def test_too_few_tokens_are_noticed_after_the_prefill(tmp_path: Path) -> None:
    settings = {"stage": "decode", "prompt": 32, "outputs": 12, "ms": [4]}
    found = measure(tmp_path, **settings)
    assert "3 samples need 19 tokens per sequence instead of 12" in found["4"]["error"]
    assert found["4"]["unfinished"] is False


def test_a_scheduler_that_cuts_steps_fails_the_cell(tmp_path: Path) -> None:
    settings = {"stage": "prefill", "prompt": 32, "ms": [64, 256], "more": {"max_num_seqs": 5}}
    found = measure(tmp_path, **settings, cells=[256, 64])
    assert "ran 160 tokens of 5 prompts instead of 256 of 8" in found["256"]["error"]
    assert found["256"]["unfinished"] is False
    # What was dropped leaves no trace in the next cell.
    assert {tuple(step) for step in found["64"]["steps"]} == {(64, 2)}
