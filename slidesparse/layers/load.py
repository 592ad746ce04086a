"""Converted checkpoints as models whose quantised linears are `SparseLinear`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from slidesparse.checkpoint.config import provenance
from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.errors import CheckpointError
from slidesparse.layers.linear import OUTPUTS, SparseLinear
from slidesparse.layers.planning import FASTEST
from slidesparse.layers.weight import SparseWeight
from slidesparse.pattern import DENSE, Pattern

if TYPE_CHECKING:
    from slidesparse.recipe import Recipe


def linear_from_checkpoint(
    reader: CheckpointReader,
    name: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    memory_format: str = FASTEST,
) -> SparseLinear:
    """One quantised linear of a checkpoint.

    Args:
        reader: of a checkpoint with FP8 or INT8 weights, converted by slidesparse or not.
        name: of the linear, "model.layers.0.self_attn.q_proj".
        device: where it will run.
        dtype: of activations and result.
        memory_format: as `SparseLinear` takes it.

    Raises:
        CheckpointError: it is not there, not quantised, or damaged.
        PatternError: the weight breaks the pattern that the checkpoint names.
    """
    if not reader.form(name).quantised:
        raise CheckpointError(f"{name} is not quantised; use SparseLinear.from_linear")
    q = reader.quantised_or_plain(name).to(device)
    scale = reader.scales(name).float().flatten().expand(q.shape[0]).contiguous().to(device)
    bias = reader.tensor(f"{name}.bias").to(device) if f"{name}.bias" in reader else None
    found = provenance(reader.config)
    pattern = _pattern(found.recipe if found else None, name)
    return SparseLinear(SparseWeight(q, scale, pattern), bias, dtype, memory_format)


def load_model(
    directory: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    memory_format: str = FASTEST,
) -> nn.Module:
    """The causal LM of a converted checkpoint, ready to run.

    Linears that are quantised become `SparseLinear` of the pattern that the checkpoint names for
    them, dense for checkpoints of others; all else is loaded as it is. One tensor at a time is read
    beside what stays.

    Args:
        directory: that `slidesparse convert` wrote, or another compressed-tensors W8A8 checkpoint.
        device: where to put it.
        dtype: of activations; None takes what config.json names.
        memory_format: as `SparseLinear` takes it.

    Raises:
        CheckpointError: a tensor is missing, damaged or of another shape than the model's.
        ModelError: config.json is missing or of a model that transformers does not know.
    """
    from slidesparse.prune.stream import dtype_of, hollow_model

    reader = CheckpointReader(directory)
    model = hollow_model(Path(directory))
    wanted = dtype or dtype_of(model)
    if wanted not in OUTPUTS:
        raise CheckpointError(f"{directory} is of {wanted}; use bfloat16, float16 or float32")
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and _quantised(reader, name):
            made = linear_from_checkpoint(
                reader, name, device=device, dtype=wanted, memory_format=memory_format
            )
            if (made.out_features, made.in_features) != tuple(module.weight.shape):
                raise CheckpointError(
                    f"{name} is [{made.out_features}, {made.in_features}], config.json makes it "
                    f"{list(module.weight.shape)}"
                )
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, made)
    _fill(model, reader, torch.device(device), wanted)
    loaded: nn.Module = model.eval()
    return loaded


def _fill(model: Any, reader: CheckpointReader, device: torch.device, dtype: torch.dtype) -> None:
    """Read every parameter that is left, once where several names share one."""
    loaded: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            full = f"{prefix}.{name}" if prefix else name
            if id(parameter) not in loaded:
                made = _read(reader, module, full, tuple(parameter.shape))
                loaded[id(parameter)] = nn.Parameter(made.to(device, dtype), requires_grad=False)
            module._parameters[name] = loaded[id(parameter)]
        if isinstance(module, SparseLinear):
            continue
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    model.tie_weights()


def _read(
    reader: CheckpointReader, module: nn.Module, name: str, shape: tuple[int, ...]
) -> torch.Tensor:
    if isinstance(module, nn.Linear) and name.endswith(".weight"):
        made = reader.linear(name.removesuffix(".weight"))
    else:
        made = reader.tensor(name)
    if tuple(made.shape) != shape:
        raise CheckpointError(f"{name} is {list(made.shape)}, config.json makes it {list(shape)}")
    return made


def _quantised(reader: CheckpointReader, name: str) -> bool:
    """Whether a linear is stored quantised; one that is tied is stored under another name."""
    stored = f"{name}.weight" in reader or f"{name}.compressed" in reader
    return stored and reader.form(name).quantised


def _pattern(recipe: Recipe | None, name: str) -> Pattern:
    return recipe.pattern_of(name) if recipe else DENSE
