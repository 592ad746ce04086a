"""A causal LM of which only the embedding and one decoder block are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.errors import CheckpointError, ModelError, reason_of
from slidesparse.prune.inputs import BlockInputs, blocks_of, first_inputs
from slidesparse.prune.model import PREFIX, check_untied
from slidesparse.recipe import HEAD


class TensorSource(Protocol):
    """What weights are read from: a CheckpointReader, or anything that acts like one."""

    def __contains__(self, name: str) -> bool:
        """Whether a tensor of this name is stored."""

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor as it is stored."""

    def linear(self, linear: str) -> torch.Tensor:
        """The float weight [N, K] of a linear."""


class StreamedModel:
    """Runs a checkpoint block by block: memory for the embedding, one block and activations.

    Args:
        directory: a checkpoint with config.json and safetensors.
        device: where blocks are loaded and run.
        dtype: weights and activations are computed in; None takes what config.json names.
        source: of the weights; None reads the directory's.

    Raises:
        CheckpointError: the weights cannot be read.
        ModelError: config.json is missing or of a model that transformers does not know.
    """

    def __init__(
        self,
        directory: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        source: TensorSource | None = None,
    ) -> None:
        """Build the model without its weights."""
        self.device = torch.device(device)
        self.model = hollow_model(Path(directory))
        self.dtype = dtype or dtype_of(self.model)
        self._source = source if source is not None else _reader(directory)
        _move_buffers(self.model, self.device)

    @property
    def blocks(self) -> int:
        """How many decoder blocks there are."""
        return len(blocks_of(self.model))

    def first_inputs(
        self, tokens: torch.Tensor, store: torch.device | str | None = None
    ) -> BlockInputs:
        """The inputs of the first block for tokens [S, L]; loads the embedding meanwhile.

        Args:
            tokens: int64 token ids.
            store: the device that keeps hidden states; None takes the model's.

        Raises:
            CheckpointError: the embedding cannot be read.
            ModelError: the model cannot be run block by block.
        """
        embedding = self.model.get_input_embeddings()
        self._load(embedding, _name_of(self.model, embedding))
        try:
            return first_inputs(self.model, tokens, store)
        finally:
            self.release(embedding)

    def load_block(self, index: int, source: TensorSource | None = None) -> tuple[str, nn.Module]:
        """Read the weights of a decoder block.

        Args:
            index: of the block.
            source: read from here instead, for example from what was converted already.

        Returns:
            Its name, "model.layers.3", and the block on the device.

        Raises:
            CheckpointError: a weight is missing, damaged or of another shape than the model's.
        """
        prefix, block = f"{PREFIX}.{index}", blocks_of(self.model)[index]
        self._load(block, prefix, source)
        return prefix, block

    def load_head(self) -> nn.Module:
        """Read the final norm and lm_head, for `prune_head(streamed.model, ...)`.

        Raises:
            CheckpointError: as `load_block`.
            RecipeError: lm_head is tied to the embedding.
        """
        check_untied(self.model)
        norm = self.model.model.norm
        self._load(norm, _name_of(self.model, norm))
        head = cast(nn.Module, getattr(self.model, HEAD))
        self._load(head, HEAD)
        return head

    def release(self, module: nn.Module) -> None:
        """Free the weights of what `load_block` or `load_head` returned."""
        for owner, name, parameter in _parameters(module):
            owner._parameters[name] = nn.Parameter(
                torch.empty_like(parameter, device="meta"), requires_grad=False
            )

    def _load(self, module: nn.Module, prefix: str, source: TensorSource | None = None) -> None:
        owners = {id(owner): name for name, owner in module.named_modules(prefix=prefix)}
        for owner, name, parameter in _parameters(module):
            made = self._read(owner, f"{owners[id(owner)]}.{name}", source or self._source)
            if made.shape != parameter.shape:
                raise CheckpointError(
                    f"{owners[id(owner)]}.{name} has shape {tuple(made.shape)}, config.json makes "
                    f"it {tuple(parameter.shape)}"
                )
            owner._parameters[name] = nn.Parameter(
                made.to(self.device, self.dtype), requires_grad=False
            )

    def _read(self, owner: nn.Module, name: str, source: TensorSource) -> torch.Tensor:
        if isinstance(owner, nn.Linear) and name.endswith(".weight"):
            return source.linear(name.removesuffix(".weight"))
        if name not in source and ".experts" in name:
            raise CheckpointError(
                f"the checkpoint holds no {name}: this transformers release runs all experts in "
                "one tensor, which cannot be calibrated block by block; use the magnitude method"
            )
        return source.tensor(name)


class _EmptyOnMeta(TorchFunctionMode):
    """Makes what is not initialised take no memory.

    Weights are made by torch.empty; buffers such as rotary frequencies are computed, and therefore
    real. A model built wholly on the meta device would lose them, since no checkpoint holds them.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call it, with another device if it is torch.empty."""
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def hollow_model(directory: Path) -> Any:
    """The causal LM of a config.json, its weights on the meta device and its buffers real.

    Raises:
        ModelError: config.json is missing or of a model that transformers does not know.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        # Weights are dequantised when they are read.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with _EmptyOnMeta():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        # What a config.json can make transformers raise has no common base.
        reason = f"{type(error).__name__}: {reason_of(error)}"[:300]
        raise ModelError(f"transformers cannot build the model of {directory}: {reason}") from error
    model.eval()
    blocks_of(model)
    return model


def _reader(directory: Path | str) -> TensorSource:
    return CheckpointReader(directory)


def dtype_of(model: Any) -> torch.dtype:
    """What config.json says the weights are kept in; float32 if it is silent."""
    # Releases before 4.56 call it torch_dtype.
    named = getattr(model.config, "dtype", None) or getattr(model.config, "torch_dtype", None)
    return named if isinstance(named, torch.dtype) else torch.float32


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


def _parameters(module: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Every parameter with the module that holds it and its name there."""
    return [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None
    ]


def _name_of(model: Any, wanted: nn.Module) -> str:
    return next(str(name) for name, module in model.named_modules() if module is wanted)
