"""cuSPARSELt at run time: a searched algorithm on the slid weight, then a pass that scales."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING

import torch

from slidesparse.candidate import Candidate
from slidesparse.devices import lacks_fp8, spell_sm
from slidesparse.kernels.blas.descriptors import ROW_ALIGNMENT
from slidesparse.kernels.dequant import dequantize_rows
from slidesparse.layers.layer_plan import CUSPARSELT_FORM, LayerPlan
from slidesparse.layers.ways import Way
from slidesparse.libraries import ABSENT, binding_version
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.tensors import DTYPES, TORCH_DTYPES

if TYPE_CHECKING:
    from slidesparse.kernels.blas.cusparselt import Handle, Plan

SPARSE_SM = 80
"""First compute capability with sparse tensor cores."""

PRODUCT = {DType.FP8: DType.BF16, DType.INT8: DType.INT32}
"""What the library leaves for the pass that scales."""

N_ALIGNMENT = 32

FP8_SMALLEST_K = 128
"""Of K', in FP8: with K' of 64 and 96 layers were not right on an H200 (cuSPARSELt 0.8.0), INT8
ones were. One stage of its kernels holds 128; a product so short has nothing to gain anyway."""

KEPT = 512
"""Plans that a layer keeps, one for every 16 numbers of tokens."""

UNIT_ROWS = 1024
"""Columns of a compressed weight that are read back at a time."""


class CusparseLtWay(Way):
    """A cuSPARSELt algorithm."""

    backend = "cusparselt"
    form = CUSPARSELT_FORM

    @classmethod
    def refusal(cls, plan: LayerPlan, candidate: Candidate, sm: int) -> str | None:
        """Where the library loads, on GPUs with sparse tensor cores."""
        if plan.pattern.dense:
            return "a dense weight has no sparse form"
        if sm < SPARSE_SM:
            return f"sparse tensor cores need {spell_sm(SPARSE_SM)}"
        if plan.dtype is DType.FP8 and (reason := lacks_fp8(sm)):
            return reason
        if plan.dtype is DType.FP8 and plan.out is not DType.BF16:
            return f"cuSPARSELt's FP8 product is rounded to bf16, and {plan.out} keeps more bits"
        k = plan.pattern.expanded_k(plan.k)
        if plan.dtype is DType.FP8 and k < FP8_SMALLEST_K:
            return f"K'={k} is less than the {FP8_SMALLEST_K} that cuSPARSELt needs in FP8"
        if plan.n % N_ALIGNMENT:
            return f"N={plan.n} is not a multiple of {N_ALIGNMENT}"
        return "cuSPARSELt is not there" if binding_version("cusparseLt")[0] == ABSENT else None

    def prepare(self, device: torch.device) -> None:
        """Open the library and let it plan once: what it refuses, another way can still run."""
        super().prepare(device)
        self.handle = _handle(device.index or 0)
        self.product = PRODUCT[self.dtype]
        self.plans = lru_cache(maxsize=KEPT)(self._plan)
        self.plans(ROW_ALIGNMENT)

    def _plan(self, m: int) -> Plan:
        """The plan of the candidate for `m` tokens, a multiple of ROW_ALIGNMENT."""
        made = _describe(self.handle, m, self.n, self.k_run, self.dtype, self.product)
        made.select(self.candidate.params)
        return made

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
        m = q.shape[0]
        product = _multiply(self.plans(_whole(m)), weight, q, self.n, self.product)
        dequantize_rows(product[:m], x_scale, w_scale, bias, out)


def compress(slid: torch.Tensor) -> torch.Tensor:
    """The library's own form of a 2:4 weight [N, K'] on a GPU: uint8 [bytes]."""
    n, k = slid.shape
    dtype = DTYPES[slid.dtype]
    out = PRODUCT[dtype]
    handle = _handle(slid.device.index or 0)
    # The compressed bytes do not depend on M or the algorithm (checked on an H200).
    return _describe(handle, ROW_ALIGNMENT, n, k, dtype, out).compress(slid)


def decompress(data: torch.Tensor, n: int, k: int, dtype: DType) -> torch.Tensor:
    """The 2:4 weight [N, K'] that was compressed: its product with unit vectors, which is exact."""
    out = PRODUCT[dtype]
    handle = _handle(data.device.index or 0)
    columns = []
    for start in range(0, k, UNIT_ROWS):
        count = min(UNIT_ROWS, k - start)
        units = torch.zeros(count, k, dtype=torch.float32, device=data.device)
        units[torch.arange(count), torch.arange(start, start + count)] = 1.0
        plan = _describe(handle, _whole(count), n, k, dtype, out)
        plan.select({"algorithm": 0})
        product = _multiply(plan, data, units.to(TORCH_DTYPES[dtype]), n, out)[:count]
        columns.append(product.t().to(TORCH_DTYPES[dtype]))
    return torch.cat([c.view(torch.uint8) for c in columns], dim=1).view(TORCH_DTYPES[dtype])


def _whole(m: int) -> int:
    return -(-m // ROW_ALIGNMENT) * ROW_ALIGNMENT


def _describe(handle: Handle, m: int, n: int, k: int, dtype: DType, out: DType) -> Plan:
    """The product of a 2:4 weight [N, K'] as it is: no pattern is left to expand."""
    from slidesparse.kernels.blas.cusparselt import Plan

    scales = Scales.NONE if out is DType.INT32 else Scales.TENSOR
    return Plan(handle, GemmProblem(m, n, k, dtype, out, scales))


def _multiply(
    plan: Plan, weight: torch.Tensor, q: torch.Tensor, n: int, out: DType
) -> torch.Tensor:
    """The unscaled product [m, N], rows filled up to whole groups of ROW_ALIGNMENT."""
    rows = _whole(q.shape[0])
    if rows != q.shape[0]:
        bits = torch.nn.functional.pad(q.view(torch.uint8), (0, 0, 0, rows - q.shape[0]))
        q = bits.view(q.dtype)
    product = torch.empty((rows, n), dtype=TORCH_DTYPES[out], device=q.device)
    workspace = torch.empty(max(plan.workspace(), 1), dtype=torch.uint8, device=q.device)
    pointers = [(weight.data_ptr(), q.data_ptr(), product.data_ptr())]
    launch = plan.launcher(1.0, pointers, workspace.data_ptr())
    launch(0, torch.cuda.current_stream(q.device).cuda_stream)
    return product


@cache
def _handle(device: int) -> Handle:
    """One handle a device: the library's handles belong to the one that was current."""
    from slidesparse.kernels.blas.cusparselt import Handle

    with torch.cuda.device(device):
        return Handle()
