"""Checkpoints of a few kilobytes on disk, in every form that is read, written independently."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method, Recipe

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
P68, P46 = Pattern(6, 8), Pattern(4, 6)


def save_tiny(path: Path, kind: str = "Llama", shard: str = "1GB", **changes: Any) -> Any:
    """Save a tiny model in BF16 as transformers does; the model."""
    model = tiny_model(kind, **changes).to(torch.bfloat16)
    model.save_pretrained(path, max_shard_size=shard)
    return model


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None
) -> Path:
    """A checkpoint of exactly these tensors."""
    path.mkdir(parents=True, exist_ok=True)
    save_file({name: it.contiguous() for name, it in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return path


def all_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by the safetensors library."""
    return {
        name: tensor
        for file in sorted(path.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    """A safetensors file with this header, valid or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def bitmask(linear: str, w: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a 2:4 weight [N, K] in sparse-24-bitmask form, with NumPy's packing.

    Groups with fewer than two non-zeros store zeros too.
    """
    raw = w.view(torch.uint8) if w.element_size() == 1 else w
    groups = w.float().abs().reshape(-1, 4)
    order = torch.argsort(groups, dim=1, descending=True, stable=True)[:, :2]
    mask = torch.zeros(groups.shape, dtype=torch.bool).scatter(1, order, True).reshape(w.shape)
    packed = np.packbits(mask.numpy(), axis=-1, bitorder="little")
    values = raw[mask].reshape(w.shape[0], w.shape[1] // 2).view(w.dtype)
    return {
        f"{linear}.compressed": values,
        f"{linear}.bitmask": torch.from_numpy(packed),
        f"{linear}.shape": torch.tensor(w.shape).reshape(-1, 1),
    }


def w8a8(linear: str, w: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a float weight [N, K] in W8A8 form, one scale per output channel in BF16."""
    top = 127.0 if dtype is torch.int8 else 448.0
    scale = (w.float().abs().amax(dim=1, keepdim=True) / top).to(torch.bfloat16)
    q = w.float() / scale.float()
    q = q.round().clamp(-127, 127) if dtype is torch.int8 else q.clamp(-448, 448)
    return {f"{linear}.weight": q.to(dtype), f"{linear}.weight_scale": scale}


def zeros_per_block(w: torch.Tensor, block: int) -> int:
    """The fewest zeros of any block of a row, the last one padded with zeros."""
    values = w.float()
    values = torch.nn.functional.pad(values, (0, -values.shape[1] % block))
    return int((values.reshape(-1, block) == 0).sum(dim=1).min())


def magnitude(pattern: Pattern = P68, dtype: DType | None = DType.FP8, **rest: Any) -> Recipe:
    return Recipe(pattern, Method.MAGNITUDE, dtype, **rest)


def block(prefix: str = "model.layers.0") -> dict[str, torch.Tensor]:
    names = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
    made = {f"{prefix}.{name}.weight": torch.randn(12, 24) for name in names}
    return {name: it.to(torch.bfloat16) for name, it in made.items()}
