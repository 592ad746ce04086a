"""Text as tokens: for calibration, and in windows to evaluate on.

A source is a text file (UTF-8), a file of token ids (.json, .npy or .pt), or a Hugging Face dataset
that is cached on this machine, spelt dataset:NAME[:CONFIG[:SPLIT]].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from slidesparse.accuracy.sources import ID_SUFFIXES as ID_SUFFIXES
from slidesparse.accuracy.sources import is_dataset, is_ids, read_dataset, read_ids, read_text
from slidesparse.errors import CalibrationError


@dataclass(frozen=True)
class TokenStream:
    """One long run of token ids.

    Args:
        ids: [T] int64.
        bos: what the tokenizer begins a text with, which every sequence made of it begins with too;
            None if it adds nothing, and for files of ids, which are taken as they are.
        name: of the source, for messages.
    """

    ids: torch.Tensor
    bos: int | None = None
    name: str = "the text"

    def __len__(self) -> int:
        """How many tokens."""
        return self.ids.numel()


@dataclass(frozen=True)
class Window:
    """A run of tokens to evaluate on.

    Args:
        tokens: [L] int64.
        scored: the last so many are predicted and count; those before are only their context.
    """

    tokens: torch.Tensor
    scored: int


def calibration_tokens(
    source: str | Path,
    tokenizer: Any,
    sequences: int = 128,
    length: int = 2048,
    seed: int = 0,
) -> torch.Tensor:
    """Sequences that do not overlap, drawn from all over a source.

    Args:
        source: see the top of this module.
        tokenizer: a transformers tokenizer, or what `load_tokenizer` takes: a directory, a Hugging
            Face id or a .gguf file. Not looked at for token ids.
        sequences: S, how many.
        length: L, tokens of each.
        seed: of the draw.

    Returns:
        [S, L] int64 on the CPU.

    Raises:
        CalibrationError: the source cannot be read, or has fewer than S x L tokens.
    """
    if sequences < 1 or length < 2:
        raise CalibrationError(
            f"{sequences} sequences of {length} tokens calibrate nothing; use at least 1 x 2"
        )
    stream = read_tokens(source, tokenizer)
    fresh = length - (stream.bos is not None)
    available = len(stream) // fresh
    if available < sequences:
        raise CalibrationError(
            f"calibration needs {sequences} x {length} = {sequences * length:,} tokens; "
            f"{stream.name} has {len(stream):,}: lower --sequences or --length, or use more text"
        )
    chosen = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:sequences]
    made = stream.ids[: available * fresh].view(available, fresh)[chosen]
    return made if stream.bos is None else torch.nn.functional.pad(made, (1, 0), value=stream.bos)


def evaluation_windows(
    tokens: TokenStream | torch.Tensor,
    length: int,
    stride: int | None = None,
    limit: int | None = None,
) -> list[Window]:
    """Cut tokens into windows so that every token but the very first is scored once.

    Args:
        tokens: the stream, or ids [T].
        length: of a window, its context included.
        stride: how far windows are apart: the last `stride` tokens of each are scored. None for
            `length`, where windows do not overlap and their first tokens go unscored.
        limit: how many windows to make at most.

    Raises:
        CalibrationError: there are fewer than two tokens, or the sizes make no windows.
    """
    stream = tokens if isinstance(tokens, TokenStream) else TokenStream(tokens)
    stride = length if stride is None else stride
    lead = int(stream.bos is not None)
    if length < 2 + lead or not 0 < stride <= length:
        raise CalibrationError(
            f"windows of {length} tokens with stride {stride}; use a length of at least "
            f"{2 + lead} and a stride from 1 to the length"
        )
    if len(stream) < 2:
        raise CalibrationError(
            f"{stream.name} has {len(stream)} tokens; evaluation needs at least 2, "
            f"better {length:,} or more"
        )
    fresh = min(stride, length - lead)
    return list(islice(_windows(stream, length - lead, fresh), limit))


def _windows(stream: TokenStream, width: int, stride: int) -> Iterator[Window]:
    end = scored_to = 0
    while end < len(stream):
        end = end + stride if end else width
        ids = stream.ids[end - width : end]
        end = min(end, len(stream))
        new, scored_to = end - scored_to, end
        if stream.bos is None:
            new = min(new, ids.numel() - 1)
        else:
            ids = torch.nn.functional.pad(ids, (1, 0), value=stream.bos)
        if new:
            yield Window(ids, new)


def read_tokens(source: str | Path, tokenizer: Any) -> TokenStream:
    """The tokens of a source.

    Args:
        source: see the top of this module.
        tokenizer: as for `calibration_tokens`.

    Raises:
        CalibrationError: it cannot be read, is too large, or holds no text or no token ids.
        ModelError: there is no tokenizer to read text with.
    """
    if is_dataset(source):
        return _tokenise(read_dataset(str(source)), tokenizer, str(source))
    path = Path(source)
    if is_ids(path):
        return TokenStream(read_ids(path), name=path.name)
    return _tokenise(read_text(path), tokenizer, path.name)


def check_vocabulary(tokens: torch.Tensor, vocabulary: int) -> None:
    """Refuse ids that a model has no embedding for.

    Raises:
        CalibrationError: names the first one.
    """
    wrong = tokens[tokens >= vocabulary]
    if wrong.numel():
        raise CalibrationError(
            f"token id {int(wrong[0])} is not in the model's vocabulary of {vocabulary:,}; "
            "were the ids made with another tokenizer?"
        )


def _tokenise(text: str, tokenizer: Any, name: str) -> TokenStream:
    if not text.strip():
        raise CalibrationError(f"{name} holds no text")
    if isinstance(tokenizer, str | Path):
        from slidesparse.accuracy.load import load_tokenizer

        tokenizer = load_tokenizer(tokenizer)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return TokenStream(torch.tensor(ids, dtype=torch.int64), _bos(tokenizer), name)


def _bos(tokenizer: Any) -> int | None:
    """The token that this tokenizer puts before a text, if it does."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    bos = getattr(tokenizer, "bos_token_id", None)
    added = len(whole) > len(plain) and whole[0] == bos and whole[0] not in plain[:1]
    return int(whole[0]) if added else None
