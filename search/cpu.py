"""The CPU reference backends: the whole command works without a GPU, at CPU speed.

INT8 runs through torch._int_mm, FP8 is emulated: operands widened once, multiplied in float32 or
bfloat16. The slid variant runs the 2:4 matrix on lifted activations as a dense product, which shows
that the method is exact, not that it is fast: no CPU here skips the zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidesparse.candidate import Candidate
from slidesparse.devices import Device
from slidesparse.errors import CandidateError
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.search.backend import Availability, Backend, Effort
from slidesparse.timing import Runner

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from slidesparse.search.operands import Operands

_WIDE = {"float32": DType.FP32, "bfloat16": DType.BF16}


class CpuReference(Backend):
    """torch on the CPU, on the unexpanded weight."""

    name = "cpu"
    sparse = False
    on_gpu = False

    def availability(self, device: Device) -> Availability:
        """Works on the cpu device only."""
        if device.is_gpu:
            return Availability(False, f"runs on the cpu device, not on {device}")
        return Availability(True, "torch reference")

    def refusal(self, problem: GemmProblem, device: Device) -> str | None:
        """Refuse nothing: a reference runs every problem."""
        return None

    def candidates(self, problem: GemmProblem, effort: Effort) -> list[Candidate]:
        """torch._int_mm for INT8, a float32 product for FP8, for BF16 output a bfloat16 one too."""
        if problem.dtype is DType.INT8:
            return [self._candidate("int_mm")]
        found = [self._candidate("float32")]
        if problem.out is DType.BF16:
            found.append(self._candidate("bfloat16"))
        return found

    def prepare(self, problem: GemmProblem, candidate: Candidate, operands: Operands) -> Runner:
        """Widen the weight once, as a checkpoint loader would, and bind the buffers."""
        import torch

        from slidesparse.tensors import TORCH_DTYPES

        x = operands.x_lifted(0) if self.sparse else operands.x(0)
        w = operands.weight.slid if self.sparse else operands.weight.dense
        path = str(candidate.params["path"])
        if path == "int_mm":
            w_t = w.t()

            def product() -> torch.Tensor:
                return torch._int_mm(x, w_t)

        elif path in _WIDE:
            wide = TORCH_DTYPES[_WIDE[path]]
            # Packed once per weight and path: the same weight serves every M.
            key = f"{self.name}-{path}"
            w_wide = operands.weight.packed.get(key)
            if w_wide is None:
                w_wide = operands.weight.packed[key] = w.to(wide).t()
            product = _wide_product(x, w_wide, wide)
        else:
            raise CandidateError(f"the {self.name} backend has no path {path!r}")
        out = operands.out(0)

        def launch(index: int, stream: int) -> None:
            _store(product(), operands, out)

        return Runner(launch)

    def _candidate(self, path: str) -> Candidate:
        return Candidate(self.name, {"path": path}, self.sparse, {"path": path})


class CpuSlid(CpuReference):
    """torch on the CPU, on the slid 2:4 weight and lifted activations."""

    name = "cpu-slid"
    sparse = True


def _wide_product(
    x: torch.Tensor, w: torch.Tensor, wide: torch.dtype
) -> Callable[[], torch.Tensor]:
    return lambda: x.to(wide) @ w


def _store(product: torch.Tensor, operands: Operands, out: torch.Tensor) -> None:
    problem = operands.problem
    if problem.scales is Scales.NONE:
        out.copy_(product)
        return
    scaled = product.float()
    if problem.scales is Scales.ROWCOL:
        scaled[: problem.m] *= operands.x_scale[:, None]
        scaled *= operands.w_scale
    else:
        scaled *= operands.x_scale * operands.w_scale
    if operands.bias is not None:
        scaled += operands.bias
    if problem.out is DType.INT8:
        scaled = scaled.round_().clamp_(-128, 127)
    out.copy_(scaled)
