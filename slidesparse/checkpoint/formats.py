"""How a linear's weight is stored, and how the float weight comes out of it.

Three forms are read, alone or the second inside the third:

* plain: `X.weight` [N, K] in BF16, FP16, FP32 or FP64.
* W8A8 of compressed-tensors (formats float-quantized and int-quantized): `X.weight` [N, K] in
  float8_e4m3fn or int8 with `X.weight_scale`, one per output channel [N, 1] or [N] or one per
  tensor [1] or []. The weight is weight * weight_scale; a zero point must be zero.
* bitmask of compressed-tensors (sparse-24-bitmask, and sparse-bitmask): `X.compressed`, the values
  that are stored, row by row; `X.bitmask` [N, ceil(K / 8)] uint8, bit i of byte j of a row set if
  column 8j + i is stored; `X.shape`, N and K as int64. In the 2:4 form `compressed` is [N, K / 2]
  and each group of four columns has two bits set; stored values may themselves be zero.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum
from typing import TYPE_CHECKING

from slidesparse.errors import CheckpointError

if TYPE_CHECKING:
    import torch

WEIGHT = ".weight"
SCALE = ".weight_scale"
ZERO_POINT = ".weight_zero_point"
COMPRESSED = ".compressed"
BITMASK = ".bitmask"
SHAPE = ".shape"
ROW_OFFSETS = ".row_offsets"

FLOATS = ("BF16", "F16", "F32", "F64")
QUANTISED = ("F8_E4M3", "I8")

STORAGE_PARTS = (SCALE, ZERO_POINT, COMPRESSED, BITMASK, SHAPE, ROW_OFFSETS, ".input_scale")
"""What stands beside or instead of X.weight and goes once the weight is plain."""

_UNREAD = {
    ".weight_packed": "packed 4-bit weights",
    ".weight_scale_inv": "weights with scales per block of 128 x 128",
    ".qweight": "GPTQ or AWQ weights",
    ".weight_g_idx": "weights quantised in groups",
}
"""Parts of forms that are recognised in order to refuse them by name."""


class Form(Enum):
    """How one linear's weight is stored."""

    PLAIN = "plain"
    W8A8 = "w8a8"
    BITMASK = "bitmask"
    W8A8_BITMASK = "w8a8 bitmask"

    @property
    def packed(self) -> bool:
        """Whether only non-zeros are stored."""
        return self in (Form.BITMASK, Form.W8A8_BITMASK)

    @property
    def quantised(self) -> bool:
        """Whether values are FP8 or INT8 with a scale."""
        return self in (Form.W8A8, Form.W8A8_BITMASK)


def recognise(linear: str, names: Collection[str], dtype: str) -> Form:
    """How a linear is stored.

    Args:
        linear: module name, "model.layers.0.mlp.up_proj".
        names: of the tensors of the checkpoint.
        dtype: of `X.weight`, or of `X.compressed` where that is what is stored.

    Raises:
        CheckpointError: the form is none that SlideSparse reads.
    """
    for part in _UNREAD:
        if linear + part in names:
            refuse_unread((linear + part,))
    packed, scaled = linear + BITMASK in names, linear + SCALE in names
    if packed and linear + SHAPE not in names:
        raise CheckpointError(f"{linear} has a bitmask and no {linear + SHAPE}")
    if dtype in QUANTISED:
        if not scaled:
            raise CheckpointError(f"{linear}.weight is {dtype} without {linear + SCALE}")
        return Form.W8A8_BITMASK if packed else Form.W8A8
    if dtype not in FLOATS:
        raise CheckpointError(
            f"{linear}.weight is {dtype}; weights are read in {', '.join(FLOATS + QUANTISED)}"
        )
    return Form.BITMASK if packed else Form.PLAIN


def refuse_unread(names: Iterable[str]) -> None:
    """Refuse tensors of forms that are not read, which would otherwise pass for something else.

    Raises:
        CheckpointError: names the first one and its form.
    """
    for name in names:
        for part, what in _UNREAD.items():
            if name.endswith(part):
                raise CheckpointError(
                    f"{name.removesuffix(part)} holds {what} ({name}), which are not read; start "
                    "from the BF16 checkpoint or from one in W8A8"
                )


def scales_of(
    linear: str, shape: tuple[int, ...], scale: torch.Tensor, zero_point: torch.Tensor | None = None
) -> torch.Tensor:
    """The scale of each output channel of a quantised weight.

    Args:
        linear: its name, for messages.
        shape: of the weight, (N, K).
        scale: [N, 1] or [N] per output channel, [1] or [] per tensor; any float dtype.
        zero_point: None or all zero.

    Returns:
        [N, 1] float32; the weight is the quantised one times this.

    Raises:
        CheckpointError: the scale has another shape or is not finite, or a zero point is not zero.
    """
    rows = shape[0]
    if scale.numel() not in (1, rows) or (scale.ndim == 2 and scale.shape[1] != 1):
        raise CheckpointError(
            f"{linear}.weight_scale is {list(scale.shape)} for a weight {list(shape)}; read are "
            "scales per output channel [N, 1] and per tensor [1]"
        )
    if zero_point is not None and bool((zero_point.float() != 0).any()):
        raise CheckpointError(
            f"{linear} is quantised asymmetrically; only zero points of 0 are read"
        )
    scales = scale.float().reshape(-1, 1)
    if not bool(scales.isfinite().all()):
        raise CheckpointError(f"{linear}.weight_scale holds NaN or infinity")
    return scales.expand(rows, 1)
