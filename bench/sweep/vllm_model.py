"""The folder that vLLM loads: a preset's config.json written out in full, or a folder given.

A folder without weights, like a preset, is served with random ones (see vllm_weights).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from slidesparse.bench.sweep.job import Job
from slidesparse.cache_store import cache_root
from slidesparse.checkpoint.config import QUANTISATION, converted_config, provenance
from slidesparse.errors import ModelError
from slidesparse.models import ModelSpec, load_model, preset_names
from slidesparse.pattern import DENSE
from slidesparse.problem import DType
from slidesparse.recipe import HEAD, ROUTERS, Method, Recipe

_QWEN2_5 = {
    "rope_theta": 1000000.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
}
_QWEN3 = {
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
_LLAMA3 = {
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_scaling": {
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        }
    }


# What a preset leaves out and vLLM reads, from config.json of the repository that the preset names
# as its source. Qwen2.5 and Llama 3.1 state no head_dim: it is hidden_size / num_attention_heads.
_COMPLETED: Mapping[str, Mapping[str, Any]] = {
    "qwen2.5-7b": {**_QWEN2_5, "rms_norm_eps": 1e-6, "head_dim": 128},
    "qwen2.5-14b": {**_QWEN2_5, "rms_norm_eps": 1e-5, "head_dim": 128},
    "llama3.1-8b": {**_LLAMA3, **_llama3_rope(8.0), "head_dim": 128},
    "llama3.2-1b": {**_LLAMA3, **_llama3_rope(32.0)},
    "llama3.2-3b": {**_LLAMA3, **_llama3_rope(32.0)},
    "qwen3-8b": _QWEN3,
    "qwen3-14b": _QWEN3,
    "qwen3-30b-a3b": {**_QWEN3, "norm_topk_prob": True},
}
_COMMON = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "use_cache": True,
    "torch_dtype": "bfloat16",
}

_CONFIG = "config.json"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_FOLDER = "bench-models"

_ROUTERS = rf"re:.*\.({'|'.join(ROUTERS)})$"
"""Linears that choose experts stay in BF16, as compressed-tensors names them."""


@dataclass(frozen=True)
class Served:
    """A model as vLLM is told to load it.

    Args:
        folder: with config.json.
        spec: its sizes.
        random: whether it has no weights and gets random ones.
        longest: tokens of the longest sequence, max_position_embeddings.
    """

    folder: Path
    spec: ModelSpec
    random: bool
    longest: int


def serve(job: Job) -> Served:
    """Find or write the folder of a job's model.

    Raises:
        ModelError: there is no such model, or its weights are not what the job asks for.
    """
    spec = load_model(job.model)
    preset = job.model.strip().lower()
    if preset in preset_names():
        config = preset_config(preset)
    else:
        folder = Path(job.model).expanduser()
        if not folder.is_dir():
            raise ModelError(
                f"vLLM's engine takes a preset or a folder with {_CONFIG}, not {job.model!r}; "
                "download it first"
            )
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        if any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
            _check_weights(job, config)
            return Served(folder, spec, False, _longest(config))
    made = quantised_config(config, job, spec)
    return Served(write_folder(made, spec.name), spec, True, _longest(made))


def preset_config(name: str) -> dict[str, Any]:
    """The config.json of a preset as its source has it, as far as vLLM reads it.

    Raises:
        ModelError: only the sizes of its linears are known; names the presets that are complete.
    """
    more = _COMPLETED.get(name)
    if more is None:
        raise ModelError(
            f"preset {name} cannot be served by vLLM's engine; use one of "
            f"{', '.join(sorted(_COMPLETED))}, or a folder with its {_CONFIG}"
        )
    file = resources.files("slidesparse") / "data" / "models" / f"{name}.json"
    config = dict(json.loads(file.read_bytes()))
    config.pop("source")
    return {**_COMMON, **config, **more}


def quantised_config(config: Mapping[str, Any], job: Job, spec: ModelSpec) -> dict[str, Any]:
    """A config.json as `slidesparse convert` leaves it, for the job's dtype and pattern."""
    recipe = Recipe(job.variant.pattern, Method.MAGNITUDE, job.dtype)
    ignore = (HEAD, _ROUTERS) if spec.moe else (HEAD,)
    return converted_config(config, recipe, ignore, {})


def write_folder(config: Mapping[str, Any], name: str) -> Path:
    """The folder of a configuration, always the same one: vLLM files compiled graphs by its path.

    Raises:
        ModelError: it cannot be written.
    """
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    # The name last: vLLM shows the folder's.
    folder = cache_root() / _FOLDER / digest / name.replace("/", "--")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=folder, prefix=_CONFIG, delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        os.replace(file.name, folder / _CONFIG)
    except OSError as error:
        raise ModelError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def _longest(config: Mapping[str, Any]) -> int:
    nested = config.get("text_config")
    found = {**config, **(nested if isinstance(nested, Mapping) else {})}
    longest = found.get("max_position_embeddings")
    return longest if isinstance(longest, int) else 2**31 - 1


def _check_weights(job: Job, config: Mapping[str, Any]) -> None:
    """Refuse weights of another dtype or pattern than the job's."""
    wanted = job.variant.pattern
    short = "fp8" if job.dtype is DType.FP8 else "int8"
    remedy = f"slidesparse convert SOURCE FOLDER --pattern {wanted} --dtype {short}"
    found = config.get(QUANTISATION)
    dtype = _weight_dtype(found) if isinstance(found, Mapping) else None
    if dtype is not job.dtype:
        raise ModelError(
            f"{job.model} holds {dtype or 'no W8A8'} weights, not {job.dtype}; run {remedy}"
        )
    ours = provenance(config)
    pattern = ours.pattern if ours else DENSE
    if pattern != wanted:
        raise ModelError(f"{job.model} is pruned to {pattern}, not {wanted}; run {remedy}")


def _weight_dtype(quantisation: Mapping[str, Any]) -> DType | None:
    """The dtype that compressed-tensors says of the weights, None for anything but W8A8."""
    groups = quantisation.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") or {}
        types: dict[object, DType] = {("float", 8): DType.FP8, ("int", 8): DType.INT8}
        return types.get((weights.get("type"), weights.get("num_bits")))
    return None
