"""config.json of a converted checkpoint: the quantisation as stock software reads it, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slidesparse._version import __version__
from slidesparse.errors import CheckpointError, UsageError
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method, Recipe

BLOCK = "slidesparse"
"""The key of our block in config.json."""

QUANTISATION = "quantization_config"
_OLD_QUANTISATION = "compression_config"
"""What early releases of compressed-tensors called it."""

_REPLACED = (QUANTISATION, _OLD_QUANTISATION, BLOCK)

COMPRESSED_TENSORS = "compressed-tensors"

FORMATS = {DType.FP8: "float-quantized", DType.INT8: "int-quantized"}
"""The name that compressed-tensors gives to weights of each dtype."""

_TYPES = {DType.FP8: "float", DType.INT8: "int"}


@dataclass(frozen=True)
class Provenance:
    """What a converted checkpoint says of itself.

    Args:
        version: of the slidesparse that wrote it.
        pattern: of every linear that `layers` does not name.
        layers: patterns of the linears that have another one, by full name.
        method: how weights were chosen.
        dtype: of the linears, None if they were only pruned.
        keep: names that were left as they were, as Recipe.keep.
    """

    version: str
    pattern: Pattern
    layers: Mapping[str, Pattern]
    method: Method
    dtype: DType | None
    keep: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe that the checkpoint was made by."""
        return Recipe(self.pattern, self.method, self.dtype, self.keep, self.layers)


def converted_config(
    config: Mapping[str, Any], recipe: Recipe, ignore: tuple[str, ...], details: Mapping[str, Any]
) -> dict[str, Any]:
    """The config.json of the converted checkpoint.

    Args:
        config: of the source.
        recipe: what was done.
        ignore: linears that are not quantised.
        details: more to say in our block.
    """
    made = {key: value for key, value in config.items() if key not in _REPLACED}
    before = config.get(QUANTISATION) or config.get(_OLD_QUANTISATION)
    cache = before.get("kv_cache_scheme") if isinstance(before, dict) else None
    if recipe.dtype is not None:
        made[QUANTISATION] = quantisation(recipe.dtype, ignore, cache)
    made[BLOCK] = {
        "version": __version__,
        "pattern": str(recipe.pattern),
        "layers": {name: str(pattern) for name, pattern in recipe.layers.items()},
        "method": str(recipe.method),
        "dtype": str(recipe.dtype) if recipe.dtype else None,
        "keep": list(recipe.keep),
        **details,
    }
    return made


def quantisation(
    dtype: DType, ignore: tuple[str, ...], kv_cache_scheme: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The quantization_config of compressed-tensors for W8A8.

    Weights are symmetric with a scale per output channel, activations symmetric with a scale per
    token that is found at run time. Written as llm-compressor's schemes FP8_DYNAMIC and W8A8 do.

    Args:
        dtype: FP8 or INT8.
        ignore: linears that are not quantised.
        kv_cache_scheme: of the source, carried over.
    """
    common = {"num_bits": 8, "type": _TYPES[dtype], "symmetric": True, "group_size": None}
    return {
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**common, "strategy": "channel", "dynamic": False},
                "input_activations": {**common, "strategy": "token", "dynamic": True},
                "output_activations": None,
            }
        },
        "format": FORMATS[dtype],
        "global_compression_ratio": None,
        "ignore": list(ignore),
        "kv_cache_scheme": kv_cache_scheme,
        "quant_method": COMPRESSED_TENSORS,
        "quantization_status": "compressed",
    }


def check_source(config: Mapping[str, Any]) -> None:
    """Refuse checkpoints that were quantised by methods whose tensors are not read.

    Raises:
        CheckpointError: names the method.
    """
    found = config.get(QUANTISATION) or config.get(_OLD_QUANTISATION)
    if found is None:
        return
    method = found.get("quant_method", COMPRESSED_TENSORS) if isinstance(found, dict) else found
    if method != COMPRESSED_TENSORS:
        raise CheckpointError(
            f"the checkpoint is quantised by {method!r}; read are BF16, FP16 and FP32, and FP8 and "
            f"INT8 of {COMPRESSED_TENSORS}: start from one of those"
        )


def provenance(config: Mapping[str, Any]) -> Provenance | None:
    """What the config.json of a converted checkpoint says; None for any other.

    Raises:
        CheckpointError: there is a block of ours that cannot be read.
    """
    block = config.get(BLOCK)
    if block is None:
        return None
    try:
        return Provenance(
            version=str(block["version"]),
            pattern=Pattern.parse(block["pattern"]),
            layers={name: Pattern.parse(text) for name, text in block["layers"].items()},
            method=Method(block["method"]),
            dtype=None if block["dtype"] is None else DType(block["dtype"]),
            keep=tuple(str(name) for name in block["keep"]),
        )
    except (UsageError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"config.json has a {BLOCK!r} block that cannot be read ({error!r}); convert the "
            "checkpoint again"
        ) from error


def float_dtype(config: Mapping[str, Any]) -> str:
    """The dtype of weights that are not quantised, as safetensors headers spell it."""
    text = config.get("text_config")
    nested = text if isinstance(text, dict) else {}
    for holder in (config, nested):
        for key in ("dtype", "torch_dtype"):
            found = holder.get(key)
            if isinstance(found, str):
                names = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
                return names.get(found.removeprefix("torch."), "BF16")
    return "BF16"
