"""cuBLASLt at run time: a searched algorithm; FP8 scales are fused, INT8 sums scaled after it."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slidesparse.candidate import Candidate
from slidesparse.errors import CandidateError
from slidesparse.kernels.dequant import dequantize_rows
from slidesparse.layers.layer_plan import DENSE_FORM, LayerPlan
from slidesparse.layers.ways import ALIGNMENT, TorchInt, TorchScaled, Way
from slidesparse.libraries import ABSENT, binding_version
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.tensors import DTYPES

if TYPE_CHECKING:
    from slidesparse.kernels.blas.cublaslt import Handle, Matmul

log = logging.getLogger(__name__)

OUTER_VECTOR_SM = 90
"""The only compute capability on which the library scales rows of both FP8 operands."""

KEPT = 512
"""Descriptions that a layer keeps, one for each number of tokens."""

_LOCK = threading.Lock()
"""A description holds the addresses of the scales from one call to the next."""


ONE = np.ones(1, dtype=np.float32)


@dataclass
class Bound:
    """A description, its checked algorithm, the workspace in bytes, and what it points to."""

    matmul: Matmul
    algo: Any
    workspace: int
    addresses: tuple[int, ...] = ()
    refused: bool = False
    """Whether the library did not run it although it had checked it."""

    def point(
        self, x_scale: torch.Tensor, w_scale: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        """Set the addresses of scales and bias, unless they are what they were."""
        addresses = (x_scale.data_ptr(), w_scale.data_ptr(), 0 if bias is None else bias.data_ptr())
        if addresses != self.addresses:
            self.matmul.bind_scales(*addresses[:2])
            if bias is not None:
                self.matmul.bind_bias(addresses[2])
            self.addresses = addresses


class CublasLtWay(Way):
    """A cuBLASLt algorithm."""

    backend = "cublaslt"
    form = DENSE_FORM

    @classmethod
    def refusal(cls, plan: LayerPlan, candidate: Candidate, sm: int) -> str | None:
        """Where the library loads and can do what was searched."""
        if not sm or binding_version("cublasLt")[0] == ABSENT:
            return "cuBLASLt is not there"
        if plan.dtype is DType.FP8:
            if sm != OUTER_VECTOR_SM:
                return "cuBLASLt scales rows and columns on SM 9.0 only"
            if plan.out is DType.FP32:
                return "cuBLASLt scales rows and columns to 16 bits"
        if plan.n % ALIGNMENT or plan.k % ALIGNMENT:
            return f"N={plan.n} or K={plan.k} is not a multiple of {ALIGNMENT}"
        return None

    def prepare(self, device: torch.device) -> None:
        """Open the library and ready torch's way, which serves what the algorithm refuses."""
        super().prepare(device)
        try:
            self.algo = bytes.fromhex(str(self.candidate.params["algo"]))
        except (KeyError, ValueError) as error:
            raise CandidateError(f"not a cuBLASLt candidate: {self.candidate.label}") from error
        self.fast = bool(self.candidate.params.get("fast_accum", False))
        self.handle = _handle(device.index or 0)
        self.fused = self.dtype is DType.FP8
        other = TorchScaled if self.fused else TorchInt
        self.other = other(self.plan, self.candidate)
        self.other.prepare(device)
        self.bound = lru_cache(maxsize=KEPT)(self._bind)

    def _bind(self, m: int, bias: bool) -> Bound | None:
        """Describe the product of `m` tokens; None if the algorithm does not take them."""
        from slidesparse.kernels.blas.cublaslt import UNREAD, Matmul

        out = DTYPES[self.out] if self.fused else DType.INT32
        scales = Scales.ROWCOL if self.fused else Scales.NONE
        problem = GemmProblem(m, self.n, self.k, self.dtype, out, scales, bias=bias)
        matmul = Matmul(self.handle, problem, self.fast)
        matmul.bind_scales(UNREAD, UNREAD)
        if bias:
            matmul.bind_bias(UNREAD)
        try:
            algo, workspace = matmul.check(self.algo)
        except CandidateError as error:
            log.info("torch runs M=%d of N=%d K=%d: %s", m, self.n, self.k, error)
            return None
        return Bound(matmul, algo, workspace)

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
        bound = self.bound(q.shape[0], self.fused and bias is not None)
        if bound is None or bound.refused:
            self.other.run(q, x_scale, weight, w_scale, bias, out)
            return
        sums = out
        if not self.fused:
            sums = torch.empty(out.shape, dtype=torch.int32, device=out.device)
        workspace = torch.empty(max(bound.workspace, 1), dtype=torch.uint8, device=out.device)
        pointers = (weight.data_ptr(), q.data_ptr(), sums.data_ptr())
        scratch = (workspace.data_ptr(), bound.workspace)
        stream = torch.cuda.current_stream(q.device).cuda_stream
        try:
            with _LOCK:
                bound.point(x_scale, w_scale, bias if self.fused else None)
                bound.matmul.run(bound.algo, ONE, pointers, scratch, stream)
        except CandidateError as error:
            log.info("torch runs M=%d of N=%d K=%d: %s", len(q), self.n, self.k, error)
            bound.refused = True
            self.other.run(q, x_scale, weight, w_scale, bias, out)
            return
        if not self.fused:
            dequantize_rows(sums, x_scale, w_scale, bias, out)


@cache
def _handle(device: int) -> Handle:
    """One handle a device: the library's handles belong to the one that was current."""
    from slidesparse.kernels.blas.cublaslt import Handle

    with torch.cuda.device(device):
        return Handle()
