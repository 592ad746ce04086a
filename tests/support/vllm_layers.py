"""Linear layers of vLLM with compressed-tensors weights, on the CPU, and plans that run there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from slidesparse.candidate import Candidate
from slidesparse.layers.planning import LayerShape, Timed
from slidesparse.pattern import Pattern
from slidesparse.slide import prune_magnitude

REFERENCE = Candidate("reference", {}, sparse=False)


def quantization(kind: str = "float", weights: str = "channel", static: bool = False) -> Any:
    """The block quantization_config of a compressed-tensors checkpoint.

    Args:
        kind: "float" or "int".
        weights: "channel" or "tensor".
        static: whether activations have one scale, which the checkpoint holds.
    """
    shared = {"num_bits": 8, "type": kind, "symmetric": True}
    activations = {"dynamic": not static, "strategy": "tensor" if static else "token"}
    return {
        "quant_method": "compressed-tensors",
        "format": f"{kind}-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**shared, "dynamic": False, "strategy": weights},
                "input_activations": {**shared, **activations},
            }
        },
    }


def make_config(additional: object = None, **changes: Any) -> Any:
    """vLLM's configuration of a compressed-tensors model, as far as a layer looks at it."""
    from vllm.config import DeviceConfig, VllmConfig

    config = VllmConfig(
        device_config=DeviceConfig(device="cpu"), additional_config=additional or {}
    )
    model = {"dtype": torch.bfloat16, "quantization": "compressed-tensors"}
    config.model_config = SimpleNamespace(**model)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


@contextmanager
def building(config: Any) -> Iterator[None]:
    """Inside, layers are made as vLLM makes them for a model in BF16."""
    from vllm.config import set_current_vllm_config

    with set_current_vllm_config(config):
        torch.set_default_dtype(torch.bfloat16)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def linear_of(n: int, k: int, block: Any, bias: bool = True, parts: int = 1) -> nn.Module:
    """A linear [N, K] of vLLM, inside `building`; parts > 1 merges so many of N / parts."""
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, ReplicatedLinear
    from vllm.model_executor.layers.quantization.compressed_tensors import compressed_tensors

    quant = compressed_tensors.CompressedTensorsConfig.from_config(block)
    if parts == 1:
        layer = ReplicatedLinear(k, n, bias, quant_config=quant, prefix="model.layers.0.x")
    else:
        layer = MergedColumnParallelLinear(
            k, [n // parts] * parts, bias, quant_config=quant, prefix="model.layers.0.x"
        )
    return layer


def fill(layer: Any, pattern: str, seed: int = 0) -> torch.Tensor:
    """Give a layer weights of a pattern; returns what they stand for, [N, K] float64."""
    generator = torch.Generator().manual_seed(seed)
    w = layer.weight
    values = torch.randn(w.shape, generator=generator)
    pruned = prune_magnitude(values, Pattern.parse(pattern))
    largest = 448.0 if w.dtype.is_floating_point else 127.0
    per_row = layer.weight_scale.numel() == w.shape[0]
    peak = pruned.abs().amax(1, keepdim=True) if per_row else pruned.abs().max()
    step = peak / largest
    q = pruned / step
    w.data.copy_(q if w.dtype.is_floating_point else q.round())
    layer.weight_scale.data.copy_(step.reshape(layer.weight_scale.shape) if per_row else step)
    if layer.bias is not None:
        layer.bias.data.copy_(torch.randn(layer.bias.shape, generator=generator))
    return w.data.double() * step.double()


def process(layer: Any) -> None:
    """What vLLM does once a layer's weights are there.

    FP8 weights with one scale go through a CUDA operator, which brings the scales of merged parts
    to one; a layer of one part is transposed here as that leaves it.
    """
    kernel = getattr(layer.scheme, "fp8_linear", None)
    if kernel is None or layer.weight_scale.numel() > 1:
        layer.quant_method.process_weights_after_loading(layer)
        return
    layer.weight = nn.Parameter(layer.weight.data.t(), requires_grad=False)
    layer.weight_scale = nn.Parameter(layer.weight_scale.data.max(), requires_grad=False)
    layer.input_scale = None
    kernel.process_weights_after_loading(layer)


def ways_of(*buckets: int) -> Any:
    """A stand-in for what was measured: plain torch, 10 microseconds in each of these M buckets."""

    def measured(shape: LayerShape, device: torch.device) -> dict[int, tuple[Timed, ...]]:
        return {bucket: (Timed(REFERENCE, 10.0, 0.0),) for bucket in buckets}

    return measured
