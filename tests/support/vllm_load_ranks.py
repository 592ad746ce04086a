"""Load checkpoints into vLLM's models on the CPU: `vllm_load_ranks.py RANK WORLD OUT FOLDER...`.

A script, since vLLM settles its platform once per process and without a GPU takes none by itself.
OUT gets a list: the parameters of each folder's model as they were loaded, by name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch


def settle_platform() -> None:
    """Before any module of vLLM asks for the platform and keeps it."""
    import vllm.platforms
    from vllm.platforms.cpu import CpuPlatform

    vllm.platforms._current_platform = CpuPlatform()


def config_of(folder: str, world: int) -> Any:
    from vllm.config import DeviceConfig, LoadConfig, ModelConfig, ParallelConfig, VllmConfig

    return VllmConfig(
        model_config=ModelConfig(model=folder, dtype="bfloat16", skip_tokenizer_init=True),
        parallel_config=ParallelConfig(tensor_parallel_size=world),
        load_config=LoadConfig(),
        device_config=DeviceConfig("cpu"),
    )


def parameters(config: Any) -> dict[str, torch.Tensor]:
    """As the loader leaves them, before a scheme repacks them."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import initialize_model

    with set_current_vllm_config(config):
        model = initialize_model(config)
        for parameter in model.parameters():
            # What is not loaded must not pass for what is.
            parameter.data.view(torch.uint8).fill_(0xFF)
        get_model_loader(config.load_config).load_weights(model, config.model_config)
    return {name: it.detach().clone() for name, it in model.named_parameters()}


def main(rank: int, world: int, out: Path, folders: list[str]) -> None:
    settle_platform()
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    from slidesparse.vllm import sparse24

    assert sparse24.install()
    configs = [config_of(folder, world) for folder in folders]
    with set_current_vllm_config(configs[0]):
        meeting = f"file://{out.parent.resolve()}/meeting"
        init_distributed_environment(world, rank, meeting, rank, backend="gloo")
        initialize_model_parallel(world)
    torch.save([parameters(config) for config in configs], out)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
