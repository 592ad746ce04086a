"""What `slidesparse bench agreement` is asked for, and what it asks of each checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidesparse.accuracy.load import model_name
from slidesparse.accuracy.text import (
    TokenStream,
    Window,
    check_vocabulary,
    evaluation_windows,
    read_tokens,
)
from slidesparse.bench.agreement.record import Limits
from slidesparse.bench.agreement.requests import Request, plan_requests, sample_requests
from slidesparse.bench.sweep.job import Mode
from slidesparse.bench.sweep.vllm import SLACK
from slidesparse.checkpoint.config import COMPRESSED_TENSORS, QUANTISATION
from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.errors import ModelError, UsageError
from slidesparse.models import load_model

if TYPE_CHECKING:
    from slidesparse.devices import Device

PIECE = 64 << 20
"""Bytes that are read of a file at a time."""


@dataclass(frozen=True)
class AgreementOptions:
    """What the command was asked for.

    Args:
        folders: of the checkpoints.
        text: to score and to cut prompts from; a file or a cached dataset.
        tokenizer: whose, None for each checkpoint's own.
        tokens: that are scored at least.
        length: tokens of a window, which is a step of the engine.
        modes: eager, graphs or both; mixed requests run in the first.
        tp: tensor-parallel size.
        requests: mixed requests that run together; 0 leaves them out.
        longest: tokens of the longest prompt among them.
        outputs: tokens that each of them generates at most.
        aborts: share of them that is aborted.
        alone: how many of them run again alone.
        seed: of all draws.
        timeout: seconds for what one engine is asked for at a time.
        limits: of the verdict.
    """

    folders: tuple[Path, ...]
    text: str
    tokenizer: str | None
    tokens: int
    length: int
    modes: tuple[Mode, ...]
    tp: int
    requests: int
    longest: int
    outputs: int
    aborts: float
    alone: int
    seed: int
    timeout: float
    limits: Limits

    def plain(self) -> dict[str, Any]:
        """As the result file holds them, paths by their last part."""
        return {
            "tokenizer": None if self.tokenizer is None else model_name(self.tokenizer),
            "tokens": self.tokens,
            "length": self.length,
            "modes": [str(mode) for mode in self.modes],
            "tp": self.tp,
            "requests": self.requests,
            "longest": self.longest,
            "outputs": self.outputs,
            "aborts": self.aborts,
            "alone": self.alone,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Prepared:
    """A checkpoint that can be run, and what will be asked of it.

    Args:
        folder: of it.
        windows: that are scored.
        requests: that run together.
        alone: of those, by index, the ones that run again.
        longest: tokens of the longest sequence.
    """

    folder: Path
    windows: tuple[tuple[tuple[int, ...], int], ...]
    requests: tuple[Request, ...]
    alone: Mapping[int, Request]
    longest: int


def prepare(options: AgreementOptions, folder: Path) -> Prepared:
    """Read a checkpoint's headers and the text, and draw the requests.

    Raises:
        SlideSparseError: the checkpoint or the text cannot be used; says why.
    """
    longest = check_checkpoint(folder)
    vocab = load_model(str(folder)).vocab
    try:
        stream = read_tokens(options.text, options.tokenizer or folder)
    except ModelError as error:
        raise ModelError(f"{error}; name one with --tokenizer") from error
    check_vocabulary(stream.ids, vocab)
    windows = enough_windows(stream, options.length, options.tokens)
    requests = plan_requests(
        stream.ids.tolist(),
        options.requests,
        options.longest if options.requests else 0,
        options.outputs,
        options.aborts,
        options.seed,
    )
    alone = sample_requests(requests, options.alone, options.seed)
    return Prepared(
        folder=folder,
        windows=tuple((tuple(it.tokens.tolist()), it.scored) for it in windows),
        requests=requests,
        alone={index: requests[index] for index in alone},
        longest=longest_sequence(options, longest, folder),
    )


def check_device(device: Device) -> None:
    """Refuse a device on which vLLM does not run.

    Raises:
        UsageError: says which one to use.
    """
    if not device.is_gpu:
        raise UsageError("vLLM needs an NVIDIA GPU; run this on a machine with one")
    if device.index:
        raise UsageError(
            f"vLLM runs on the first GPUs that it sees, not on {device}; set "
            f"CUDA_VISIBLE_DEVICES={device.index} and use --device cuda:0"
        )


def check_checkpoint(folder: Path) -> int:
    """Make sure that a folder holds what the plug-in is for.

    Returns:
        Tokens of the longest sequence that the model takes.

    Raises:
        CheckpointError: the folder is no checkpoint, or damaged.
        ModelError: its weights are not W8A8 in the form of compressed-tensors.
    """
    config = CheckpointReader(folder).config
    found = config.get(QUANTISATION)
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    if method != COMPRESSED_TENSORS:
        said = f"quantised by {method}" if method else "not quantised"
        raise ModelError(
            f"{folder} is {said}, and the plug-in is for W8A8 weights of {COMPRESSED_TENSORS}: run "
            f"slidesparse convert {folder} OUTPUT --pattern 6:8 --dtype fp8"
        )
    nested = config.get("text_config")
    longest = {**config, **(nested if isinstance(nested, Mapping) else {})}.get(
        "max_position_embeddings"
    )
    return longest if isinstance(longest, int) else 2**31 - 1


def longest_sequence(options: AgreementOptions, longest: int, folder: Path) -> int:
    """Tokens of the longest sequence that vLLM has to make room for.

    Raises:
        UsageError: the model does not take so many.
    """
    requested = options.longest + options.outputs if options.requests else 0
    for needed, what in (
        (options.length + 1, "use a smaller --length"),
        (requested, "use a smaller --longest or --outputs"),
    ):
        if needed > longest:
            raise UsageError(
                f"sequences of {needed:,} tokens are longer than the {longest:,} that "
                f"{folder.name} takes; {what}"
            )
    return min(longest, max(options.length + 1, requested) + SLACK)


def enough_windows(stream: TokenStream, length: int, tokens: int) -> list[Window]:
    """Windows of a text, as few as hold enough scored tokens.

    Args:
        stream: the text.
        length: tokens of a window.
        tokens: that have to be scored.

    Raises:
        UsageError: the text is too short.
        CalibrationError: no windows can be made of it.
    """
    # Of a window every token counts but its first.
    found = evaluation_windows(stream, length, limit=-(-tokens // max(1, length - 1)))
    scored = sum(window.scored for window in found)
    if scored < tokens:
        raise UsageError(
            f"{stream.name} has {len(stream):,} tokens, of which {scored:,} are scored in windows "
            f"of {length}; --tokens {tokens} needs more text"
        )
    return found


def warm(folder: Path) -> None:
    """Read the weights once, so that no engine finds them colder than the next one.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    for path in CheckpointReader(folder).files:
        with path.open("rb") as file:
            while file.read(PIECE):
                pass
