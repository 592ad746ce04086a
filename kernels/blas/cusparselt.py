"""The part of the cuSPARSELt API that is used, with ownership of its descriptors.

D [M, N] row-major is column-major N x M: A is the slid weight [N, K'] (structured, column-major
K' x N, transposed), B is the lifted activations [M, K'] (column-major K' x M).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from nvmath.bindings import cusparseLt as slt

from slidesparse.candidate import Param
from slidesparse.errors import CandidateError
from slidesparse.kernels.blas.descriptors import (
    CUDA_DTYPE,
    ROW_ALIGNMENT,
    host_float,
    own,
    set_attribute,
)
from slidesparse.problem import DType, GemmProblem

OP_N, OP_T = 0, 1
ORDER_COLUMN = 1
POINTER_ALIGNMENT = 16
HALF = int(slt.Sparsity.SPARSITY_50_PERCENT)


class Handle:
    """A cuSPARSELt handle; destroyed with the object."""

    def __init__(self) -> None:
        """Create the handle.

        Raises:
            CandidateError: the library cannot start.
        """
        try:
            self.value = slt.init()
        except slt.cuSPARSELtError as error:
            raise CandidateError(f"cuSPARSELt cannot start: {error}") from error
        own(self, slt.destroy, self.value)


class Plan:
    """Descriptors of one problem and the plan of the candidate in hand."""

    def __init__(self, handle: Handle, problem: GemmProblem) -> None:
        """Describe the matrices and the operation.

        Raises:
            CandidateError: the library refuses the problem.
        """
        self.handle, self.problem = handle, problem
        m = -(-problem.m // ROW_ALIGNMENT) * ROW_ALIGNMENT
        n, k = problem.n, problem.k_run
        operand, out = CUDA_DTYPE[problem.dtype], CUDA_DTYPE[problem.out]
        integer = problem.dtype is DType.INT8
        compute = slt.ComputeType.COMPUTE_32I if integer else slt.ComputeType.COMPUTE_32F
        h = handle.value
        try:
            a = slt.structured_descriptor_init(
                h, k, n, k, POINTER_ALIGNMENT, operand, ORDER_COLUMN, HALF
            )
            self._a = own(self, slt.mat_descriptor_destroy, a)
            self._b = self._dense(k, m, operand)
            self._d = self._dense(n, m, out)
            matmul = slt.matmul_descriptor_init(
                h, OP_T, OP_N, self._a, self._b, self._d, self._d, int(compute)
            )
            self._matmul = own(self, slt.matmul_descriptor_destroy, matmul)
        except slt.cuSPARSELtError as error:
            raise CandidateError(f"cuSPARSELt refuses {problem}: {error}") from error
        self._selection = self._plan = 0

    def algorithm_count(self) -> int:
        """How many algorithm ids the library has for the problem."""
        selection = self._select_default()
        count = np.zeros(1, dtype=np.int32)
        slt.matmul_alg_get_attribute(
            self.handle.value,
            selection,
            int(slt.MatmulAlgAttribute.CONFIG_MAX_ID),
            count.ctypes.data,
            count.nbytes,
        )
        return int(count[0])

    def select(self, params: Mapping[str, Param]) -> None:
        """Plan a candidate.

        Args:
            params: "algorithm", and for split-K "split_k" and "mode".

        Raises:
            CandidateError: the library refuses the combination.
        """
        names = slt.MatmulAlgAttribute
        attributes = {
            "algorithm": names.CONFIG_ID,
            "split_k": names.SPLIT_K,
            "mode": names.SPLIT_K_MODE,
        }
        try:
            self._selection = self._select_default()
            for name, value in params.items():
                set_attribute(
                    slt.matmul_alg_set_attribute,
                    slt.get_matmul_alg_attribute_dtype,
                    (self.handle.value, self._selection),
                    attributes[name],
                    value,
                )
            plan = slt.matmul_plan_init(self.handle.value, self._matmul, self._selection)
            self._plan = own(self, slt.matmul_plan_destroy, plan)
        except KeyError as error:
            raise CandidateError(f"cuSPARSELt has no parameter {error}") from error
        except slt.cuSPARSELtError as error:
            raise CandidateError(f"cuSPARSELt refuses {dict(params)}: {error}") from error

    def workspace(self) -> int:
        """Bytes of scratch memory that the plan needs."""
        return int(slt.matmul_get_workspace(self.handle.value, self._plan))

    def compress(self, slid: torch.Tensor) -> torch.Tensor:
        """Compress a 2:4 weight.

        Args:
            slid: [N, K'] on the device.

        Returns:
            uint8 [bytes]: values and metadata in the library's own layout.
        """
        size, scratch_size = slt.sp_mma_compressed_size2(self.handle.value, self._a)
        # Zeros: the library pads K to its tiles, and what it leaves there could be NaN in FP8.
        compressed = torch.zeros(size, dtype=torch.uint8, device=slid.device)
        scratch = torch.empty(max(scratch_size, 1), dtype=torch.uint8, device=slid.device)
        stream = torch.cuda.current_stream(slid.device)
        slt.sp_mma_compress2(
            self.handle.value,
            self._a,
            1,
            OP_T,
            slid.data_ptr(),
            compressed.data_ptr(),
            scratch.data_ptr(),
            stream.cuda_stream,
        )
        stream.synchronize()
        return compressed

    def launcher(
        self, alpha: float, pointers: Sequence[tuple[int, int, int]], workspace: int
    ) -> Callable[[int, int], None]:
        """A function (set index, stream) that enqueues the product on that operand set."""
        one, zero = host_float(alpha), host_float(0.0)
        plan = self._plan
        streams: dict[int, Any] = {}

        def launch(index: int, stream: int) -> None:
            handles = streams.get(stream)
            if handles is None:
                handles = streams[stream] = np.array([stream], dtype=np.uint64)
            w, x, out = pointers[index % len(pointers)]
            # Reading the handle through self keeps the descriptors of the plan alive.
            slt.matmul(
                self.handle.value,
                plan,
                one.ctypes.data,
                w,
                x,
                zero.ctypes.data,
                out,
                out,
                workspace,
                handles.ctypes.data,
                1,
            )

        return launch

    def _select_default(self) -> int:
        selection = slt.matmul_alg_selection_init(
            self.handle.value, self._matmul, int(slt.MatmulAlg.DEFAULT)
        )
        return own(self, slt.matmul_alg_selection_destroy, selection)

    def _dense(self, rows: int, columns: int, dtype: int) -> int:
        descriptor = slt.dense_descriptor_init(
            self.handle.value, rows, columns, rows, POINTER_ALIGNMENT, dtype, ORDER_COLUMN
        )
        return own(self, slt.mat_descriptor_destroy, descriptor)
