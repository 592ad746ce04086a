"""Realistic random weights for a model that vLLM builds without a checkpoint.

vLLM's dummy weights are uniform in +-0.001, which in FP8 is nearly all zeros: a GPU at its power
limit runs faster on them, and so they flatter whatever is timed. Here every linear's weight is
normal, pruned by magnitude to the pattern and quantised per output channel, as a converted
checkpoint is. That happens while the model is loaded, before vLLM and our plug-in pack weights.

A value depends on the seed, the parameter's name and its shape alone, so that stock vLLM and ours,
each in a process of its own, serve the same model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from slidesparse.errors import ModelError
from slidesparse.kernels.reference import quantize
from slidesparse.pattern import DENSE, Pattern
from slidesparse.slide import prune_magnitude
from slidesparse.tensors import DTYPES, TOP

LOAD_FORMAT = "slidesparse_random"
"""What vLLM's load_format has to be."""

STD = 0.02
"""Of embeddings, of weights that are not quantised and of biases, as in initializer_range."""

NORM_STD = 0.05
"""How far the weights of norms are from 1."""

ACTIVATION_TOP = 10.0
"""Where static activation scales clip: what follows a norm is about N(0, 1)."""

WEIGHT_TOP = 6.0
"""Where one scale per tensor clips, in standard deviations: above the largest of 10^8 values."""

CHUNK_ELEMENTS = 2**26
"""Weights drawn, pruned and quantised at once, in float32. Another number, other values."""

_QUANTISED = (torch.float8_e4m3fn, torch.int8)
_SCALE = "_scale"
_KV_CACHE = ("q_scale", "k_scale", "v_scale", "prob_scale")
"""They begin as 1, or as not given, and stay so."""


@dataclass(frozen=True)
class RandomWeights:
    """Values for every parameter of a model.

    Args:
        seed: of all values.
        pattern: that weights of quantised linears are pruned to.
        rank: tensor-parallel, so that ranks hold different shards.
    """

    seed: int
    pattern: Pattern = DENSE
    rank: int = 0

    @torch.no_grad()
    def fill(self, model: torch.nn.Module) -> None:
        """Fill every parameter in place, on its device.

        Raises:
            ModelError: a parameter is of a form that no W8A8 model has; names it.
        """
        filled: set[int] = set()
        for prefix, module in model.named_modules():
            parameters = dict(module.named_parameters(recurse=False))
            for name, parameter in parameters.items():
                # A head that is tied to the embedding is the same tensor under two names.
                if parameter.data_ptr() not in filled or not parameter.numel():
                    whole = f"{prefix}.{name}" if prefix else name
                    self._fill_one(whole, name, module, parameters)
                    filled.add(parameter.data_ptr())

    def _fill_one(
        self,
        whole: str,
        name: str,
        module: torch.nn.Module,
        parameters: Mapping[str, torch.Tensor],
    ) -> None:
        values = parameters[name].data
        if values.dtype in _QUANTISED and name + _SCALE in parameters:
            generator = self._generator(whole, values, module)
            for weight, scale in _matrices(values, parameters[name + _SCALE].data):
                self._fill_weight(weight, scale, generator)
        elif name.endswith(_SCALE) and name.removesuffix(_SCALE) in parameters:
            pass  # Filled with its weight.
        elif name.endswith("input_scale"):
            values.fill_(ACTIVATION_TOP / TOP[_dtype_beside(parameters)])
        elif name in _KV_CACHE:
            pass
        elif name.endswith("zero_point") or name == "azp_adj":
            values.zero_()
        elif values.is_floating_point() and values.element_size() > 1:
            generator = self._generator(whole, values, module)
            norm = values.ndim == 1 and name.endswith("weight")
            mean, std = (1.0, NORM_STD) if norm else (0.0, STD)
            values.normal_(mean, std, generator=generator)
        else:
            raise ModelError(
                f"no random values are known for {whole} ({values.dtype} {tuple(values.shape)}); "
                "use a model in W8A8 with scales per output channel, or one with its weights"
            )

    def _fill_weight(
        self, weight: torch.Tensor, scale: torch.Tensor, generator: torch.Generator
    ) -> None:
        """Fill weight [N, K] and its scales: one per row, or fewer or more, then all alike."""
        n, k = weight.shape
        std = k**-0.5  # Outputs are as large as inputs.
        flat = scale.view(-1)
        step = max(1, CHUNK_ELEMENTS // k)
        per_row = flat.numel() == n
        if not per_row:
            flat.fill_(WEIGHT_TOP * std / TOP[DTYPES[weight.dtype]])
        for start in range(0, n, step):
            rows = torch.randn(
                (min(step, n - start), k), generator=generator, device=weight.device
            ).mul_(std)
            pruned = prune_magnitude(rows, self.pattern)
            if per_row:
                q, flat[start : start + step] = quantize(pruned, weight.dtype)
            else:
                q = _by_given(pruned, flat[0], weight.dtype)
            weight[start : start + step] = q

    def _generator(
        self, name: str, values: torch.Tensor, module: torch.nn.Module
    ) -> torch.Generator:
        rank = 0 if _replicated(values, module) else self.rank
        digest = hashlib.sha256(f"{self.seed} {rank} {name}".encode()).digest()
        generator = torch.Generator(device=values.device)
        return generator.manual_seed(int.from_bytes(digest[:7], "big"))


def _matrices(
    weight: torch.Tensor, scale: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every weight [N, K] with its scales; experts lie one behind the other in [E, N, K]."""
    if weight.ndim == 2:
        yield weight, scale
        return
    for expert in range(weight.shape[0]):
        yield weight[expert], scale[expert]


def _by_given(rows: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    top = TOP[DTYPES[dtype]]
    scaled = (rows / scale).clamp(-top, top)
    return (scaled.round() if dtype is torch.int8 else scaled).to(dtype)


def _dtype_beside(parameters: Mapping[str, torch.Tensor]) -> Any:
    """The dtype that the inputs of a linear are quantised to: that of its weight."""
    found = (DTYPES[value.dtype] for value in parameters.values() if value.dtype in _QUANTISED)
    return next(found, DTYPES[torch.float8_e4m3fn])


def _replicated(values: torch.Tensor, module: torch.nn.Module) -> bool:
    """Whether every rank holds the same: norms, and linears such as a router of experts."""
    names = {base.__name__ for base in type(module).__mro__}
    norm = values.ndim == 1 and not hasattr(module, "tp_size")
    return norm or "ReplicatedLinear" in names


@lru_cache(maxsize=1)
def register() -> None:
    """Make LOAD_FORMAT known to the vLLM of this process.

    Its model_loader_extra_config holds "seed" and "pattern".
    """
    from vllm.distributed import get_tensor_model_parallel_rank
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    class RandomModelLoader(BaseModelLoader):  # type: ignore[misc]
        """Fills a model with RandomWeights."""

        def download_model(self, model_config: Any) -> None:
            """Nothing to fetch."""

        def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
            """Fill every parameter; vLLM processes the weights afterwards."""
            extra = self.load_config.model_loader_extra_config
            pattern = Pattern.parse(str(extra.get("pattern", DENSE)))
            rank = int(get_tensor_model_parallel_rank())
            RandomWeights(int(extra.get("seed", 0)), pattern, rank).fill(model)

    register_model_loader(LOAD_FORMAT)(RandomModelLoader)
