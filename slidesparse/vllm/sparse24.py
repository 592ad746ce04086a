"""2:4 checkpoints of compressed-tensors, which vLLM dropped in 0.19.1, load and run again.

Two places are enough, and other checkpoints notice neither:

* vLLM's class for "compressed-tensors" refuses a config.json with a `sparsity_config`. A subclass
  registered under the same name, vLLM's own way, hands every other config to vLLM's class and
  drops the refused section of these.
* Weights in the form sparse-24-bitmask become dense ones, zeros included, while they stream from
  the files: DefaultModelLoader.get_all_weights is wrapped, and acts on these checkpoints alone.
  vLLM has no hook that sees a model's whole stream of weights.

From there on a layer has ordinary weights, so that vLLM shards and merges them and the plug-in's
kernels find 2:4 in them, on any number of GPUs and on every quantisation scheme that vLLM runs.

`{"slidesparse": {"off": true}}` brings vLLM's refusal back. vLLM reads the quantisation config
before the option is to be seen, so that the refusal comes when the model's first layer is made.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers import quantization
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
)
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from slidesparse.checkpoint.bitmask import dense_weights
from slidesparse.checkpoint.config import COMPRESSED_TENSORS
from slidesparse.errors import CheckpointError, UsageError
from slidesparse.vllm import compat
from slidesparse.vllm.options import parse_options

if TYPE_CHECKING:
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

log = logging.getLogger("vllm.slidesparse")  # Where vLLM shows it like its own lines.

SPARSITY = "sparsity_config"
BITMASK_24 = "sparse-24-bitmask"
DENSE = "dense"
"""Of a 2:4 checkpoint with plain weights, which vLLM refuses all the same."""

UNSERVED_LOADERS = ("runai_streamer",)
"""Values of load_format whose loader does not read through DefaultModelLoader."""

_MARK = "_slidesparse_sparse24"


class Sparse24Config(CompressedTensorsConfig):  # type: ignore[misc]
    """vLLM's configuration of compressed-tensors, with 2:4 checkpoints among what it accepts."""

    checkpoint: Mapping[str, Any] = MappingProxyType({})
    """The section of config.json as it stands there."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CompressedTensorsConfig:
        """The configuration of a checkpoint; vLLM's own class unless it is a 2:4 checkpoint.

        Args:
            config: the section quantization_config of config.json.

        Raises:
            Exception: what vLLM raises on it.
        """
        if sparse_format(config) is None or _switched_off():
            return CompressedTensorsConfig.from_config(config)
        made = super().from_config({key: it for key, it in config.items() if key != SPARSITY})
        made.checkpoint = config
        return made

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """How a layer is quantised, as vLLM decides it.

        Raises:
            DeprecationWarning: vLLM's refusal of 2:4 checkpoints, if slidesparse is off.
            CheckpointError: the weights will not be read by the loader that unpacks them.
        """
        if _switched_off():
            CompressedTensorsConfig.from_config(dict(self.checkpoint))
        load = getattr(getattr(compat.current_config(), "load_config", None), "load_format", None)
        if load in UNSERVED_LOADERS and sparse_format(self.checkpoint) == BITMASK_24:
            raise CheckpointError(
                f"load_format {load} does not unpack {BITMASK_24} weights; use auto or safetensors"
            )
        return super().get_quant_method(layer, prefix)


def install() -> bool:
    """Have vLLM load 2:4 checkpoints in this process; once or more, with the same effect.

    Returns:
        Whether it does. A vLLM without the places that this needs, or in which someone else took
        over compressed-tensors, is left as it is with one warning.
    """
    reason = _obstacle()
    if reason:
        log.warning("2:4 checkpoints stay unsupported by vLLM: %s", reason)
        return False
    stock = DefaultModelLoader.get_all_weights
    if not hasattr(stock, _MARK):
        DefaultModelLoader.get_all_weights = _unpacking(stock)
    if _registered() is not Sparse24Config:
        quantization.register_quantization_config(COMPRESSED_TENSORS)(Sparse24Config)
    return True


def sparse_format(config: Any) -> str | None:
    """How a checkpoint stores its 2:4 weights: "sparse-24-bitmask", "dense", or None for others.

    Args:
        config: the section quantization_config of config.json, or anything else.
    """
    section = config.get(SPARSITY) if isinstance(config, Mapping) else None
    if not isinstance(section, Mapping):
        return None
    if section.get("format") == DENSE and section.get("sparsity_structure") == "2:4":
        return DENSE
    return BITMASK_24 if section.get("format") == BITMASK_24 else None


def _unpacking(stock: Any) -> Any:
    """DefaultModelLoader.get_all_weights, with 2:4 weights unpacked."""

    @functools.wraps(stock)
    def get_all_weights(
        self: Any, model_config: Any, model: torch.nn.Module
    ) -> Iterator[tuple[str, torch.Tensor]]:
        weights: Iterator[tuple[str, torch.Tensor]] = stock(self, model_config, model)
        if _config_format(model_config) != BITMASK_24 or _switched_off():
            return weights
        return dense_weights(weights, device=_device(model))

    setattr(get_all_weights, _MARK, True)
    return get_all_weights


def _config_format(model_config: Any) -> str | None:
    """The `sparse_format` of a model, its config read where vLLM reads it."""
    hf_config = getattr(model_config, "hf_config", None)
    text_config = getattr(hf_config, "text_config", None)
    places = (
        (hf_config, "quantization_config"),
        (text_config, "quantization_config"),
        (hf_config, "compression_config"),
    )
    found = (getattr(place, name, None) for place, name in places)
    return sparse_format(next((config for config in found if config is not None), None))


def _device(model: torch.nn.Module) -> torch.device | None:
    """Where to unpack: beside the parameters, which take a fraction of the time that a CPU takes.

    None where the parameters have no memory yet.
    """
    parameter = next(model.parameters(), None)
    if parameter is None or parameter.device.type == "meta":
        return None
    return parameter.device


def _switched_off() -> bool:
    """Whether the options say so, as far as they can be seen: not before vLLM builds the model."""
    try:
        return parse_options(getattr(compat.current_config(), "additional_config", None)).off
    except UsageError:
        # The session reports options that it cannot read.
        return False


def _registered() -> Any:
    """The class that someone registered for compressed-tensors, None if it is vLLM's own."""
    return getattr(quantization, "_CUSTOMIZED_METHOD_TO_QUANT_CONFIG", {}).get(COMPRESSED_TENSORS)


def _obstacle() -> str:
    """Why 2:4 checkpoints cannot be loaded here, in one line; "" if they can."""
    taken = _registered()
    if taken not in (None, Sparse24Config):
        return f"{taken.__module__}.{taken.__qualname__} is registered for {COMPRESSED_TENSORS}"
    loader = getattr(DefaultModelLoader, "get_all_weights", None)
    if loader is None:
        return "DefaultModelLoader has no get_all_weights"
    names = list(inspect.signature(loader).parameters)
    if names != ["self", "model_config", "model"]:
        return f"DefaultModelLoader.get_all_weights takes {', '.join(names)}"
    return ""
