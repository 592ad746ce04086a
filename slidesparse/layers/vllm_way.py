"""vLLM's own GEMM at run time, where it was measured fastest and the same vLLM is installed."""

from __future__ import annotations

import torch

from slidesparse import vllm_gemm
from slidesparse.candidate import Candidate
from slidesparse.layers.layer_plan import DENSE_FORM, LayerPlan
from slidesparse.layers.ways import Way, misaligned


class VllmWay(Way):
    """vLLM's cutlass_scaled_mm, row and column scales and the bias fused."""

    backend = vllm_gemm.BACKEND
    form = DENSE_FORM

    @classmethod
    def refusal(cls, plan: LayerPlan, candidate: Candidate, sm: int) -> str | None:
        """Without the vLLM that was measured, and what CUTLASS does not take. Imports nothing."""
        reason = vllm_gemm.refusal(plan.dtype, plan.out, sm) or misaligned(plan)
        return reason or vllm_gemm.mismatch(candidate.params)

    def prepare(self, device: torch.device) -> None:
        """Import vLLM, unless it is what runs this layer, and find its op."""
        super().prepare(device)
        self.product = vllm_gemm.load(self.candidate.params)

    def run(
        self,
        q: torch.Tensor,
        x_scale: torch.Tensor,
        weight: torch.Tensor,
        w_scale: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """See `Way.run`. What the op needs besides it takes from torch's allocator."""
        self.product(out, q, weight.t(), x_scale.contiguous(), w_scale.contiguous(), bias)
