"""torch's own GEMMs as named baselines: what a user has today without SlideSparse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidesparse.candidate import Candidate, Param
from slidesparse.devices import Device, detect, spell_sm
from slidesparse.errors import CandidateError
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.search.backend import Availability, Backend, Effort
from slidesparse.search.nvidia import alignment_refusal, fp8_refusal, needs_gpu
from slidesparse.search.unfused import SCALED_OUTPUTS, scaled_after, scratch
from slidesparse.timing import Runner

if TYPE_CHECKING:
    import torch

    from slidesparse.search.operands import Operands

ALIGNMENT = 16
ROWWISE_SM = 90
INT_MM_SMALLEST_M = 17
"""torch._int_mm refuses fewer rows on CUDA."""


class TorchDense(Backend):
    """torch._scaled_mm (per tensor, row-wise) and torch._int_mm."""

    name = "torch"
    sparse = False

    def availability(self, device: Device) -> Availability:
        """Works on every CUDA device: torch is always there."""
        return needs_gpu(device) or Availability(True, f"torch {detect(device).torch}")

    def refusal(self, problem: GemmProblem, device: Device) -> str | None:
        """Refuse what the two functions do not take."""
        if problem.dtype is DType.INT8:
            unfused = self._rowwise_only(problem) and problem.out in SCALED_OUTPUTS
            if not unfused and (problem.out is not DType.INT32 or problem.bias):
                return "torch._int_mm gives int32 without a bias"
            if problem.m < INT_MM_SMALLEST_M:
                return f"torch._int_mm refuses M={problem.m}, it takes more than 16 rows"
        elif problem.out is not DType.BF16 and self._rowwise_only(problem):
            return f"torch._scaled_mm row-wise gives bf16, not {problem.out}"
        elif self._rowwise_only(problem) and (sm := detect(device).sm) < ROWWISE_SM:
            return f"torch._scaled_mm row-wise needs SM 9.0 or newer and this is {spell_sm(sm)}"
        return fp8_refusal(problem, device) or alignment_refusal(problem, ALIGNMENT, ALIGNMENT)

    def candidates(self, problem: GemmProblem, effort: Effort) -> list[Candidate]:
        """One candidate per function and accumulation mode that computes the problem."""
        if problem.dtype is DType.INT8:
            return [self._candidate("int_mm")]
        found = []
        if problem.scales is Scales.TENSOR:
            found += [self._candidate("scaled_mm", fast) for fast in (True, False)]
        if problem.out is DType.BF16:
            # Row-wise scaling computes a per-tensor problem too, with constant vectors.
            found += [self._candidate("scaled_mm_rowwise", fast) for fast in (True, False)]
        return found

    def prepare(self, problem: GemmProblem, candidate: Candidate, operands: Operands) -> Runner:
        """Bind the operands to the out= form of the function, which allocates nothing of ours."""
        import torch

        function = candidate.params.get("function")
        fast = bool(candidate.params.get("fast_accum", False))
        if function == "int_mm":
            unfused = self._rowwise_only(problem)
            product = scratch(problem, operands, 0)[0] if unfused else None

            def launch_int(index: int, stream: int) -> None:
                out = operands.out(index) if product is None else product
                torch._int_mm(operands.x(index), operands.w(index).t(), out=out)

            if product is None:
                return Runner(launch_int)
            return scaled_after(launch_int, problem, operands, product)
        if function not in {"scaled_mm", "scaled_mm_rowwise"}:
            raise CandidateError(f"torch has no candidate {function!r}")
        x_scale, w_scale = _scales(operands, rowwise=function == "scaled_mm_rowwise")

        def launch(index: int, stream: int) -> None:
            torch.ops.aten._scaled_mm.out(
                operands.x(index)[: problem.m],
                operands.w(index).t(),
                x_scale,
                w_scale,
                operands.bias,
                None,
                operands.out(index).dtype,
                fast,
                out=operands.out(index)[: problem.m],
            )

        return Runner(launch)

    def _rowwise_only(self, problem: GemmProblem) -> bool:
        return problem.scales is Scales.ROWCOL

    def _candidate(self, function: str, fast: bool | None = None) -> Candidate:
        if fast is None:
            return Candidate(self.name, {"function": function}, False, {"function": function})
        params: dict[str, Param] = {"function": function, "fast_accum": fast}
        return Candidate(self.name, params, False, {"function": function, "fast": fast})


def _scales(operands: Operands, rowwise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale tensors in the shapes that torch asks for: [M, 1] and [1, N], or two scalars."""
    problem = operands.problem
    if not rowwise:
        return operands.x_scale.reshape(()), operands.w_scale.reshape(())
    x_scale = operands.x_scale.expand(problem.m).reshape(-1, 1).contiguous()
    w_scale = operands.w_scale.expand(problem.n).reshape(1, -1).contiguous()
    return x_scale, w_scale
