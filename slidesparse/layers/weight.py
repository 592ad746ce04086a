"""SparseWeight: a pruned, quantised weight in portable form, and the forms that GEMMs read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from slidesparse.errors import KernelError
from slidesparse.kernels import reference
from slidesparse.kernels.native import PackedWeight, pack, unpack
from slidesparse.layers.layer_plan import DENSE_FORM, NATIVE_FORM
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.slide import slide, unslide
from slidesparse.tensors import DTYPES, TORCH_DTYPES


@dataclass(frozen=True)
class SparseWeight:
    """A pruned weight, quantised per output channel: W ~ q * scale[:, None].

    Args:
        q: [N, K] float8_e4m3fn or int8 that satisfies `pattern`.
        scale: [N] float32.
        pattern: of the zeros.

    Raises:
        KernelError: shapes or dtypes do not fit each other.
        PatternError: a block holds too many non-zeros; names the first.
    """

    q: torch.Tensor
    scale: torch.Tensor
    pattern: Pattern

    def __post_init__(self) -> None:
        """Refuse what is not a weight and its scales."""
        if (
            self.q.ndim != 2
            or 0 in self.q.shape
            or self.q.dtype
            not in (
                TORCH_DTYPES[DType.FP8],
                TORCH_DTYPES[DType.INT8],
            )
        ):
            raise KernelError(
                f"a weight of {self.q.dtype} {tuple(self.q.shape)}; float8_e4m3fn or int8 [N, K] "
                "is needed"
            )
        if tuple(self.scale.shape) != (self.q.shape[0],) or self.scale.dtype != torch.float32:
            raise KernelError(
                f"scales of {self.scale.dtype} {tuple(self.scale.shape)} for a weight "
                f"{tuple(self.q.shape)}; float32 [{self.q.shape[0]}] is needed"
            )
        if not self.q.is_meta:
            slide(self.q, self.pattern)  # Refuses what breaks the pattern.

    @property
    def dtype(self) -> DType:
        """Of the values."""
        return DTYPES[self.q.dtype]

    @classmethod
    def quantise(cls, w: torch.Tensor, pattern: Pattern, dtype: DType) -> SparseWeight:
        """Quantise a pruned weight by the largest magnitude of each output channel.

        Args:
            w: [N, K] floating point that satisfies `pattern`.
            pattern: of its zeros.
            dtype: FP8 or INT8.

        Raises:
            KernelError: a weight is NaN or infinite; names the first row.
            PatternError: a block holds too many non-zeros; names the first.
        """
        q, scale = reference.quantize(w.detach(), TORCH_DTYPES[dtype])
        bad = (~scale.isfinite()).nonzero()
        if len(bad):
            raise KernelError(
                f"row {int(bad[0])} of the weight holds NaN or infinity, as do {len(bad)} of "
                f"{len(scale)} rows; such a layer cannot be quantised"
            )
        return cls(q, scale, pattern)


def to_format(q: torch.Tensor, pattern: Pattern, name: str) -> torch.Tensor:
    """One form of a weight.

    Args:
        q: [N, K] quantised.
        pattern: that it satisfies.
        name: DENSE_FORM, NATIVE_FORM or CUSPARSELT_FORM.

    Returns:
        For dense `q` itself, contiguous; for native packed uint8 [slabs, blocks, 2560]; for
        cuSPARSELt uint8 [bytes].

    Raises:
        PatternError: the weight breaks the pattern.
    """
    if name == DENSE_FORM:
        return q.contiguous()
    slid = slide(q, pattern)
    if name == NATIVE_FORM:
        return pack(slid).data
    from slidesparse.layers.cusparselt_way import compress

    return compress(slid)


def from_format(
    data: torch.Tensor, name: str, shape: tuple[int, int], pattern: Pattern, dtype: DType
) -> torch.Tensor:
    """The weight [N, K] that `to_format` was given; a zero's sign may be lost."""
    if name == DENSE_FORM:
        return data
    n, k = shape
    if name == NATIVE_FORM:
        packed = PackedWeight(data, n, pattern.expanded_k(k), TORCH_DTYPES[dtype])
        return unslide(unpack(packed), pattern, k)
    from slidesparse.layers.cusparselt_way import decompress

    return unslide(decompress(data, n, pattern.expanded_k(k), dtype), pattern, k)


def format_bytes(name: str, n: int, k: int, pattern: Pattern) -> int:
    """Bytes of a weight [N, K] in one form, alignment of the packed one left out."""
    return n * k if name == DENSE_FORM else n * pattern.expanded_k(k) * 5 // 8
