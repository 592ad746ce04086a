"""The ways to multiply at run time: each runs a candidate for one layer and any number of tokens.

What a search timed through its backends runs here without their operands: nothing is planned,
compiled or read from disk once `prepare` has run, so that CUDA graphs can capture it.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch

from slidesparse.candidate import Candidate
from slidesparse.devices import lacks_fp8, spell_sm
from slidesparse.errors import CandidateError, KernelError
from slidesparse.kernels.dequant import dequantize_rows
from slidesparse.layers.layer_plan import DENSE_FORM, NATIVE_FORM, LayerPlan
from slidesparse.problem import DType
from slidesparse.tensors import TORCH_DTYPES

if TYPE_CHECKING:
    from slidesparse.kernels.native import NativeConfig
    from slidesparse.kernels.native.gemm import Launch
    from slidesparse.kernels.native.source import Variant

log = logging.getLogger(__name__)

ALIGNMENT = 16
"""N and K of torch's and cuBLASLt's products of 8-bit operands."""

ROWWISE_SM = 90
"""First compute capability on which torch._scaled_mm takes a scale per row of both operands."""

KEPT = 1024
"""Launches that a way remembers, by the addresses of their operands."""

NOT_SUPPORTED = "CUBLAS_STATUS_NOT_SUPPORTED"
"""In the message of torch._scaled_mm where cuBLAS proposes for a few tokens and a long K to split
K, and then cannot with a scale per row (pytorch/ao issue 4582: K=9216, M <= 256 on an H100)."""

INT_MM_ROWS = 32
"""torch._int_mm refuses 16 rows and fewer; so many are given to it instead."""


class Way(ABC):
    """One candidate of one layer.

    Args:
        plan: of the layer: its sizes and dtypes.
        candidate: that runs.
    """

    backend: ClassVar[str]
    form: ClassVar[str]
    """Which form of the weight it reads."""

    def __init__(self, plan: LayerPlan, candidate: Candidate) -> None:
        """Note the layer; `prepare` does what takes time."""
        self.plan = plan
        self.n, self.k, self.dtype = plan.n, plan.k, plan.dtype
        self.k_run = plan.pattern.expanded_k(plan.k) if candidate.sparse else plan.k
        self.out = TORCH_DTYPES[plan.out]
        self.candidate = candidate

    @classmethod
    @abstractmethod
    def refusal(cls, plan: LayerPlan, candidate: Candidate, sm: int) -> str | None:
        """Why it cannot run the layer on a GPU of this compute capability (0: the CPU), or None."""

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Variants of the native kernel that `prepare` compiles."""
        return ()

    def prepare(self, device: torch.device) -> None:
        """Compile and load what runs on `device`.

        Raises:
            CandidateError: it cannot run there after all.
        """
        self.device = device

    @abstractmethod
    def run(
        self,
        q: torch.Tensor,
        x_scale: torch.Tensor,
        weight: torch.Tensor,
        w_scale: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """Write out = (q W^T) * x_scale[m] * w_scale[n] (+ bias[n]).

        Args:
            q: [M, K] or, for a sparse way, [M, K'] quantised rows; M >= 1.
            x_scale: [M] float32.
            weight: in the form that the way reads.
            w_scale: [N] float32.
            bias: [N] of the output's dtype, or None.
            out: [M, N] contiguous.
        """


class TorchScaled(Way):
    """torch._scaled_mm of FP8 operands: scales fused row-wise, or a pass that follows."""

    backend = "torch"
    form = DENSE_FORM

    @classmethod
    def refusal(cls, plan: LayerPlan, candidate: Candidate, sm: int) -> str | None:
        """FP8 on a GPU that has it, sizes of whole 16 bytes."""
        if plan.dtype is not DType.FP8:
            return f"torch._scaled_mm takes FP8, not {plan.dtype}"
        return (lacks_fp8(sm) if sm else "a GPU is needed") or misaligned(plan)

    def prepare(self, device: torch.device) -> None:
        """See whether the scales can be fused."""
        super().prepare(device)
        sm = 10 * torch.cuda.get_device_capability(device)[0]
        self.fused = sm >= ROWWISE_SM and self.out is torch.bfloat16
        self.fast = bool(self.candidate.params.get("fast_accum", True))
        self.refused: set[int] = set()

    def run(
        self,
        q: torch.Tensor,
        x_scale: torch.Tensor,
        weight: torch.Tensor,
        w_scale: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """See `Way.run`."""
        m, product = q.shape[0], torch.ops.aten._scaled_mm
        if self.fused and m not in self.refused:
            scales = (x_scale.view(-1, 1), w_scale.view(1, -1))
            try:
                product.out(q, weight.t(), *scales, bias, None, out.dtype, self.fast, out=out)
                return
            except RuntimeError as error:
                if NOT_SUPPORTED not in str(error):
                    raise
                if not self.refused and torch.cuda.is_current_stream_capturing():
                    raise KernelError(
                        f"M={m} is scaled by a pass that never ran, which a CUDA graph cannot "
                        "capture; run it once before"
                    ) from error
                log.info("M=%d N=%d K=%d is scaled after its product", m, self.n, self.k)
                self.refused.add(m)
        # Made here: what `prepare` makes may lie in memory that vLLM discards while it sleeps.
        one = torch.ones((), dtype=torch.float32, device=q.device)
        # To float32: float16 and float32 results keep more bits than BF16 has.
        raw = product(q, weight.t(), one, one, None, None, torch.float32, self.fast)
        dequantize_rows(raw, x_scale, w_scale, bias, out)


class TorchInt(Way):
    """torch._int_mm, then a pass that scales its sums."""

    backend = "torch"
    form = DENSE_FORM

    @classmethod
    def refusal(cls, plan: LayerPlan, candidate: Candidate, sm: int) -> str | None:
        """INT8 on a GPU, sizes of whole 16 bytes."""
        if plan.dtype is not DType.INT8:
            return f"torch._int_mm takes INT8, not {plan.dtype}"
        return misaligned(plan) or (None if sm else "a GPU is needed")

    def run(
        self,
        q: torch.Tensor,
        x_scale: torch.Tensor,
        weight: torch.Tensor,
        w_scale: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """See `Way.run`."""
        m = q.shape[0]
        if m < INT_MM_ROWS:
            q = torch.nn.functional.pad(q, (0, 0, 0, INT_MM_ROWS - m))
        sums = torch._int_mm(q, weight.t())
        dequantize_rows(sums[:m], x_scale, w_scale, bias, out)


class Native(Way):
    """The native sparse kernel, scales fused."""

    backend = "native"
    form = NATIVE_FORM

    @classmethod
    def refusal(cls, plan: LayerPlan, candidate: Candidate, sm: int) -> str | None:
        """On Hopper, as slidesparse.kernels.native says."""
        from slidesparse.kernels.native.gemm import refusal, unfit
        from slidesparse.kernels.native.program import SM, missing

        if sm != SM:
            return f"the native kernel is for {spell_sm(SM)}"
        k = plan.pattern.expanded_k(plan.k)
        try:
            config = _native_config(candidate)
        except CandidateError as error:
            return str(error)
        return missing() or refusal(plan.n, k, plan.dtype, plan.out) or unfit(config, k)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """See `Way.variants`."""
        from slidesparse.kernels.native.gemm import variant_of
        from slidesparse.tensors import DTYPES

        config = _native_config(self.candidate)
        return (variant_of(config, self.k_run, self.dtype, DTYPES[self.out]),)

    def prepare(self, device: torch.device) -> None:
        """Compile the variant, or take it from disk, and load it."""
        super().prepare(device)
        self.launches: dict[tuple[int, ...], Launch] = {}
        self.lock = threading.Lock()
        from slidesparse.kernels.native.program import load

        self.config = _native_config(self.candidate)
        for variant in self.variants:
            load(variant, device.index or 0)

    def run(
        self,
        q: torch.Tensor,
        x_scale: torch.Tensor,
        weight: torch.Tensor,
        w_scale: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """See `Way.run`."""
        operands = (weight, q, out, w_scale, x_scale, bias)
        key = (q.shape[0], *(0 if t is None else t.data_ptr() for t in operands))
        with self.lock:
            launch = self.launches.get(key) or self._bind(key, weight, q, out, *operands[3:])
            launch(torch.cuda.current_stream(q.device).cuda_stream)

    def _bind(
        self,
        key: tuple[int, ...],
        weight: torch.Tensor,
        q: torch.Tensor,
        out: torch.Tensor,
        w_scale: torch.Tensor | None,
        x_scale: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> Launch:
        """Describe the operands; torch's allocator gives the same addresses again and again."""
        from slidesparse.kernels.native import NativeGemm, PackedWeight

        packed = PackedWeight(weight, self.n, self.k_run, q.dtype)
        launch = NativeGemm(packed, self.config, out.dtype).bind(q, out, w_scale, x_scale, bias)
        launch.release()
        if len(self.launches) >= KEPT:
            self.launches.clear()
        self.launches[key] = launch
        return launch


class Reference(Way):
    """Plain torch on any device: exact sums, slow. What runs without a GPU or a better way."""

    backend = "reference"
    form = DENSE_FORM

    @classmethod
    def refusal(cls, plan: LayerPlan, candidate: Candidate, sm: int) -> str | None:
        """Never."""
        return None

    def run(
        self,
        q: torch.Tensor,
        x_scale: torch.Tensor,
        weight: torch.Tensor,
        w_scale: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """See `Way.run`."""
        if self.dtype is DType.INT8 and not q.is_cuda:
            sums = torch._int_mm(q, weight.t()).float()
        else:
            # Products of 8-bit integers stay whole in float64, whatever K.
            wide = torch.float64 if self.dtype is DType.INT8 else torch.float32
            sums = (q.to(wide) @ weight.to(wide).t()).float()
        made = sums * x_scale[:, None] * w_scale[None, :]
        out.copy_(made if bias is None else made + bias.float())


def _native_config(candidate: Candidate) -> NativeConfig:
    from slidesparse.kernels.native import NativeConfig

    return NativeConfig.from_params(candidate.params)


def misaligned(plan: LayerPlan) -> str | None:
    """Why products of 8-bit operands do not take the layer's sizes, or None."""
    for name, size in (("N", plan.n), ("K", plan.k)):
        if size % ALIGNMENT:
            return f"{name}={size} is not a multiple of {ALIGNMENT}"
    return None


def way_of(plan: LayerPlan, candidate: Candidate) -> type[Way] | None:
    """The class that runs a candidate, or None where nothing does at run time."""
    from slidesparse.layers.cublaslt_way import CublasLtWay
    from slidesparse.layers.cusparselt_way import CusparseLtWay
    from slidesparse.layers.vllm_way import VllmWay

    if candidate.backend == "torch":
        return TorchInt if plan.dtype is DType.INT8 else TorchScaled
    ways: tuple[type[Way], ...] = (CublasLtWay, CusparseLtWay, VllmWay, Native, Reference)
    return next((way for way in ways if way.backend == candidate.backend), None)


def make_way(plan: LayerPlan, candidate: Candidate) -> Way:
    """What runs a candidate.

    Raises:
        KernelError: nothing does.
    """
    way = way_of(plan, candidate)
    if way is None:
        raise KernelError(f"nothing runs candidates of {candidate.backend} in a layer")
    return way(plan, candidate)
