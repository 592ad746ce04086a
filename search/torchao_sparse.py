"""torchao's sparse FP8 GEMM (CUTLASS, Hopper only) with row and column scales fused."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from slidesparse.candidate import Candidate
from slidesparse.devices import Device, detect, spell_sm
from slidesparse.errors import CandidateError
from slidesparse.problem import DType, GemmProblem
from slidesparse.search.backend import Availability, Backend, Effort
from slidesparse.search.nvidia import alignment_refusal, needs_gpu
from slidesparse.timing import Runner

if TYPE_CHECKING:
    import torch

    from slidesparse.search.operands import Operands

SM = 90
N_ALIGNMENT = 16
OPERATION = "torchao::rowwise_scaled_linear_sparse_cutlass_f8f8"


class TorchaoSparse(Backend):
    """torchao's rowwise_scaled_linear_sparse_cutlass_f8f8 on the slid 2:4 weight."""

    name = "torchao"
    sparse = True

    def availability(self, device: Device) -> Availability:
        """Works where torchao is installed with its SM 9.0a extension."""
        missing = needs_gpu(device)
        if missing is not None:
            return missing
        try:
            with warnings.catch_warnings():
                # torchao 0.18's own docstrings hold invalid escapes, which nobody here can mend.
                warnings.simplefilter("ignore", SyntaxWarning)
                import torchao
        except (ImportError, OSError) as error:
            return Availability(False, f"not installed ({error})", "pip install torchao")
        import torch

        if not torch._C._dispatch_has_kernel_for_dispatch_key(OPERATION, "CUDA"):
            return Availability(False, f"torchao {torchao.__version__} has no sparse FP8 kernel")
        return Availability(True, f"version {torchao.__version__}")

    def refusal(self, problem: GemmProblem, device: Device) -> str | None:
        """Refuse everything but FP8 -> BF16 on Hopper."""
        sm = detect(device).sm
        if sm != SM:
            return f"torchao's sparse FP8 kernel is for SM 9.0 and this is {spell_sm(sm)}"
        if problem.dtype is not DType.FP8 or problem.out is not DType.BF16:
            return f"torchao's sparse kernel gives fp8_e4m3->bf16, not {problem.dtype}->" + str(
                problem.out
            )
        if problem.bias:
            return "the torchao backend adds no bias"
        return alignment_refusal(problem, N_ALIGNMENT, 1)

    def candidates(self, problem: GemmProblem, effort: Effort) -> list[Candidate]:
        """The one kernel: its tile is chosen inside."""
        return [Candidate(self.name, {"function": "rowwise_f8f8"}, True, {"function": "rowwise"})]

    def prepare(self, problem: GemmProblem, candidate: Candidate, operands: Operands) -> Runner:
        """Compress the weight once per layer and bind constant or per-row scales."""
        import torch

        if candidate.params.get("function") != "rowwise_f8f8":
            raise CandidateError(f"torchao has no candidate {candidate.label}")
        values, metadata = self._compressed(operands)
        weights = operands.rotate("torchao-values", lambda: values)
        metas = operands.rotate("torchao-metadata", lambda: metadata)
        x_scale = operands.x_scale.expand(problem.m).contiguous()
        w_scale = operands.w_scale.expand(problem.n).contiguous()
        run = torch.ops.torchao.rowwise_scaled_linear_sparse_cutlass_f8f8

        def launch(index: int, stream: int) -> torch.Tensor:
            i = index % operands.sets
            out: torch.Tensor = run(
                operands.x_lifted(i)[: problem.m],
                x_scale,
                weights[i],
                metas[i],
                w_scale,
                None,
                torch.bfloat16,
            )
            return out

        return Runner(launch, makes_output=True)

    def _compressed(self, operands: Operands) -> tuple[Any, Any]:
        import torch

        packed = operands.weight.packed
        if self.name not in packed:
            try:
                convert = torch.ops.torchao.to_sparse_semi_structured_cutlass_sm9x_f8
                packed[self.name] = convert(operands.weight.slid)
            except RuntimeError as error:
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
                line = str(error).splitlines()[0]
                raise CandidateError(f"torchao cannot compress the weight: {line}") from error
        values, metadata = packed[self.name]
        return values, metadata
