"""cuBLASLt through nvmath's bindings: every heuristic result and, on request, the whole space.

A candidate is the library's opaque algorithm (64 bytes, hexadecimal) with its decoded fields; it
passes cublasLtMatmulAlgoCheck before it runs. Source: NVIDIA's cuBLAS documentation, cublasLt API.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
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
    from slidesparse.kernels.blas.cublaslt import Handle
    from slidesparse.search.operands import Operands

ALIGNMENT = 16
"""N and K must be multiples of this: 16-byte rows of 8-bit operands."""

REQUESTED = 64
"""Heuristic results asked for; the library returns fewer (8 on Hopper)."""

WORKSPACES = (32 << 20, 0, 4 << 20, 64 << 20)
"""Bytes of scratch memory to ask with; the first is what NVIDIA recommends and torch uses."""

ENUMERATED_M = 256
"""Up to this M normal effort tries every tile: heuristics missed up to 6 % there on an H200."""

OUTPUTS = {
    DType.FP8: (DType.BF16, DType.FP16, DType.FP32),
    DType.INT8: (DType.INT32, DType.INT8),
}
OUTER_VECTOR_SM = 90
"""First compute capability with a scale per row of each operand; not offered on SM 10 and up."""


class CublasLt(Backend):
    """Dense GEMM through cuBLASLt."""

    name = "cublaslt"
    sparse = False

    def availability(self, device: Device) -> Availability:
        """Works where nvmath-python finds libcublasLt and there is a GPU."""
        return library_availability(device, "cublasLt")

    def refusal(self, problem: GemmProblem, device: Device) -> str | None:
        """Refuse outputs, scale modes and alignments that the library does not have."""
        outputs = SCALED_OUTPUTS if _unfused(problem) else OUTPUTS[problem.dtype]
        if problem.out not in outputs:
            names = " or ".join(map(str, outputs))
            return f"{problem.dtype} gives {names} in cuBLASLt, not {problem.out}"
        if problem.bias and problem.dtype is DType.INT8 and not _unfused(problem):
            return "cuBLASLt adds no bias to INT8 products here"
        if problem.scales is Scales.ROWCOL and not _unfused(problem):
            sm = detect(device).sm
            if sm != OUTER_VECTOR_SM:
                return f"cuBLASLt has no row x column scales for {problem.dtype} on {spell_sm(sm)}"
        return fp8_refusal(problem, device) or alignment_refusal(problem, ALIGNMENT, ALIGNMENT)

    def candidates(self, problem: GemmProblem, effort: Effort) -> list[Candidate]:
        """The heuristic's results for each accumulation mode, best guess first.

        The proposals depend on the workspace and on M, and the best one is often among those for
        another workspace or a neighbouring M, so both are varied unless the effort is quick. For
        small M every tile is added, since it costs little; full effort adds the enumerated space
        of every algorithm id (tile, stages, cluster) for all M.
        """
        from slidesparse.search.cublaslt_space import accepted, enumerate_space

        problem = _product(problem)
        found: dict[str, Candidate] = {}
        for fast in self._accumulations(problem):
            proposals = self._api.heuristic(problem, fast, REQUESTED, WORKSPACES[0])
            if effort is not Effort.QUICK:
                others = list(self._other_proposals(problem, fast))
                proposals += accepted(self._api, problem, fast, others)
            full = effort is Effort.FULL
            cheap = effort is Effort.NORMAL and problem.m <= ENUMERATED_M
            if (full or cheap) and fast is self._accumulations(problem)[0]:
                proposals += enumerate_space(self._api, problem, fast, every_cluster=full)
            for algo in proposals:
                candidate = self._candidate(algo, fast)
                found.setdefault(candidate.key, candidate)
        if not found:
            raise CandidateError(f"the cuBLASLt heuristic returns nothing for {problem}")
        return list(found.values())

    def _other_proposals(self, problem: GemmProblem, fast: bool) -> Iterator[bytes]:
        for workspace in WORKSPACES[1:]:
            yield from self._api.heuristic(problem, fast, REQUESTED, workspace)
        for m in (problem.m // 2, problem.m * 2, problem.m * 4):
            if m:
                near = replace(problem, m=m)
                yield from self._api.heuristic(near, fast, REQUESTED, WORKSPACES[0])

    def neighbours(
        self, problem: GemmProblem, candidate: Candidate, effort: Effort
    ) -> list[Candidate]:
        """Vary what the heuristic leaves to chance: cluster, custom option, split-K, swizzle."""
        from slidesparse.search.cublaslt_space import vary

        problem = _product(problem)
        fast = bool(candidate.params["fast_accum"])
        algo = bytes.fromhex(str(candidate.params["algo"]))
        wide = effort is Effort.FULL
        return [self._candidate(a, fast) for a in vary(self._api, problem, fast, algo, wide)]

    def prepare(self, problem: GemmProblem, candidate: Candidate, operands: Operands) -> Runner:
        """Check the algorithm against the problem and bind pointers."""
        from slidesparse.kernels.blas.cublaslt import Matmul
        from slidesparse.kernels.blas.descriptors import host_float

        try:
            algo = bytes.fromhex(str(candidate.params["algo"]))
        except (KeyError, ValueError) as error:
            raise CandidateError(f"not a cuBLASLt candidate: {candidate.label}") from error
        fast = bool(candidate.params.get("fast_accum", False))
        unfused = _unfused(problem)
        matmul = Matmul(self._api, _product(problem), fast)
        matmul.bind_scales(operands.x_scale.data_ptr(), operands.w_scale.data_ptr())
        if operands.bias is not None and not unfused:
            matmul.bind_bias(operands.bias.data_ptr())
        checked, needed = matmul.check(algo)
        if unfused:
            product, workspace = scratch(problem, operands, needed)
            outputs = [product.data_ptr()] * operands.sets
        else:
            workspace = operands.workspace(needed)
            outputs = [operands.out(i).data_ptr() for i in range(operands.sets)]
        alpha = operands.alpha if problem.dtype is DType.INT8 else 1.0
        launch = matmul.launcher(
            checked,
            host_float(alpha),
            [
                (operands.w(i).data_ptr(), operands.x(i).data_ptr(), outputs[i])
                for i in range(operands.sets)
            ],
            (workspace.data_ptr(), needed),
        )
        if unfused:
            return scaled_after(launch, problem, operands, product, needed)
        return Runner(launch, needed)

    @cached_property
    def _api(self) -> Handle:
        from slidesparse.kernels.blas.cublaslt import Handle

        return Handle()

    def _accumulations(self, problem: GemmProblem) -> tuple[bool, ...]:
        """Fast accumulation first, as torch and vLLM use it; INT8 sums are always exact."""
        return (True, False) if problem.dtype is DType.FP8 else (False,)

    def _candidate(self, algo: bytes, fast: bool) -> Candidate:
        fields: dict[str, Param] = dict(self._api.decode(algo))
        if fast:
            fields["fast"] = True
        params: dict[str, Param] = {"algo": algo.hex(), "fast_accum": fast}
        return Candidate(self.name, params, self.sparse, fields)


def _unfused(problem: GemmProblem) -> bool:
    """Whether the scales need a pass of their own: the library fuses none with INT8."""
    return problem.dtype is DType.INT8 and problem.scales is Scales.ROWCOL


def _product(problem: GemmProblem) -> GemmProblem:
    """What the library itself computes."""
    return raw_product(problem) if _unfused(problem) else problem
