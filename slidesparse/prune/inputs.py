"""What decoder blocks are called with, and how to run one of them by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slidesparse.errors import ModelError


@dataclass(frozen=True)
class BlockCall:
    """What a model passes to a block besides the hidden states: masks, position embeddings."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class BlockInputs:
    """The inputs of one decoder block for all calibration sequences.

    Args:
        hidden: per sequence [1, L, H], on any device: `run_block` moves one at a time to the
            block and its output back.
        calls: the other arguments of every block of the model, the same for all sequences.
        block: which block of the model the hidden states are for.
    """

    hidden: list[torch.Tensor]
    calls: tuple[BlockCall, ...]
    block: int = 0

    def after(self, outputs: list[torch.Tensor]) -> BlockInputs:
        """The inputs of the next block, given this one's outputs."""
        return BlockInputs(outputs, self.calls, self.block + 1)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a transformers causal LM.

    Raises:
        ModelError: the model does not keep them in model.layers.
    """
    blocks = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ModelError(
            f"{type(model).__name__} has no decoder blocks in model.layers; use a causal LM of the "
            "Llama, Mistral, Qwen, Gemma or SmolLM kind"
        )
    return blocks


@torch.no_grad()
def first_inputs(
    model: nn.Module, tokens: torch.Tensor, store: torch.device | str | None = None
) -> BlockInputs:
    """Run the model up to its first block and note what every block is called with.

    The weights of the blocks are not used and may be on the meta device.

    Args:
        model: a transformers causal LM.
        tokens: [S, L] int64 token ids, all sequences whole.
        store: the device that keeps hidden states; None leaves them where the model made them.

    Raises:
        ModelError: the model has no known decoder blocks, or calls them differently for different
            text.
    """
    hidden: list[torch.Tensor] = []
    calls: list[BlockCall] = []
    for index in range(tokens.shape[0]):
        made, called = _calls_of_blocks(model, tokens[index : index + 1])
        hidden.append(made if store is None else made.to(store))
        if not calls:
            calls = called
        elif index == 1 and not _same(calls, called):
            raise ModelError(
                f"{type(model).__name__} passes its blocks more than hidden states that depend on "
                "the text; such a model cannot be run block by block"
            )
    return BlockInputs(hidden, tuple(calls))


def run_block(block: nn.Module, inputs: BlockInputs) -> list[torch.Tensor]:
    """Run a block on every sequence: outputs [1, L, H], each where its input was."""
    return [
        made.to(hidden.device)
        for made, hidden in zip(outputs_of(block, inputs), inputs.hidden, strict=True)
    ]


def outputs_of(block: nn.Module, inputs: BlockInputs) -> Iterator[torch.Tensor]:
    """Run a block on one sequence after the other: outputs [1, L, H] on the block's device."""
    device = next(block.parameters()).device
    call = inputs.calls[inputs.block]
    args, kwargs = _moved(call.args, device), _moved(dict(call.kwargs), device)
    for hidden in inputs.hidden:
        with torch.no_grad(), evaluating(block):
            made = block(hidden.to(device), *args, **kwargs)
        # Releases of transformers differ in whether a block returns a tuple.
        yield made[0] if isinstance(made, tuple) else made


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in evaluation mode: no dropout. Afterwards as it was."""
    training = [it for it in module.modules() if it.training]
    for it in training:
        it.training = False
    try:
        yield
    finally:
        for it in training:
            it.training = True


class _LastBlockReachedError(Exception):
    """Ends the forward pass of a model whose blocks are only listened to."""


def _calls_of_blocks(
    model: nn.Module, tokens: torch.Tensor
) -> tuple[torch.Tensor, list[BlockCall]]:
    """The first block's hidden states [1, L, H], and what every block was called with."""
    blocks = list(blocks_of(model))
    found: list[torch.Tensor] = []
    calls: list[BlockCall] = []

    def listen(*args: Any, **kwargs: Any) -> torch.Tensor:
        hidden, *others = args if args else (kwargs.pop("hidden_states"),)
        if not found:
            found.append(hidden)
        calls.append(BlockCall(tuple(others), kwargs))
        if len(calls) == len(blocks):
            raise _LastBlockReachedError
        # The first block's, whatever came in: a model that expects a tuple takes a slice of it.
        return found[0]

    with _replaced_forward(blocks, listen), evaluating(model):
        try:
            model(input_ids=tokens.to(_embedding_device(model)), use_cache=False)
        except _LastBlockReachedError:
            return found[0], calls
    raise ModelError(f"{type(model).__name__} ran only {len(calls)} of {len(blocks)} blocks")


@contextmanager
def _replaced_forward(blocks: list[nn.Module], forward: Any) -> Iterator[None]:
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.__dict__["forward"] = forward
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            # Libraries that place weights set a forward of the instance; most have the class's.
            del block.__dict__["forward"]
            if own is not None:
                block.__dict__["forward"] = own


def _embedding_device(model: nn.Module) -> torch.device:
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    return embedding.weight.device  # type: ignore[no-any-return]


def _moved(value: Any, device: torch.device) -> Any:
    """The value with every tensor in its tuples, lists and dicts on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_moved(item, device) for item in value)
    return value


def _same(one: Any, other: Any) -> bool:
    """Whether two calls were made with the same values."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, BlockCall) and isinstance(other, BlockCall):
        return _same(one.args, other.args) and _same(one.kwargs, other.kwargs)
    return type(one) is type(other)
