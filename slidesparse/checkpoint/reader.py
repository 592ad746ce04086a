"""CheckpointReader: the tensors of a safetensors checkpoint, one at a time, whatever their form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidesparse.checkpoint.bitmask import unpack_bitmask
from slidesparse.checkpoint.formats import (
    BITMASK,
    COMPRESSED,
    SCALE,
    SHAPE,
    WEIGHT,
    ZERO_POINT,
    Form,
    recognise,
    scales_of,
)
from slidesparse.checkpoint.safetensors_file import (
    StoredTensor,
    pieces,
    read_header,
    read_tensor,
)
from slidesparse.errors import CheckpointError, reason_of

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"

MOST_JSON_BYTES = 256 << 20
"""No config and no index comes near; a larger file is something else."""


class CheckpointReader:
    """The weights of one model directory.

    Every header is read and checked when the reader is made, so that a damaged shard is found
    before any work is done. No tensor is read before it is asked for, and never a whole shard.

    Args:
        path: directory with model.safetensors, or with model.safetensors.index.json and shards.

    Raises:
        CheckpointError: a file is missing, truncated or damaged, or the index does not fit.
    """

    def __init__(self, path: Path | str) -> None:
        """Read the index and the header of every shard."""
        self.path = Path(path)
        self._tensors = self._load()

    @classmethod
    def of_file(cls, path: Path) -> CheckpointReader:
        """A reader of one shard alone, for a conversion that goes on from it.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        reader = cls.__new__(cls)
        reader.path = path.parent
        reader._tensors = read_header(path)
        return reader

    def names(self) -> tuple[str, ...]:
        """The stored tensors, sorted; a packed linear has several and none called weight."""
        return tuple(sorted(self._tensors))

    def __contains__(self, name: str) -> bool:
        """Whether a tensor of this name is stored."""
        return name in self._tensors

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json.

        Raises:
            CheckpointError: it is missing or is no JSON object.
        """
        return read_json(self.path / CONFIG_FILE)

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files that hold the tensors, sorted."""
        return tuple(sorted({stored.path for stored in self._tensors.values()}))

    def stored(self, name: str) -> StoredTensor:
        """Where a tensor lies, with its shape and dtype; reads nothing.

        Raises:
            CheckpointError: there is none of this name.
        """
        if name not in self._tensors:
            raise CheckpointError(f"{self.path} holds no tensor {name}")
        return self._tensors[name]

    def tensor(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """One tensor as it is stored, on the CPU, or consecutive rows of it.

        Raises:
            CheckpointError: there is none of this name, or its file cannot be read.
        """
        return read_tensor(self.stored(name), rows)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor in small pieces, for copying."""
        return pieces(self.stored(name))

    def form(self, linear: str) -> Form:
        """How a linear's weight is stored.

        Args:
            linear: module name, "model.layers.0.self_attn.q_proj".

        Raises:
            CheckpointError: it is not there, or of a form that is not read.
        """
        name = self._values(linear)
        return recognise(linear, self._tensors.keys(), self.stored(name).dtype)

    def shape(self, linear: str) -> tuple[int, ...]:
        """The shape [N, K] of a linear's weight, unpacked.

        Raises:
            CheckpointError: it is not there, or its stored shape is not two sizes.
        """
        if linear + SHAPE in self and linear + WEIGHT not in self:
            return tuple(int(size) for size in self.tensor(linear + SHAPE).flatten().tolist())
        return self.stored(self._values(linear)).shape

    def linear(self, linear: str) -> torch.Tensor:
        """The float weight of a linear: unpacked and dequantised where it is stored so.

        Args:
            linear: module name, "model.layers.0.self_attn.q_proj".

        Returns:
            [N, K] on the CPU: float32 if it was quantised, otherwise of the stored dtype.

        Raises:
            CheckpointError: it is not there, of a form that is not read, or damaged.
        """
        import torch

        rows, _ = self._sizes(linear)
        return torch.cat(list(self.linear_rows(linear, rows)))

    def linear_rows(self, linear: str, step: int) -> Iterator[torch.Tensor]:
        """The float weight of a linear in consecutive pieces of `step` rows; see `linear`.

        A piece is read when it is asked for, except of packed weights, which are unpacked whole.
        """
        form, (rows, _) = self.form(linear), self._sizes(linear)
        scales = self.scales(linear) if form.quantised else None
        whole = self.quantised_or_plain(linear) if form.packed else None
        for start in range(0, rows, step):
            span = slice(start, min(rows, start + step))
            values = self.tensor(linear + WEIGHT, span) if whole is None else whole[span]
            yield values if scales is None else values.float() * scales[span]

    def quantised_or_plain(self, linear: str) -> torch.Tensor:
        """The weight [N, K] of a linear in its stored dtype, unpacked; FP8 and INT8 unscaled.

        Raises:
            CheckpointError: as for `linear`.
        """
        if not self.form(linear).packed:
            return self.tensor(linear + WEIGHT)
        parts = (self.tensor(linear + part) for part in (COMPRESSED, BITMASK, SHAPE))
        return unpack_bitmask(linear, *parts)

    def scales(self, linear: str) -> torch.Tensor:
        """The scales of a quantised linear: [N, 1] float32, or [1, 1] for all of it.

        Raises:
            CheckpointError: there are none, or they do not fit.
        """
        zero = self.tensor(linear + ZERO_POINT) if linear + ZERO_POINT in self else None
        return scales_of(linear, self.shape(linear), self.tensor(linear + SCALE), zero)

    def _sizes(self, linear: str) -> tuple[int, int]:
        shape = self.shape(linear)
        if len(shape) != 2 or min(shape) <= 0:
            raise CheckpointError(f"{linear} has shape {list(shape)}; a linear's weight is [N, K]")
        return shape[0], shape[1]

    def _values(self, linear: str) -> str:
        """The tensor that holds a linear's values."""
        for part in (WEIGHT, COMPRESSED):
            if linear + part in self:
                return linear + part
        # Forms that are refused by name have neither.
        recognise(linear, self._tensors.keys(), "BF16")
        raise CheckpointError(f"{self.path} holds no linear {linear}")

    def _load(self) -> dict[str, StoredTensor]:
        try:
            return self._found()
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {reason_of(error)}") from error

    def _found(self) -> dict[str, StoredTensor]:
        index, single = self.path / INDEX_FILE, self.path / SINGLE_FILE
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path} is not a directory")
        if index.exists():
            return _indexed(index)
        if single.exists():
            return read_header(single)
        others = sorted(p.name for p in self.path.iterdir() if p.suffix in (".bin", ".gguf", ".pt"))
        hint = f"; {others[0]} is of a form that is not converted" if others else ""
        raise CheckpointError(f"{self.path} holds neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        CheckpointError: it cannot be read or is no JSON object.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_JSON_BYTES + 1)
        if len(content) > MOST_JSON_BYTES:
            raise CheckpointError(f"{path} has more than {MOST_JSON_BYTES >> 20} MiB")
        made = json.loads(content.decode("utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(made, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return made


def _indexed(index: Path) -> dict[str, StoredTensor]:
    """The tensors of the shards that an index names, each where the index says it is."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    shards: dict[str, dict[str, StoredTensor]] = {}
    tensors = {}
    for name, shard in weight_map.items():
        # A shard's name with a folder in it could point anywhere on the machine.
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            raise CheckpointError(f"{index} puts {name} into {shard!r}, which is no file name")
        if shard not in shards:
            if not (index.parent / shard).exists():
                raise CheckpointError(
                    f"{index} names the shard {shard}, which is missing; download it"
                )
            shards[shard] = read_header(index.parent / shard)
        if name not in shards[shard]:
            raise CheckpointError(
                f"{index} puts {name} into {shard}, which does not hold it; the index and the "
                "shards are of different checkpoints"
            )
        tensors[name] = shards[shard][name]
    return tensors
