"""Real classes of vLLM on the CPU: its platform says CUDA, as on the GPU that a plug-in serves."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def vllm_group(tmp_path_factory):
    """A process group of one, without which vLLM makes no linear layer."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.model_executor.layers import linear  # noqa: F401 - before the platform says CUDA
    from vllm.model_executor.layers.quantization.compressed_tensors import (
        compressed_tensors,  # noqa: F401
    )

    # They ask the platform when they are imported, and would look up CUDA operators.
    for name in ("utils.w8a8_utils", "online.fp8"):
        importlib.import_module(f"vllm.model_executor.layers.quantization.{name}")
    if not parallel_state.model_parallel_is_initialized():
        place = tmp_path_factory.mktemp("group") / "store"
        with set_current_vllm_config(VllmConfig(device_config=DeviceConfig(device="cpu"))):
            parallel_state.init_distributed_environment(1, 0, f"file://{place}", 0, "gloo")
            parallel_state.initialize_model_parallel(1, 1)


@pytest.fixture
def cuda_platform(vllm_group, monkeypatch) -> Iterator[None]:
    """vLLM chooses classes as on a GPU of compute capability 9.0; tensors stay on the CPU."""
    from vllm.platforms import PlatformEnum, current_platform
    from vllm.platforms.interface import DeviceCapability

    monkeypatch.setattr(current_platform, "_enum", PlatformEnum.CUDA, raising=False)
    capability = DeviceCapability(9, 0)
    for name, value in (("get_device_capability", capability), ("has_device_capability", True)):
        monkeypatch.setattr(current_platform, name, lambda *a, v=value, **k: v, raising=False)
    # Newer versions ask a CUDA operator what the GPU can do.
    operators = importlib.import_module("vllm._custom_ops")
    monkeypatch.setattr(operators, "cutlass_scaled_mm_supports_fp8", lambda capability: True)
    yield
    torch.set_default_dtype(torch.float32)
