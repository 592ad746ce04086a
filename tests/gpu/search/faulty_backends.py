"""GPU backends with candidates that really fault, loaded by workers as "faulty_backends:NAME"."""

import torch

from slidesparse.candidate import Candidate
from slidesparse.kernels.blas.cublaslt import Matmul
from slidesparse.kernels.blas.descriptors import host_float
from slidesparse.search.cublaslt import CublasLt
from slidesparse.timing import Runner


class Faulty(CublasLt):
    """cuBLASLt, and beside it candidates that lose the device, eat its memory or are damaged."""

    name = "faulty"

    def candidates(self, problem, effort):
        good = super().candidates(problem, effort)[:2]
        bad = [Candidate(self.name, {"bad": kind}) for kind in ("illegal", "memory", "garbage")]
        return [good[0], *bad, *good[1:]]

    def prepare(self, problem, candidate, operands):
        kind = candidate.params.get("bad")
        if kind is None:
            return super().prepare(problem, candidate, operands)
        if kind == "garbage":
            # Random algorithm bytes, as a damaged cache file might hold them.
            algo = torch.randint(0, 256, (64,), dtype=torch.uint8).numpy().tobytes()
            damaged = Candidate(self.name, {"algo": algo.hex(), "fast_accum": True})
            return super().prepare(problem, damaged, operands)
        if kind == "memory":
            free, _ = torch.cuda.mem_get_info()
            torch.empty(free + 2**30, dtype=torch.uint8, device="cuda")
        return Runner(self._illegal_access(problem, operands))

    def _illegal_access(self, problem, operands):
        """A real product on addresses that nobody allocated: no CUDA context survives it."""
        matmul = Matmul(self._api, problem, fast=True)
        matmul.bind_scales(operands.x_scale.data_ptr(), operands.w_scale.data_ptr())
        algo, _ = matmul.check(self._api.heuristic(problem, True, 1, 0)[0])
        nowhere = [(1 << 40, 1 << 41, 1 << 42)]
        return matmul.launcher(algo, host_float(1.0), nowhere, (0, 0))
