"""vLLM's CUTLASS product of 8-bit operands, row and column scales and a bias fused: when it runs.

It is called as vllm._custom_ops calls it (read from vLLM 0.25.1 and its CUDA sources), but on a
given output, so that it writes where its rivals write. For sizes that CUTLASS does not take vLLM
has a Triton kernel, which takes no part: such sizes are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from slidesparse.candidate import Candidate, Param
from slidesparse.devices import lacks_fp8, spell_sm
from slidesparse.errors import CandidateError
from slidesparse.libraries import ABSENT, package_version, vllm_reason
from slidesparse.problem import DType

if TYPE_CHECKING:
    import torch

BACKEND = "vllm"

FUNCTION = "cutlass_scaled_mm"
"""The op's name, in torch.ops._C."""

ALIGNMENT = 16
"""N and K must be multiples of this: the op checks the strides of weight and output."""

OUTPUTS = (DType.BF16, DType.FP16)

INT8_SM, INT8_END_SM = 75, 100
"""Compute capabilities from the first on and before the second have the INT8 product."""


class Product(Protocol):
    """The op: out = (a b) * a_scales * b_scales (+ bias)."""

    def __call__(
        self,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scales: torch.Tensor,
        b_scales: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> None:
        """Write the product.

        Args:
            out: [M, N] BF16 or FP16, rows contiguous, N % 16 == 0.
            a: [M, K] FP8 or INT8, contiguous.
            b: [K, N] of a's dtype, columns contiguous: the weight [N, K] transposed, K % 16 == 0.
            a_scales: M values or one, float32, contiguous.
            b_scales: N values or one, float32, contiguous.
            bias: [N] of out's dtype, contiguous, or None.
        """


def candidate() -> Candidate:
    """The one candidate: the op chooses its tile by the sizes.

    vLLM's version is part of it, not of the Fingerprint: another version may have another kernel
    and another time for it alone, while results of all other backends stay what they are.
    """
    params = {"function": FUNCTION, "version": package_version(BACKEND)}
    return Candidate(BACKEND, params, False, params)


def refusal(dtype: DType, out: DType, sm: int) -> str | None:
    """Why it has no such product on a GPU of this compute capability (0: the CPU), or None."""
    if not sm:
        return "vLLM's product needs a GPU"
    if out not in OUTPUTS:
        return f"vLLM's product gives {' or '.join(map(str, OUTPUTS))}, not {out}"
    if dtype is DType.FP8:
        return lacks_fp8(sm)
    if sm < INT8_SM:
        return f"vLLM's INT8 product needs {spell_sm(INT8_SM)} or newer and this is {spell_sm(sm)}"
    if sm >= INT8_END_SM:
        end = spell_sm(INT8_END_SM)
        return f"vLLM has no INT8 product for {end} and newer and this is {spell_sm(sm)}; use fp8"
    return None


def mismatch(params: Mapping[str, Param]) -> str | None:
    """Why the vLLM that is installed is not what was measured, or None; does not import it."""
    if params.get("function") != FUNCTION:
        return f"vLLM has no candidate {params.get('function')!r}"
    here, there = package_version(BACKEND), params.get("version")
    if here == ABSENT:
        return "vLLM is not installed"
    if here != there:
        return f"vLLM {there} was measured and {here} is installed; search again"
    return None


def missing() -> str:
    """Why the op cannot be called in this process, or ""; asking imports vLLM."""
    reason = vllm_reason()
    if reason:
        return reason
    import torch

    if hasattr(torch.ops._C, FUNCTION):
        return ""
    return f"vLLM {package_version(BACKEND)} has no {FUNCTION} here: its CUDA kernels do not load"


def load(params: Mapping[str, Param]) -> Product:
    """The op of a candidate; imports vLLM.

    Raises:
        CandidateError: it cannot be called here, or is not what was measured.
    """
    reason = mismatch(params) or missing()
    if reason:
        raise CandidateError(reason)
    import torch

    op: Product = getattr(torch.ops._C, FUNCTION).default
    return op
