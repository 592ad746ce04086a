"""The native sparse GEMM (kernels/native) with row and column scales fused, on Hopper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidesparse.candidate import Candidate
from slidesparse.devices import Device, detect, spell_sm
from slidesparse.errors import CandidateError, KernelError
from slidesparse.problem import DType, GemmProblem
from slidesparse.search.backend import Availability, Backend, Effort
from slidesparse.search.nvidia import EXTRAS, needs_gpu
from slidesparse.timing import Runner

if TYPE_CHECKING:
    from slidesparse.kernels.native import NativeConfig, PackedWeight
    from slidesparse.search.operands import Operands

COUNTS = {Effort.QUICK: 4, Effort.NORMAL: 14, Effort.FULL: 200}
"""Configurations that are tried, of those the model ranks; variations of the best come on top."""


class NativeSparse(Backend):
    """kernels/native on the slid 2:4 weight."""

    name = "native"
    sparse = True

    def availability(self, device: Device) -> Availability:
        """Works where cuda.core and NVRTC load."""
        missing = needs_gpu(device)
        if missing is not None:
            return missing
        from slidesparse.kernels.native.program import missing as missing_compiler

        reason = missing_compiler()
        if reason:
            return Availability(False, reason, EXTRAS)
        return Availability(True, "compiled when needed")

    def refusal(self, problem: GemmProblem, device: Device) -> str | None:
        """Refuse other GPUs, outputs and alignments that the kernel does not have."""
        from slidesparse.kernels.native.gemm import refusal
        from slidesparse.kernels.native.program import SM

        sm = detect(device).sm
        if sm != SM:
            return f"the native kernel is for {spell_sm(SM)} (Hopper) and this is {spell_sm(sm)}"
        return refusal(problem.n, problem.k_run, problem.dtype, problem.out, problem.bias)

    def candidates(self, problem: GemmProblem, effort: Effort) -> list[Candidate]:
        """What the model of the GPU ranks highest, its first choice first."""
        from slidesparse.kernels.native.space import candidates

        m, n, k = problem.m, problem.n, problem.k_run
        found = candidates(m, n, k, problem.dtype, COUNTS[effort], self._sms())
        if not found:
            raise CandidateError(f"no configuration fits {problem}")
        self._compile(problem, found)
        return [self._candidate(config) for config in found]

    def neighbours(
        self, problem: GemmProblem, candidate: Candidate, effort: Effort
    ) -> list[Candidate]:
        """Rasters, clusters and stages around a candidate that did well."""
        if effort is Effort.QUICK:
            return []
        from slidesparse.kernels.native.space import neighbours

        config = self._config(candidate)
        found = neighbours(config, problem.m, problem.n, problem.k_run)
        self._compile(problem, found)
        return [self._candidate(other) for other in found]

    def prepare(self, problem: GemmProblem, candidate: Candidate, operands: Operands) -> Runner:
        """Pack the weight once per layer and bind the operands of every set."""
        from slidesparse.kernels.native import NativeGemm, PackedWeight
        from slidesparse.tensors import TORCH_DTYPES

        config = self._config(candidate)
        packed = self._packed(operands)
        copies = operands.rotate(self.name, lambda: packed.data)
        x_scale = w_scale = None
        if problem.out is not DType.INT32:
            x_scale = operands.x_scale.expand(problem.m).contiguous()
            w_scale = operands.w_scale.expand(problem.n).contiguous()
        try:
            launches = []
            for i in range(operands.sets):
                weight = PackedWeight(copies[i], packed.n, packed.k, packed.dtype)
                gemm = NativeGemm(weight, config, TORCH_DTYPES[problem.out])
                x, out = operands.x_lifted(i)[: problem.m], operands.out(i)[: problem.m]
                launches.append(gemm.bind(x, out, w_scale, x_scale, operands.bias))
        except KernelError as error:
            raise CandidateError(str(error)) from error

        def launch(index: int, stream: int) -> None:
            launches[index % len(launches)](stream)

        return Runner(launch)

    def _packed(self, operands: Operands) -> PackedWeight:
        from slidesparse.kernels.native import pack

        packed = operands.weight.packed
        if self.name not in packed:
            packed[self.name] = pack(operands.weight.slid)
        made: PackedWeight = packed[self.name]
        return made

    def _compile(self, problem: GemmProblem, configs: list[NativeConfig]) -> None:
        """Compile side by side what screening would compile one after another.

        What does not compile is met again by `prepare`, which files it against the candidate.
        """
        from slidesparse.kernels.native.gemm import variant_of
        from slidesparse.kernels.native.program import compile_variants

        k, dtype, out = problem.k_run, problem.dtype, problem.out
        compile_variants(variant_of(config, k, dtype, out) for config in configs)

    def _sms(self) -> int:
        import torch

        return int(
            torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
        )

    def _config(self, candidate: Candidate) -> NativeConfig:
        from slidesparse.kernels.native import NativeConfig

        return NativeConfig.from_params(candidate.params)

    def _candidate(self, config: NativeConfig) -> Candidate:
        return Candidate(self.name, config.params(), self.sparse, {"config": config.label})
