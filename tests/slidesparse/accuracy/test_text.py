"""Tokens and windows: every token scored once, nothing overlaps, each refusal in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from eval_models import make_text, make_tokenizer

from slidesparse.accuracy import sources
from slidesparse.accuracy.text import (
    TokenStream,
    calibration_tokens,
    check_vocabulary,
    evaluation_windows,
    read_tokens,
)
from slidesparse.errors import CalibrationError


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(make_text(500), encoding="utf-8")
    return path


def test_text_becomes_the_tokenizers_ids(text: Path) -> None:
    stream = read_tokens(text, make_tokenizer())
    words = text.read_text().split()
    assert stream.ids.tolist() == [4 + int(word[1:]) for word in words]
    assert stream.ids.dtype is torch.int64
    assert (stream.bos, stream.name, len(stream)) == (None, "text.txt", 500)
    assert read_tokens(str(text), make_tokenizer(bos=True)).bos == 1


def test_calibration_is_drawn_from_all_over_without_overlap(text: Path) -> None:
    drawn = calibration_tokens(text, make_tokenizer(), sequences=7, length=40, seed=1)
    assert drawn.shape == (7, 40)
    assert drawn.dtype is torch.int64
    ids = read_tokens(text, make_tokenizer()).ids
    pieces = [piece.tolist() for piece in ids[:480].view(12, 40)]
    places = [pieces.index(row) for row in drawn.tolist()]
    assert len(set(places)) == 7
    assert places != list(range(7)), "not only the beginning"
    again = calibration_tokens(text, make_tokenizer(), 7, 40, seed=1)
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, calibration_tokens(text, make_tokenizer(), 7, 40, seed=2))


def test_sequences_begin_as_the_tokenizer_begins_a_text(text: Path) -> None:
    drawn = calibration_tokens(text, make_tokenizer(bos=True), sequences=12, length=41)
    assert drawn.shape == (12, 41)
    assert set(drawn[:, 0].tolist()) == {1}
    assert 1 not in drawn[:, 1:]


def test_a_text_that_is_too_short_is_refused_with_the_numbers(text: Path) -> None:
    problem = (
        "calibration needs 128 x 2048 = 262,144 tokens; text.txt has 500: lower --sequences or "
        "--length, or use more text"
    )
    with pytest.raises(CalibrationError) as caught:
        calibration_tokens(text, make_tokenizer())
    assert str(caught.value) == problem
    # 12 whole pieces of 40 are there: a thirteenth is not.
    calibration_tokens(text, make_tokenizer(), 12, 40)
    with pytest.raises(CalibrationError, match="needs 13 x 40"):
        calibration_tokens(text, make_tokenizer(), 13, 40)
    with pytest.raises(CalibrationError, match="0 sequences of 40 tokens calibrate nothing"):
        calibration_tokens(text, make_tokenizer(), 0, 40)


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize(
    ("tokens", "length", "stride"),
    [(100, 20, None), (101, 20, 20), (99, 20, 7), (7, 20, 3), (20, 20, 20), (2, 2, 1), (23, 20, 1)],
)
def test_every_token_is_scored_once(
    tokens: int, length: int, stride: int | None, bos: int | None
) -> None:
    length += bos is not None
    ids = torch.arange(10, 10 + tokens)
    windows = evaluation_windows(TokenStream(ids, bos), length, stride)
    scored: list[int] = []
    for window in windows:
        held = window.tokens.tolist()
        assert len(held) <= length
        assert 0 < window.scored < len(held)
        assert held[0] == bos or bos is None
        body = held if bos is None else held[1:]
        assert body == list(range(body[0], body[0] + len(body))), "consecutive tokens"
        scored += held[len(held) - window.scored :]
    if bos is not None:
        assert scored == ids.tolist()
    elif stride is None or stride == length:
        starts = set(range(10, 10 + tokens, length))
        assert scored == [token for token in ids.tolist() if token not in starts]
    else:
        assert scored == ids.tolist()[1:]


def test_a_limit_takes_the_first_windows() -> None:
    ids = torch.arange(100)
    some = evaluation_windows(ids, 20, 10, limit=3)
    every = evaluation_windows(ids, 20, 10)
    assert len(some) == 3
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(some, every, strict=False))


@pytest.mark.parametrize(
    ("tokens", "length", "stride", "problem"),
    [
        (1, 20, None, "the text has 1 tokens; evaluation needs at least 2"),
        (50, 1, None, "windows of 1 tokens with stride 1"),
        (50, 20, 21, "windows of 20 tokens with stride 21"),
        (50, 20, 0, "windows of 20 tokens with stride 0"),
    ],
)
def test_windows_that_cannot_be(tokens: int, length: int, stride: int | None, problem: str) -> None:
    with pytest.raises(CalibrationError, match=problem):
        evaluation_windows(torch.arange(tokens), length, stride)


def test_token_ids_are_read_from_three_kinds_of_file(tmp_path: Path) -> None:
    ids = [[5, 6, 7], [8, 9, 10]]
    (tmp_path / "a.json").write_text(json.dumps(ids))
    np.save(tmp_path / "a.npy", np.array(ids, dtype=np.int32))
    torch.save(torch.tensor(ids), tmp_path / "a.pt")
    torch.save([5, 6, 7, 8, 9, 10], tmp_path / "b.pt")
    for name in ("a.json", "a.npy", "a.pt", "b.pt"):
        stream = read_tokens(tmp_path / name, "no tokenizer is looked at")
        assert stream.ids.tolist() == [5, 6, 7, 8, 9, 10], name
        assert stream.ids.dtype is torch.int64
        assert stream.bos is None
    drawn = calibration_tokens(tmp_path / "a.json", None, sequences=2, length=3)
    assert sorted(drawn.tolist()) == ids


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("a pickle was run",))


def test_damaged_ids_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(name: str, problem: str) -> None:
        with pytest.raises(CalibrationError, match=problem):
            read_tokens(tmp_path / name, None)

    (tmp_path / "cut.json").write_text("[1, 2")
    refused("cut.json", "cut.json holds no token ids")
    (tmp_path / "ragged.json").write_text("[[1, 2], [3]]")
    refused("ragged.json", "ragged.json holds no token ids")
    (tmp_path / "float.json").write_text("[0.5]")
    refused("float.json", "holds torch.float32, not token ids; they are integers")
    (tmp_path / "empty.json").write_text("[]")
    refused("empty.json", "not token ids")
    torch.save(torch.zeros(0, dtype=torch.int64), tmp_path / "empty.pt")
    refused("empty.pt", "holds no token ids: it is empty")
    (tmp_path / "negative.json").write_text("[3, -100]")
    refused("negative.json", "holds a negative token id, -100")
    np.save(tmp_path / "float.npy", np.ones(3))
    refused("float.npy", "float.npy holds no token ids")
    np.save(tmp_path / "object.npy", np.array([Evil()]), allow_pickle=True)
    refused("object.npy", "object.npy holds no token ids")
    torch.save(Evil(), tmp_path / "evil.pt")
    refused("evil.pt", "evil.pt holds no token ids")
    assert "a pickle was run" not in capsys.readouterr().out
    refused("missing.json", "No such file or directory; a cached dataset is spelt dataset:NAME")


def test_text_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, problem: str) -> None:
        with pytest.raises(CalibrationError, match=problem):
            read_tokens(path, make_tokenizer())

    refused(tmp_path / "missing.txt", "No such file or directory; a cached dataset is spelt")
    refused(tmp_path, "it is a folder; name a file")
    (tmp_path / "latin.txt").write_bytes(
        "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve".encode("latin1")
    )
    refused(tmp_path / "latin.txt", r"latin.txt is not UTF-8 text \(byte 2\)")
    (tmp_path / "blank.txt").write_text(" \n\n")
    refused(tmp_path / "blank.txt", "blank.txt holds no text")
    (tmp_path / "large.txt").write_text("w1 " * 400_000)
    monkeypatch.setattr(sources, "MOST_BYTES", 1 << 20)
    refused(tmp_path / "large.txt", "large.txt has 1 MiB, more than 1: use a part of it")


def test_ids_beyond_the_vocabulary() -> None:
    check_vocabulary(torch.tensor([0, 96]), 97)
    with pytest.raises(
        CalibrationError, match="token id 97 is not in the model's vocabulary of 97"
    ):
        check_vocabulary(torch.tensor([[5, 97], [98, 0]]), 97)


class Rows(list[dict[str, Any]]):
    @property
    def features(self) -> list[str]:
        return list(self[0])


def fake_datasets(monkeypatch: pytest.MonkeyPatch, rows: Rows | Exception) -> list[Any]:
    """A datasets library that must not be online when it is asked."""
    calls: list[Any] = []
    config = SimpleNamespace(HF_HUB_OFFLINE=False, HF_DATASETS_OFFLINE=False)

    def load(name: str, part: str | None, split: str) -> Rows:
        assert config.HF_HUB_OFFLINE
        assert config.HF_DATASETS_OFFLINE
        calls.append((name, part, split))
        if isinstance(rows, Exception):
            raise rows
        return rows

    module = SimpleNamespace(config=config, load_dataset=load)
    monkeypatch.setitem(sys.modules, "datasets", module)
    calls.append(config)
    return calls


def test_a_cached_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_datasets(monkeypatch, Rows([{"text": "w0 w1"}, {"text": "w2"}]))
    stream = read_tokens("dataset:org/name:part:test", make_tokenizer())
    assert stream.ids.tolist() == [4, 5, 6]
    assert stream.name == "dataset:org/name:part:test"
    read_tokens("dataset:name", make_tokenizer())
    assert calls[1:] == [("org/name", "part", "test"), ("name", None, "train")]
    assert not calls[0].HF_HUB_OFFLINE, "as it was before"


def test_a_dataset_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, ConnectionError("Couldn't reach the Hub\nmore"))
    problem = "dataset 'org/name' cannot be read from this machine's cache: Couldn't reach the Hub$"
    with pytest.raises(CalibrationError, match=problem):
        read_tokens("dataset:org/name", make_tokenizer())
    fake_datasets(monkeypatch, Rows([{"question": "", "answer": ""}]))
    with pytest.raises(CalibrationError, match="has no column 'text' but question, answer"):
        read_tokens("dataset:org/name", make_tokenizer())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CalibrationError, match="needs the datasets library: pip install datasets"):
        read_tokens("dataset:org/name", make_tokenizer())


def test_a_file_in_a_folder_that_cannot_be_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", denied)
    with pytest.raises(CalibrationError, match=r"cannot read .*ids.json: Permission denied$"):
        read_tokens(tmp_path / "ids.json", make_tokenizer())
