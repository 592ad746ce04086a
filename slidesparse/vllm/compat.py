"""What differs between versions of vLLM, or may, in one place: names, and where they are.

Read from vLLM 0.25.1 and 0.33.0. Everything else in this package goes through here or through the
classes that vLLM documents for plug-ins. vllm is imported by functions only.
"""

from __future__ import annotations

import importlib
import re
from inspect import signature
from typing import Any

OLDEST = (0, 25)
"""The first version whose hooks are these."""

_HOOKS = {
    "vllm.model_executor.kernels.linear": (
        "register_linear_kernel",
        "choose_scaled_mm_linear_kernel",
        "FP8ScaledMMLinearKernel",
        "Int8ScaledMMLinearKernel",
        "_POSSIBLE_FP8_KERNELS",
        "_POSSIBLE_INT8_KERNELS",
    ),
    "vllm.config": ("get_current_vllm_config_or_none",),
    "vllm.platforms": ("current_platform", "PlatformEnum"),
    "vllm.compilation.passes.inductor_pass": ("InductorPass",),
}
"""What the plug-in needs of vLLM."""


def version() -> str:
    """Of the vLLM that is installed."""
    return str(importlib.import_module("vllm").__version__)


def unsupported() -> str:
    """Why this vLLM is left alone, in one line; "" if it is supported."""
    found = version()
    numbers = re.match(r"(\d+)\.(\d+)", found)
    # A build of a checkout may have no version that says anything; its hooks tell.
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST and not found.startswith("0.0"):
        oldest = ".".join(map(str, OLDEST))
        return f"vLLM {found} is older than {oldest}, whose plug-in hooks it needs"
    for module, names in _HOOKS.items():
        try:
            loaded = importlib.import_module(module)
        except ImportError as error:
            return f"vLLM {found} has no module {error.name or module}"
        missing = next((name for name in names if not hasattr(loaded, name)), None)
        if missing:
            return f"vLLM {found} has no {module}.{missing}"
    return ""


def put_first(kernel: type, kind: str) -> None:
    """Have vLLM ask `kernel` first for linear layers of a kind on CUDA; once is enough.

    Args:
        kernel: a subclass of vLLM's class for the kind.
        kind: "fp8" or "int8", as register_linear_kernel spells it.
    """
    linear = _linear_kernels()
    platform = importlib.import_module("vllm.platforms").PlatformEnum.CUDA
    registered = kernels_of(kind)
    if any(known.__name__ == kernel.__name__ for known in registered):
        return
    linear.register_linear_kernel(kernel, platform, kind)
    registered.insert(0, registered.pop(registered.index(kernel)))


def kernels_of(kind: str) -> list[type]:
    """The classes that vLLM asks for linear layers of a kind on CUDA, the first one first."""
    platform = importlib.import_module("vllm.platforms").PlatformEnum.CUDA
    linear = _linear_kernels()
    table = linear._POSSIBLE_FP8_KERNELS if kind == "fp8" else linear._POSSIBLE_INT8_KERNELS
    found: list[type] = table.setdefault(platform, [])
    return found


def stock_kernel(ours: type, kind: str, config: Any) -> type:
    """The class that vLLM would have chosen without ours.

    Raises:
        ValueError: vLLM has none that can implement the layer.
    """
    platform = importlib.import_module("vllm.platforms").current_platform
    others = {platform._enum: [kernel for kernel in kernels_of(kind) if kernel is not ours]}
    choose = _linear_kernels().choose_scaled_mm_linear_kernel
    # Since 0.33; it only selects among the backends that a user asked for, and then we are off.
    named = {"quantization": kind} if "quantization" in signature(choose).parameters else {}
    chosen: type = choose(config, others, **named)
    return chosen


def current_config() -> Any:
    """The configuration of the model that is being built, or None outside of that."""
    return importlib.import_module("vllm.config").get_current_vllm_config_or_none()


def wants_other_backend(config: Any) -> bool:
    """Whether the user asked for linear kernels of a certain backend."""
    kernels = getattr(config, "kernel_config", None)
    wanted = getattr(kernels, "linear_backend", "auto")
    return wanted != "auto" or bool(getattr(kernels, "linear_backend_per_quant", None))


def batch_invariant() -> bool:
    """Whether results must not depend on what else is in the batch (VLLM_BATCH_INVARIANT)."""
    return bool(getattr(importlib.import_module("vllm.envs"), "VLLM_BATCH_INVARIANT", False))


def offloads(config: Any) -> bool:
    """Whether weights are kept on the host: what we pack is none that vLLM knows to move."""
    offload = getattr(config, "offload_config", None)
    cpu = getattr(getattr(offload, "uva", None), "cpu_offload_gb", 0)
    groups = getattr(getattr(offload, "prefetch", None), "offload_group_size", 0)
    return bool(cpu) or bool(groups)


def shards(config: Any) -> int:
    """How many GPUs share each layer of a model."""
    parallel = getattr(config, "parallel_config", None)
    return int(getattr(parallel, "tensor_parallel_size", 1))


def model_block(config: Any, name: str) -> Any:
    """What a model's config.json holds under a name, or None."""
    model = getattr(config, "model_config", None)
    return getattr(getattr(model, "hf_config", None), name, None)


def custom_pass(config: Any, ours: type) -> Any:
    """The pass of ours that runs over each graph that Inductor compiles, after vLLM's own fusions.

    Args:
        config: vLLM's configuration, before its model is compiled. Models that share a compilation,
            such as a draft model and its target, share the pass.
        ours: its class, which takes the pass that was there before, or None.
    """
    options = config.compilation_config.inductor_compile_config
    key = importlib.import_module("vllm.platforms").current_platform.pass_key
    found = options.get(key)
    if not isinstance(found, ours):
        found = options[key] = ours(found)
    return found


def norm_ops() -> tuple[Any, Any]:
    """The operators rms_norm and fused_add_rms_norm as they stand in vLLM's graphs, or None."""
    import torch

    importlib.import_module("vllm.ir.ops")
    library = getattr(torch.ops, "vllm_ir", None)
    found = [getattr(library, name, None) for name in ("rms_norm", "fused_add_rms_norm")]
    plain, add = (None if op is None else op.default for op in found)
    return plain, add


def _linear_kernels() -> Any:
    return importlib.import_module("vllm.model_executor.kernels.linear")
