"""vLLM's own dense GEMM: what a served W8A8 model runs today, and so what has to be beaten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidesparse import vllm_gemm
from slidesparse.candidate import Candidate
from slidesparse.devices import Device, detect
from slidesparse.libraries import ABSENT, package_version
from slidesparse.problem import GemmProblem, Scales
from slidesparse.search.backend import Availability, Backend, Effort
from slidesparse.search.nvidia import alignment_refusal, needs_gpu
from slidesparse.timing import Runner

if TYPE_CHECKING:
    from slidesparse.search.operands import Operands


class VllmDense(Backend):
    """vLLM's cutlass_scaled_mm, row and column scales and the bias fused."""

    name = vllm_gemm.BACKEND
    sparse = False

    @property
    def installed(self) -> bool:
        """Whether there is a vLLM: most who search have none and miss nothing."""
        return package_version(self.name) != ABSENT

    @property
    def identity(self) -> str:
        """With the version, which is not in the Fingerprint: another one is raced anew."""
        return f"{self.name} {package_version(self.name)}" if self.installed else self.name

    def current(self, candidate: Candidate) -> bool:
        """Whether it is of the vLLM that is installed."""
        return vllm_gemm.mismatch(candidate.params) is None

    def availability(self, device: Device) -> Availability:
        """Works where vLLM is installed and its kernels load, which only importing it shows."""
        missing = needs_gpu(device)
        if missing is not None:
            return missing
        if not self.installed:
            remedy = "pip install 'slidesparse[vllm]'"
            return Availability(False, "optional, and vLLM is not installed", remedy)
        reason = vllm_gemm.missing()
        if reason:
            return Availability(False, reason, "install the vLLM that goes with this torch")
        return Availability(True, f"version {package_version(self.name)}")

    def refusal(self, problem: GemmProblem, device: Device) -> str | None:
        """Refuse all but scales per row and column, and what CUTLASS does not take."""
        if problem.scales is not Scales.ROWCOL:
            return f"vLLM's product is raced with row x column scales, not with {problem.scales}"
        return vllm_gemm.refusal(
            problem.dtype, problem.out, detect(device).sm
        ) or alignment_refusal(problem, vllm_gemm.ALIGNMENT, vllm_gemm.ALIGNMENT)

    def candidates(self, problem: GemmProblem, effort: Effort) -> list[Candidate]:
        """The one function: its tile is chosen inside."""
        return [vllm_gemm.candidate()]

    def prepare(self, problem: GemmProblem, candidate: Candidate, operands: Operands) -> Runner:
        """Import vLLM and bind the operands to its op."""
        return bind(vllm_gemm.load(candidate.params), problem, operands)


def bind(product: vllm_gemm.Product, problem: GemmProblem, operands: Operands) -> Runner:
    """Launch `product` on the operands' sets in turn.

    Args:
        product: the op, or what computes the same.
        problem: that it runs.
        operands: of the problem; rows past M are left alone.
    """
    m = problem.m
    x_scale = operands.x_scale.expand(m).contiguous()
    w_scale = operands.w_scale.expand(problem.n).contiguous()

    def launch(index: int, stream: int) -> None:
        x, out = operands.x(index)[:m], operands.out(index)[:m]
        product(out, x, operands.w(index).t(), x_scale, w_scale, operands.bias)

    return Runner(launch)
