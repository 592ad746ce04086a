"""cuSPARSELt through nvmath's bindings: every algorithm id and split-K that the library accepts.

The slid weight [N, K'] is 2:4, so every pattern of the family runs here. The weight is compressed
once per layer and reused for every M and candidate. Source: NVIDIA's cuSPARSELt documentation.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from slidesparse.candidate import Candidate, Param
from slidesparse.devices import Device, detect, spell_sm
from slidesparse.errors import CandidateError
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.search.backend import Availability, Backend, Effort
from slidesparse.search.nvidia import (
    alignment_refusal,
    fp8_refusal,
    library_availability,
)
from slidesparse.search.unfused import SCALED_OUTPUTS, raw_product, scaled_after, scratch
from slidesparse.timing import Runner

if TYPE_CHECKING:
    import torch

    from slidesparse.kernels.blas.cusparselt import Handle, Plan
    from slidesparse.search.operands import Operands

N_ALIGNMENT = 32
SPARSE_SM = 80
"""First compute capability with sparse tensor cores."""

OUTPUTS = {
    DType.FP8: (DType.BF16, DType.FP16, DType.FP32),
    DType.INT8: (DType.INT32, DType.BF16, DType.FP16, DType.INT8),
}
SEGMENT_K = -1
SEGMENT_K_SMALLEST_N = 400
"""Below this N some versions hang in segment-K."""

SPLITS = (2, 4, 8)
SPLIT_MODES = (1, 2)
"""One kernel, two kernels (cusparseLtSplitKMode_t)."""


class CusparseLt(Backend):
    """Structured-sparse GEMM through cuSPARSELt."""

    name = "cusparselt"
    sparse = True

    def availability(self, device: Device) -> Availability:
        """Works where nvmath-python finds libcusparseLt and there is a GPU."""
        return library_availability(device, "cusparseLt")

    def refusal(self, problem: GemmProblem, device: Device) -> str | None:
        """Refuse outputs, scales and alignments that the library does not have."""
        sm = detect(device).sm
        if sm < SPARSE_SM:
            return f"sparse tensor cores need SM 8.0 or newer and this is {spell_sm(sm)}"
        unfused = problem.scales is Scales.ROWCOL
        outputs = SCALED_OUTPUTS if unfused else OUTPUTS[problem.dtype]
        if problem.out not in outputs:
            names = ", ".join(map(str, outputs))
            return f"{problem.dtype} gives {names} in cuSPARSELt, not {problem.out}"
        if problem.bias and not unfused:
            return "the cuSPARSELt backend adds no bias"
        return fp8_refusal(problem, device) or alignment_refusal(problem, N_ALIGNMENT, 1)

    def candidates(self, problem: GemmProblem, effort: Effort) -> list[Candidate]:
        """Every algorithm id, the default id 0 first, then split-K and segment-K."""
        plan = self._plan(problem)
        ids = range(plan.algorithm_count())
        found = [self._candidate(algorithm=i) for i in ids]
        if problem.n >= SEGMENT_K_SMALLEST_N and effort is not Effort.QUICK:
            found += self._split(plan, [(SEGMENT_K, 0)], ids if effort is Effort.FULL else ids[:1])
        modes = [(split, mode) for split in SPLITS for mode in SPLIT_MODES]
        if effort is Effort.FULL:
            found += self._split(plan, modes, ids)
        return found

    def neighbours(
        self, problem: GemmProblem, candidate: Candidate, effort: Effort
    ) -> list[Candidate]:
        """Split-K and segment-K with the algorithm id that did well."""
        params = candidate.params
        if "split_k" in params or effort is Effort.QUICK:
            return []
        modes = [(split, mode) for split in SPLITS for mode in SPLIT_MODES]
        if problem.n >= SEGMENT_K_SMALLEST_N:
            modes.append((SEGMENT_K, 0))
        return self._split(self._plan(problem), modes, [int(params["algorithm"])])

    def prepare(self, problem: GemmProblem, candidate: Candidate, operands: Operands) -> Runner:
        """Plan the candidate and bind pointers; the compressed weight is shared.

        Scales per token and channel are none of the library's: a pass over the output follows.
        """
        plan = self._plan(problem)
        plan.select(candidate.params)
        needed = plan.workspace()
        unfused = problem.scales is Scales.ROWCOL
        if unfused:
            product, workspace = scratch(problem, operands, needed)
            outputs = [product.data_ptr()] * operands.sets
        else:
            workspace = operands.workspace(needed)
            outputs = [operands.out(i).data_ptr() for i in range(operands.sets)]
        # The compressed bytes do not depend on M or the algorithm (checked on an H200).
        compressed = operands.rotate(self.name, lambda: self._compress(plan, operands))
        launch = plan.launcher(
            operands.alpha,
            [
                (compressed[i].data_ptr(), operands.x_lifted(i).data_ptr(), outputs[i])
                for i in range(operands.sets)
            ],
            workspace.data_ptr(),
        )
        if unfused:
            return scaled_after(launch, problem, operands, product, needed)
        return Runner(launch, needed)

    @cached_property
    def _api(self) -> Handle:
        from slidesparse.kernels.blas.cusparselt import Handle

        return Handle()

    def _plan(self, problem: GemmProblem) -> Plan:
        from slidesparse.kernels.blas.cusparselt import Plan

        if problem.scales is Scales.ROWCOL:
            problem = raw_product(problem)
        return Plan(self._api, problem)

    def _compress(self, plan: Plan, operands: Operands) -> torch.Tensor:
        packed = operands.weight.packed
        if self.name not in packed:
            packed[self.name] = plan.compress(operands.weight.slid)
        compressed: torch.Tensor = packed[self.name]
        return compressed

    def _split(
        self, plan: Plan, modes: list[tuple[int, int]], ids: range | list[int]
    ) -> list[Candidate]:
        """The split-K candidates that the library plans without an error."""
        found = []
        for algorithm in ids:
            for split, mode in modes:
                candidate = self._candidate(algorithm=algorithm, split_k=split, mode=mode)
                try:
                    plan.select(candidate.params)
                except CandidateError:
                    continue
                found.append(candidate)
        return found

    def _candidate(self, **params: Param) -> Candidate:
        if not params.get("mode", True):
            del params["mode"]
        return Candidate(self.name, params, self.sparse, dict(params))
