"""What is asked of a checkpoint, and what is refused before any engine starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_models import learned_model, make_text, save
from tiny_models import VOCABULARY
from two_four_models import save_both

from slidesparse.accuracy.text import TokenStream
from slidesparse.bench.agreement.plan import (
    AgreementOptions,
    check_checkpoint,
    check_device,
    enough_windows,
    longest_sequence,
    prepare,
    warm,
)
from slidesparse.bench.agreement.record import Limits
from slidesparse.bench.sweep.job import Mode
from slidesparse.devices import CPU, Device
from slidesparse.errors import CalibrationError, CheckpointError, ModelError, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP8 checkpoint without a tokenizer; the model takes 64 tokens."""
    return save_both(tmp_path_factory.mktemp("models"), torch.float8_e4m3fn)[1]


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps([3 + index % 90 for index in range(300)]))
    return path


def options(text: Path, *folders: Path, **changes: Any) -> AgreementOptions:
    given: dict[str, Any] = {
        "folders": folders,
        "text": str(text),
        "tokenizer": None,
        "tokens": 100,
        "length": 32,
        "modes": (Mode.GRAPHS, Mode.EAGER),
        "tp": 1,
        "requests": 20,
        "longest": 40,
        "outputs": 8,
        "aborts": 0.1,
        "alone": 5,
        "seed": 3,
        "timeout": 60.0,
        "limits": Limits(),
    }
    return AgreementOptions(**{**given, **changes})


def test_windows_and_requests_are_of_the_text(folder: Path, ids: Path) -> None:
    made = prepare(options(ids, folder), folder)
    tokens = json.loads(ids.read_text())
    assert [scored for _, scored in made.windows] == [31] * 4
    assert [token for window, _ in made.windows for token in window] == tokens[: 4 * 32]
    assert len(made.requests) == 20
    assert max(len(request.prompt) for request in made.requests) == 40
    assert len(made.alone) == 5
    assert all(made.requests[index] == request for index, request in made.alone.items())
    # The longest request with some tokens to spare.
    assert 48 <= made.longest <= 64


def test_a_tokenizer_may_come_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    save(learned_model(0), tmp_path / "other")
    text = tmp_path / "text.txt"
    text.write_text(make_text(400, seed=7))
    with pytest.raises(
        ModelError, match=f"cannot load the tokenizer of {folder}.*; name one with --tokenizer"
    ):
        prepare(options(text, folder), folder)
    given = options(text, folder, tokenizer=str(tmp_path / "other"))
    made = prepare(given, folder)
    assert len(made.windows) == 4
    assert given.plain()["tokenizer"] == "other"


def test_ids_of_another_tokenizer_are_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps([VOCABULARY] * 300))
    with pytest.raises(CalibrationError, match=f"{VOCABULARY} is not in the model's vocabulary"):
        prepare(options(path, folder), folder)


def test_without_requests_only_windows_need_room(folder: Path, ids: Path) -> None:
    made = prepare(options(ids, folder, requests=0, longest=10_000), folder)
    assert (made.requests, dict(made.alone)) == ((), {})
    assert 33 <= made.longest < 64


def test_sequences_that_the_model_does_not_take_are_refused(folder: Path, ids: Path) -> None:
    with pytest.raises(UsageError, match=r"65 tokens are longer than the 64 .* smaller --length"):
        longest_sequence(options(ids, folder, length=64), 64, folder)
    with pytest.raises(UsageError, match=r"65 tokens are longer .* smaller --longest or --outputs"):
        longest_sequence(options(ids, folder, longest=57), 64, folder)
    assert longest_sequence(options(ids, folder, longest=56), 64, folder) == 64


def test_windows_hold_enough_tokens_and_no_more() -> None:
    stream = TokenStream(torch.arange(100))
    assert [it.scored for it in enough_windows(stream, 10, 18)] == [9, 9]
    assert [it.scored for it in enough_windows(stream, 10, 19)] == [9, 9, 9]
    begun = TokenStream(torch.arange(100), bos=7)
    windows = enough_windows(begun, 10, 18)
    assert [it.scored for it in windows] == [9, 9]
    assert [int(it.tokens[0]) for it in windows] == [7, 7]


def test_a_text_that_is_too_short_is_refused() -> None:
    stream = TokenStream(torch.arange(100), name="prose.txt")
    with pytest.raises(UsageError, match=r"prose.txt has 100 tokens, of which 90 .* --tokens 91"):
        enough_windows(stream, 10, 91)
    assert sum(it.scored for it in enough_windows(stream, 10, 90)) == 90


def test_what_is_no_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    assert check_checkpoint(folder) == 64
    with pytest.raises(CheckpointError, match="is not a directory"):
        check_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor"):
        check_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("section", "text"),
    [(None, "is not quantised"), ({"quant_method": "gptq"}, "is quantised by gptq")],
)
def test_what_the_plugin_is_not_for_is_refused(
    section: dict[str, Any] | None, text: str, tmp_path: Path
) -> None:
    path = save_both(tmp_path, None)[1]
    config = json.loads((path / "config.json").read_text())
    if section is not None:
        (path / "config.json").write_text(json.dumps({**config, "quantization_config": section}))
    with pytest.raises(ModelError, match=f"{text}.*run slidesparse convert {path}"):
        check_checkpoint(path)


def test_a_nested_config_says_how_long_sequences_may_be(folder: Path, tmp_path: Path) -> None:
    path = save_both(tmp_path, torch.int8)[1]
    config = json.loads((path / "config.json").read_text())
    del config["max_position_embeddings"]
    (path / "config.json").write_text(json.dumps(config))
    assert check_checkpoint(path) == 2**31 - 1
    nested = {**config, "text_config": {"max_position_embeddings": 99}}
    (path / "config.json").write_text(json.dumps(nested))
    assert check_checkpoint(path) == 99


def test_only_the_first_gpus_will_do() -> None:
    check_device(Device("cuda", 0))
    with pytest.raises(UsageError, match="needs an NVIDIA GPU"):
        check_device(CPU)
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES=2"):
        check_device(Device("cuda", 2))


def test_weights_are_read_once_before(folder: Path, tmp_path: Path) -> None:
    warm(folder)
    with pytest.raises(CheckpointError):
        warm(tmp_path)
