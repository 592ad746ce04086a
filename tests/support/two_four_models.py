"""A tiny Llama whose linears are 2:4, saved as compressed-tensors did, and dense."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tiny_checkpoints import bitmask, save_tensors, w8a8
from tiny_models import tiny_model

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}

SPARSITY = {
    "format": "sparse-24-bitmask",
    "global_sparsity": 0.4217,
    "ignore": ["lm_head"],
    "registry_requires_subclass": False,
    "sparsity_structure": "2:4",
    "targets": ["Linear"],
}

W8A8_TYPES = {torch.float8_e4m3fn: "float", torch.int8: "int"}


def _arguments(kind: str, dynamic: bool, strategy: str, observer: str | None) -> dict[str, Any]:
    return {
        "actorder": None,
        "block_structure": None,
        "dynamic": dynamic,
        "group_size": None,
        "num_bits": 8,
        "observer": observer,
        "observer_kwargs": {},
        "strategy": strategy,
        "symmetric": True,
        "type": kind,
    }


def quantisation(
    dtype: torch.dtype | None, sparsity: Mapping[str, Any] | None = SPARSITY
) -> dict[str, Any]:
    """The section quantization_config as published 2:4 models have it.

    FP8 and INT8 are those of Sparse-Llama-3.1-8B-...-2of4; None is a model that was only pruned,
    whose section compressed-tensors writes without groups.
    """
    made: dict[str, Any] = {"quant_method": "compressed-tensors", "version": "0.9.0"}
    if sparsity is not None:
        made["sparsity_config"] = dict(sparsity)
    if dtype is None:
        return made
    kind = W8A8_TYPES[dtype]
    group = {
        "input_activations": _arguments(kind, True, "token", None),
        "output_activations": None,
        "targets": ["Linear"],
        "weights": _arguments(kind, False, "channel", "mse"),
    }
    return made | {
        "config_groups": {"group_0": group},
        "format": f"{kind}-quantized",
        "global_compression_ratio": 1.4617,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


def two_four(w: torch.Tensor) -> torch.Tensor:
    """A weight [N, K] with the two smallest of each four columns set to zero."""
    groups = w.reshape(-1, 4)
    smallest = groups.float().abs().topk(2, dim=1, largest=False).indices
    # Not by a product, which leaves -0.0: bitmasks bring back +0.0.
    return groups.scatter(1, smallest, 0).reshape(w.shape)


def two_four_tensors(dtype: torch.dtype | None, **sizes: Any) -> dict[str, torch.Tensor]:
    """Every tensor of the model, its linears 2:4 and dense: BF16, or W8A8 with scales."""
    tensors = {}
    for name, w in tiny_model("Llama", **(SIZES | sizes)).to(torch.bfloat16).state_dict().items():
        if not name.endswith("proj.weight"):
            tensors[name] = w
        elif dtype is None:
            tensors[name] = two_four(w)
        else:
            tensors |= w8a8(name.removesuffix(".weight"), two_four(w), dtype)
    return tensors


def packed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same model with its linears in sparse-24-bitmask form."""
    made: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("proj.weight"):
            made |= bitmask(name.removesuffix(".weight"), tensor)
        else:
            made[name] = tensor
    return made


def model_config(section: Mapping[str, Any] | None, **sizes: Any) -> dict[str, Any]:
    """config.json of the model with a section quantization_config, or with none."""
    made: dict[str, Any] = tiny_model("Llama", **(SIZES | sizes)).config.to_dict()
    made |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    return made if section is None else made | {"quantization_config": dict(section)}


def save_both(path: Path, dtype: torch.dtype | None, **sizes: Any) -> tuple[Path, Path]:
    """The model in bitmask form and dense, in two folders."""
    tensors = two_four_tensors(dtype, **sizes)
    sparse = model_config(quantisation(dtype), **sizes)
    plain = None if dtype is None else quantisation(dtype, sparsity=None)
    return (
        save_tensors(path / "packed", packed(tensors), sparse),
        save_tensors(path / "dense", tensors, model_config(plain, **sizes)),
    )
