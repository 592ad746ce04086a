"""The engine of `bench agreement` on a real vLLM on the CPU, whose model is a hash."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from vllm_agree_on_cpu import VOCAB, logits_of
from vllm_scripts import require_vllm, run_script, write_config

require_vllm()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

RANDOM = random.Random(11)
TEXT = [RANDOM.randrange(VOCAB) for _ in range(300)]
STEP_TOKENS = 64

REQUESTS = [
    # Start, tokens of the prompt, generated ones, aborted after.
    (0, 300, 9, None),
    (0, 200, 5, None),  # Begins like the one before, all of it out of the cache.
    (3, 1, 8, None),
    (50, 64, 8, 0),
    (50, 64, 8, 3),
    (9, 100, 1, None),
    (9, 120, 1, 0),
    *((start, 20, 6, None) for start in range(60, 80)),
]
ALONE = [0, 1, 2, 5, 9]
WINDOWS = [(TEXT[:40], 39), (TEXT[100:250], 20)]


@pytest.fixture(scope="module", params=[True, False], ids=["ahead", "in turn"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What came of the requests, with asynchronous scheduling and without."""
    return run(tmp_path_factory.mktemp("agree"), ahead=request.param, noisy=False)


def run(folder: Path, ahead: bool, noisy: bool) -> dict[str, Any]:
    config = write_config(folder / "tiny")
    requests = [
        {"prompt": TEXT[start : start + length], "outputs": outputs, "abort_after": after}
        for start, length, outputs, after in REQUESTS
    ]
    settings = {
        "ahead": ahead,
        "noisy": noisy,
        "longest": 400,
        # Few tokens and sequences per step: prompts are cut into chunks, requests wait.
        "more": {"max_num_batched_tokens": STEP_TOKENS, "max_num_seqs": 4},
        "blocks": 200,
        "windows": WINDOWS,
        "requests": requests,
        "alone": ALONE,
    }
    return run_script("vllm_agree_on_cpu.py", folder / "cache", settings, str(config))


def generated(index: int) -> list[int]:
    """What the model answers to a request, by itself."""
    start, length, outputs, _ = REQUESTS[index]
    history = TEXT[start : start + length]
    for _ in range(outputs):
        history.append(int(logits_of(history).argmax()))
    return history[length:]


def test_vllm_runs_as_it_does_by_default(found: dict[str, Any]) -> None:
    assert found["prefix_caching"] is True
    assert found["chunked"] is True


def test_scores_are_those_of_the_model(found: dict[str, Any]) -> None:
    logprobs, first, gaps = found["scores"]
    at = [(tokens, i) for tokens, n in WINDOWS for i in range(len(tokens) - n, len(tokens))]
    assert len(logprobs) == len(first) == len(gaps) == len(at) == 59
    for index, (tokens, position) in enumerate(at):
        expected = logits_of(tokens[:position]).log_softmax(-1)
        assert logprobs[index] == pytest.approx(float(expected[tokens[position]]), abs=1e-5)
        assert first[index] == int(expected.argmax())
        high, low = expected.topk(2).values.tolist()
        assert gaps[index] == pytest.approx(high - low, abs=1e-5)


def test_every_request_is_answered_or_aborted(found: dict[str, Any]) -> None:
    aborted = [index for index, it in enumerate(REQUESTS) if it[3] is not None]
    assert found["aborted"] == len(aborted)
    assert found["broken"] == {}
    assert not found["unfinished"]
    answered = [index for index in range(len(REQUESTS)) if index not in aborted]
    assert sorted(map(int, found["answers"])) == answered
    for index in answered:
        assert found["answers"][str(index)] == generated(index)


def test_alone_the_tokens_are_the_same_and_come_from_no_cache(found: dict[str, Any]) -> None:
    assert found["alone"] == {str(index): generated(index) for index in ALONE}
    assert found["hits"] > 0
    assert found["hits alone"] == 0


def test_a_model_that_depends_on_its_batch_is_noticed(tmp_path: Path) -> None:
    found = run(tmp_path, ahead=True, noisy=True)
    assert found["broken"] == {}
    differing = [i for i in ALONE if found["alone"][str(i)] != found["answers"][str(i)]]
    assert differing


def test_loading_is_timed_and_vllm_left_as_it_was(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "tiny")
    settings = {"ahead": False, "load": True}
    found = run_script("vllm_agree_on_cpu.py", tmp_path / "cache", settings, str(folder))
    (seconds,) = found["noted"]
    assert 0 < seconds < 60
    assert found["weights"] > 1_000_000
    assert found["left"] is True
