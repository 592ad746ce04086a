"""The weights of a local checkpoint, exactly: from the headers of its safetensors files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slidesparse.candidate import Provenance
from slidesparse.capacity.figure import Part
from slidesparse.capacity.settings import Quant
from slidesparse.checkpoint.config import QUANTISATION
from slidesparse.checkpoint.formats import BITMASK
from slidesparse.checkpoint.reader import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, CheckpointReader
from slidesparse.checkpoint.safetensors_file import StoredTensor
from slidesparse.errors import CheckpointError, UsageError
from slidesparse.recipe import ROUTERS

_VOCAB = re.compile(r"(^|\.)(embed_tokens|lm_head|wte)\.weight$")
_WHOLE = re.compile(rf"(norm\w*\.weight|(^|\.)({'|'.join(ROUTERS)})\.weight)$")
"""What every rank holds whole."""

_KEYS_VALUES = re.compile(r"\.[kv]_proj\.")

_NOT_LOADED = re.compile(r"(^|\.)(mtp\.|rotary_emb\.inv_freq$)")
_NOT_TEXT = re.compile(r"(^|\.)(visual|vision_\w+|multi_modal_projector|audio_\w+)\.")


@dataclass(frozen=True)
class StoredWeights:
    """What a checkpoint's files hold.

    Args:
        path: of its folder.
        quant: how its linears are stored.
        tensors: that vLLM loads of the language model.
    """

    path: Path
    quant: Quant
    tensors: tuple[StoredTensor, ...]

    def parts(self, tp: int, kv_heads: int) -> tuple[Part, ...]:
        """The tensors of one of `tp` ranks, by what they are.

        With one GPU they are what the headers say, byte by byte. With more, linears and vocabulary
        are divided, norms and routers are not, and the sum is derived.

        Args:
            tp: tensor-parallel size.
            kv_heads: of the model; more ranks than that hold copies of them.
        """
        sums: Counter[str] = Counter()
        for stored in self.tensors:
            group = _group(stored.name)
            whole = _WHOLE.search(stored.name) or len(stored.shape) == 0
            shares = min(tp, kv_heads) if _KEYS_VALUES.search(stored.name) else tp
            sums[group] += stored.bytes if whole else -(-stored.bytes // shares)
        exact = tp == 1
        how = "headers of the checkpoint" + ("" if exact else f", divided by {tp}")
        source = Provenance.MEASURED if exact else Provenance.DERIVED
        order = ("linears", "embedding", "output head", "norms and routers")
        return tuple(Part(name, sums[name], source, how) for name in order if sums[name])


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights whose headers can be read.

    Raises:
        UsageError: it holds shards without their index, so that nobody knows whether one lacks.
    """
    if any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return True
    shard = min(folder.glob("*.safetensors"), default=None)
    if shard is not None:
        raise UsageError(
            f"{folder} holds {shard.name} without a {INDEX_FILE}; download it, or name a folder "
            "with the config.json alone"
        )
    return False


def read_stored(folder: Path) -> StoredWeights:
    """Read the headers of a checkpoint; no tensor is read.

    Raises:
        CheckpointError: a file is missing, truncated or damaged.
        UsageError: it is in a form whose size in memory is another than in the files.
    """
    reader = CheckpointReader(folder)
    tensors = [reader.stored(name) for name in reader.names()]
    loaded = tuple(
        stored
        for stored in tensors
        if not _NOT_LOADED.search(stored.name) and not _NOT_TEXT.search(stored.name)
    )
    packed = next((each.name for each in loaded if each.name.endswith(BITMASK)), None)
    if packed is not None:
        raise UsageError(
            f"{folder} holds bitmask-packed weights ({packed}), which are unpacked when they are "
            "loaded: name a preset or a folder with its config.json alone, and --quant"
        )
    try:
        config = reader.config
    except CheckpointError:
        config = {}
    return StoredWeights(folder, stored_quant(loaded, config), loaded)


def stored_quant(tensors: tuple[StoredTensor, ...], config: Mapping[str, Any]) -> Quant:
    """How the linears of a checkpoint are stored: by the dtype that most of their bytes have.

    Raises:
        UsageError: weights of four bits in a form that the configuration does not name.
    """
    sums: Counter[str] = Counter()
    for stored in tensors:
        if len(stored.shape) >= 2 and not _VOCAB.search(stored.name):
            sums[stored.dtype] += stored.bytes
    most = sums.most_common(1)[0][0] if sums else "BF16"
    found = {"F8_E4M3": Quant.FP8, "I8": Quant.INT8, "U8": None, "I32": None}
    if most not in found:
        return Quant.NONE
    known = found[most]
    if known is not None:
        return known
    said = config.get(QUANTISATION)
    method = said.get("quant_method") if isinstance(said, Mapping) else None
    names = {"awq": Quant.AWQ, "gptq": Quant.GPTQ, "compressed-tensors": Quant.GPTQ}
    if method not in names:
        raise UsageError(
            f"weights are stored as {most} and {CONFIG_FILE} names the quantisation {method!r}; "
            f"known are {', '.join(names)}: name a preset and --quant instead"
        )
    return names[str(method)]


def configured_quant(config: Mapping[str, Any], model: str) -> Quant:
    """How a config.json says that the linears are stored; NONE where it says nothing.

    Args:
        config: parsed.
        model: that it is of, for messages.

    Raises:
        UsageError: it names a form that no plan knows.
    """
    said = config.get(QUANTISATION)
    if not said:
        return Quant.NONE
    said = said if isinstance(said, Mapping) else {"quant_method": said}
    method = said.get("quant_method")
    found: Quant | None
    if method == "compressed-tensors":
        groups = said.get("config_groups") or {}
        kinds = {_group_quant(group) for group in groups.values()}
        found = kinds.pop() if len(kinds) == 1 else None
    else:
        four = {"awq": Quant.AWQ, "gptq": Quant.GPTQ}
        bits = said.get("bits", said.get("w_bit", 4))
        found = four.get(str(method)) if bits == 4 else None
        found = Quant.FP8 if method == "fp8" else found
    if found is None:
        raise UsageError(
            f"the {CONFIG_FILE} of {model} names the quantisation {method!r} in a form that no "
            "plan knows; name the nearest with --quant: awq, gptq, fp8, int8 or none"
        )
    return found


def _group_quant(group: Any) -> Quant | None:
    """Of one group of compressed-tensors."""
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    kinds: dict[tuple[Any, Any], Quant]
    kinds = {(8, "float"): Quant.FP8, (8, "int"): Quant.INT8, (4, "int"): Quant.GPTQ}
    return kinds.get((weights.get("num_bits"), weights.get("type")))


def _group(name: str) -> str:
    if _VOCAB.search(name):
        return "output head" if "lm_head" in name else "embedding"
    return "norms and routers" if _WHOLE.search(name) else "linears"
