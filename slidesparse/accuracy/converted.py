"""W8A8 checkpoints as float models with the very values that they hold.

transformers reads such a checkpoint only through the compressed-tensors library, and what runs
then depends on its version. Here every quantised weight becomes q * scale in float, and the inputs
of its linears are quantised by `slidesparse.accuracy.simulate`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidesparse.accuracy.evaluate import Variant
from slidesparse.checkpoint.config import (
    COMPRESSED_TENSORS,
    FORMATS,
    QUANTISATION,
    provenance,
)
from slidesparse.checkpoint.reader import CONFIG_FILE, CheckpointReader, read_json
from slidesparse.errors import CheckpointError
from slidesparse.problem import DType

if TYPE_CHECKING:
    import torch
    from torch import nn


def is_converted(directory: Path) -> bool:
    """Whether a model directory holds what `slidesparse convert` wrote, or is quantised."""
    config = read_json(directory / CONFIG_FILE)
    return bool(_quantisation(config)) or provenance(config) is not None


def converted_variant(directory: Path) -> Variant:
    """What a checkpoint says of itself; its dtype is the one of quantised inputs.

    Raises:
        CheckpointError: it is quantised in a way that is not simulated.
    """
    config = read_json(directory / CONFIG_FILE)
    known, dtype = provenance(config), _dtype(directory, _quantisation(config))
    if known is None:
        return Variant(dtype=dtype)
    return Variant(known.pattern, known.method, dtype, dict(known.layers))


def quantised_linears(directory: Path) -> tuple[str, ...]:
    """The full names of the linears of a checkpoint whose weights are quantised.

    Raises:
        CheckpointError: it is damaged.
    """
    reader = CheckpointReader(directory)
    return tuple(name for name in _linears(reader) if reader.form(name).quantised)


def load_converted(
    directory: Path, dtype: torch.dtype | None, device: str | torch.device
) -> nn.Module:
    """The model of a quantised or compressed checkpoint, weights dequantised.

    Args:
        directory: of the checkpoint.
        dtype: of the model; None for float32, in which q * scale is exact enough to be itself.
        device: where to put it.

    Raises:
        CheckpointError: it is damaged, or of a form that is not read.
    """
    import torch
    import transformers

    from slidesparse.accuracy.load import dtype_argument, fill

    converted_variant(directory)
    reader = CheckpointReader(directory)
    config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
    if hasattr(config, QUANTISATION):
        delattr(config, QUANTISATION)
    wanted = dtype or torch.float32
    made = transformers.AutoModelForCausalLM.from_config(config, **{dtype_argument(): wanted})
    tensors = {f"{name}.weight": reader.linear(name).to(wanted) for name in _linears(reader)}
    for name in made.state_dict():
        if name not in tensors and name in reader:
            tensors[name] = reader.tensor(name).to(wanted)
    fill(made, tensors, str(directory))
    placed: nn.Module = made.to(device).eval()
    return placed


def _linears(reader: CheckpointReader) -> list[str]:
    """The modules whose weights are stored with a scale or packed."""
    parts = (name.rpartition(".") for name in reader.names())
    return sorted({module for module, _, part in parts if part in ("weight_scale", "compressed")})


def _quantisation(config: dict[str, Any]) -> dict[str, Any]:
    found = config.get(QUANTISATION) or config.get("compression_config") or {}
    return found if isinstance(found, dict) else {"quant_method": found}


def _dtype(directory: Path, found: dict[str, Any]) -> DType | None:
    if not found:
        return None
    method, form = found.get("quant_method"), found.get("format")
    groups = found.get("config_groups") or {}
    if method != COMPRESSED_TENSORS:
        raise CheckpointError(
            f"{directory} is quantised by {method!r}; only {COMPRESSED_TENSORS} is evaluated"
        )
    if not groups:
        return None
    inputs = [group.get("input_activations") for group in groups.values()]
    dynamic = all(it and it.get("dynamic") and it.get("strategy") == "token" for it in inputs)
    dtypes = {name: dtype for dtype, name in FORMATS.items()}
    if form not in dtypes or not dynamic:
        raise CheckpointError(
            f"{directory} is {form!r} and not W8A8 with inputs quantised per token as they come; "
            f"evaluated are {' and '.join(dtypes)} with dynamic per-token inputs"
        )
    return dtypes[form]
