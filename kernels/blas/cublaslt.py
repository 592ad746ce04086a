"""The part of the cuBLASLt API that is used, with ownership of its descriptors.

D [M, N] row-major is column-major N x M, so A is W [N, K] (column-major K x N, transposed), B is X
[M, K] (column-major K x M): the "TN" form, the only one that FP8 has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from nvmath.bindings import cublasLt as lt

from slidesparse.errors import CandidateError
from slidesparse.kernels.blas.descriptors import CUDA_DTYPE, host_float, own, set_attribute
from slidesparse.problem import DType, GemmProblem, Scales

COMPUTE_32F, COMPUTE_32I = 68, 72
"""cublasComputeType_t values."""

OP_N, OP_T = 0, 1
EPILOGUE_BIAS = 4
NOT_SUPPORTED = "NOT_SUPPORTED"
"""Of a status's name: what the library was asked for, it does not have."""

MOST_WORKSPACE = 64 << 20
"""Bytes of scratch memory that a candidate may ask for; NVIDIA recommends 32 MiB on Hopper."""

UNREAD = 16
"""A scale pointer for queries, which ask that one is set and aligned but do not read it."""

_INT_ONE, _INT_ZERO = np.ones(1, dtype=np.int32), np.zeros(1, dtype=np.int32)
_ZERO = host_float(0.0)

Config = lt.MatmulAlgoConfigAttribute
_DECODED = {
    "id": Config.ID,
    "tile": Config.TILE_ID,
    "stages": Config.STAGES_ID,
    "cluster": Config.CLUSTER_SHAPE_ID,
    "splitk": Config.SPLITK_NUM,
    "reduction": Config.REDUCTION_SCHEME,
    "swizzle": Config.CTA_SWIZZLING,
    "custom": Config.CUSTOM_OPTION,
    "inner": Config.INNER_SHAPE_ID,
}


class Handle:
    """A cuBLASLt handle; destroyed with the object."""

    def __init__(self) -> None:
        """Create the handle.

        Raises:
            CandidateError: the library cannot start.
        """
        try:
            self.value = lt.create()
        except lt.cuBLASLtError as error:
            raise CandidateError(f"cuBLASLt cannot start: {error}") from error
        own(self, lt.destroy, self.value)

    def heuristic(
        self, problem: GemmProblem, fast: bool, count: int, workspace: int
    ) -> list[bytes]:
        """Algorithms that the library's heuristic proposes, its favourite first.

        Args:
            problem: to ask for.
            fast: whether FP8 products accumulate fast.
            count: of results at most.
            workspace: bytes of scratch memory that they may use; the proposals depend on it.
        """
        with_scales = Matmul(self, problem, fast)
        with_scales.bind_scales(UNREAD, UNREAD)
        preference = lt.matmul_preference_create()
        try:
            set_attribute(
                lt.matmul_preference_set_attribute,
                lt.get_matmul_preference_attribute_dtype,
                preference,
                lt.MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES,
                workspace,
            )
            results = np.zeros(count, dtype=lt.matmul_heuristic_result_dtype)
            found = np.zeros(1, dtype=np.int32)
            try:
                lt.matmul_algo_get_heuristic(
                    self.value,
                    with_scales.description,
                    *with_scales.layouts,
                    preference,
                    count,
                    results.ctypes.data,
                    found.ctypes.data,
                )
            except lt.cuBLASLtError:
                return []  # "Not supported" is how the library says that it has no algorithm.
        finally:
            lt.matmul_preference_destroy(preference)
        return [bytes(results["algo"][i].tobytes()) for i in range(int(found[0]))]

    def decode(self, algo: bytes) -> dict[str, int | str]:
        """The readable fields of an opaque algorithm; those at their default are left out."""
        fields: dict[str, int | str] = {}
        for name, attribute in _DECODED.items():
            value = read_config(algo, attribute)
            if value or name in {"id", "tile"}:
                fields[name] = _spell(name, value)
        if fields.get("splitk") == 1:
            del fields["splitk"]
        return fields


class Matmul:
    """The descriptors of one problem; they live as long as the object."""

    def __init__(self, handle: Handle, problem: GemmProblem, fast: bool) -> None:
        """Describe the operation and the three matrices."""
        self.handle, self.problem = handle, problem
        self._kept: dict[int, npt.NDArray[Any]] = {}
        integer = problem.dtype is DType.INT8
        self.compute = COMPUTE_32I if integer else COMPUTE_32F
        self.scale = CUDA_DTYPE[DType.INT32 if problem.out is DType.INT32 else DType.FP32]
        self.description = lt.matmul_desc_create(self.compute, self.scale)
        own(self, lt.matmul_desc_destroy, self.description)
        attribute = lt.MatmulDescAttribute
        self._set(attribute.TRANSA, OP_T)
        self._set(attribute.TRANSB, OP_N)
        if not integer:
            self._set(attribute.FAST_ACCUM, int(fast))
        operand, out = CUDA_DTYPE[problem.dtype], CUDA_DTYPE[problem.out]
        a = self._layout(operand, problem.k, problem.n)
        b = self._layout(operand, problem.k, problem.m)
        d = self._layout(out, problem.n, problem.m)
        self.layouts = (a, b, d, d)

    def bind_scales(self, x_scale: int, w_scale: int) -> None:
        """Point the operation at the scales in device memory; INT8 has none, its alpha scales."""
        if self.problem.dtype is not DType.FP8:
            return
        mode = lt.MatmulMatrixScale
        rowcol = self.problem.scales is Scales.ROWCOL
        attribute = lt.MatmulDescAttribute
        if rowcol:
            self._set(attribute.A_SCALE_MODE, int(mode.OUTER_VEC_32F))
            self._set(attribute.B_SCALE_MODE, int(mode.OUTER_VEC_32F))
        self._set(attribute.A_SCALE_POINTER, w_scale)
        self._set(attribute.B_SCALE_POINTER, x_scale)

    def bind_bias(self, bias: int) -> None:
        """Add a bias per output channel, in the output's dtype."""
        attribute = lt.MatmulDescAttribute
        self._set(attribute.EPILOGUE, EPILOGUE_BIAS)
        self._set(attribute.BIAS_POINTER, bias)
        self._set(attribute.BIAS_DATA_TYPE, CUDA_DTYPE[self.problem.out])

    def check(self, algo: bytes) -> tuple[npt.NDArray[Any], int]:
        """Let the library check an algorithm against this operation.

        Returns:
            The algorithm in memory and the workspace in bytes that it needs.

        Raises:
            CandidateError: the library refuses it.
        """
        buffer = as_algo(algo)
        result = np.zeros(1, dtype=lt.matmul_heuristic_result_dtype)
        try:
            lt.matmul_algo_check(
                self.handle.value,
                self.description,
                *self.layouts,
                buffer.ctypes.data,
                result.ctypes.data,
            )
        except lt.cuBLASLtError as error:
            raise CandidateError(f"cublasLtMatmulAlgoCheck refuses it: {error}") from error
        needed = int(result["workspace_size"][0])
        if needed > MOST_WORKSPACE:
            raise CandidateError(f"it asks for {needed} bytes of workspace, over {MOST_WORKSPACE}")
        return buffer, needed

    def launcher(
        self,
        algo: npt.NDArray[Any],
        alpha: npt.NDArray[np.float32],
        pointers: Sequence[tuple[int, int, int]],
        workspace: tuple[int, int],
    ) -> Callable[[int, int], None]:
        """A function (set index, stream) that enqueues the product on that operand set."""

        def launch(index: int, stream: int) -> None:
            self.run(algo, alpha, pointers[index % len(pointers)], workspace, stream)

        return launch

    def run(
        self,
        algo: npt.NDArray[Any],
        alpha: npt.NDArray[np.float32],
        pointers: tuple[int, int, int],
        workspace: tuple[int, int],
        stream: int,
    ) -> None:
        """Enqueue the product.

        Args:
            algo: as `check` gave it.
            alpha: factor in host memory; raw INT32 sums have none.
            pointers: device addresses of W, X and D.
            workspace: address and bytes of scratch memory.
            stream: handle.

        Raises:
            CandidateError: the library does not run it after all, and enqueued nothing: it says
                so of some algorithms that it proposed and checked itself.
        """
        one, zero = (_INT_ONE, _INT_ZERO) if self.problem.out is DType.INT32 else (alpha, _ZERO)
        w, x, out = pointers
        a, b, c, d = self.layouts
        try:
            lt.matmul(
                self.handle.value,
                self.description,
                one.ctypes.data,
                w,
                a,
                x,
                b,
                zero.ctypes.data,
                out,
                c,
                out,
                d,
                algo.ctypes.data,
                *workspace,
                stream,
            )
        except lt.cuBLASLtError as error:
            if NOT_SUPPORTED not in str(error):
                raise  # The device is in trouble, not the algorithm.
            raise CandidateError(f"cublasLtMatmul refuses it: {error}") from error

    def _layout(self, dtype: int, rows: int, columns: int) -> int:
        layout = lt.matrix_layout_create(dtype, rows, columns, rows)
        return own(self, lt.matrix_layout_destroy, layout)

    def _set(self, attribute: int, value: int) -> None:
        buffer = set_attribute(
            lt.matmul_desc_set_attribute,
            lt.get_matmul_desc_attribute_dtype,
            self.description,
            attribute,
            value,
        )
        self._kept[int(attribute)] = buffer


def as_algo(algo: bytes) -> npt.NDArray[Any]:
    """The 64 bytes of an algorithm as the struct that the bindings take.

    Raises:
        CandidateError: the length is wrong.
    """
    if len(algo) != lt.matmul_algo_dtype.itemsize:
        raise CandidateError(
            f"a cuBLASLt algorithm has {lt.matmul_algo_dtype.itemsize} bytes, not {len(algo)}"
        )
    return np.frombuffer(bytearray(algo), dtype=lt.matmul_algo_dtype)


def read_config(algo: bytes, attribute: int) -> int:
    """One configuration field of an opaque algorithm."""
    buffer = as_algo(algo)
    value = np.zeros(1, dtype=lt.get_matmul_algo_config_attribute_dtype(int(attribute)))
    written = np.zeros(1, dtype=np.uint64)
    lt.matmul_algo_config_get_attribute(
        buffer.ctypes.data, int(attribute), value.ctypes.data, value.nbytes, written.ctypes.data
    )
    return int(value[0])


def _spell(name: str, value: int) -> int | str:
    """Tile, stages and cluster by their shape, all else by number."""
    names = {"tile": lt.MatmulTile, "stages": lt.MatmulStages, "cluster": lt.ClusterShape}.get(name)
    if names is None:
        return value
    try:
        return str(names(value).name.split("_", 1)[1])
    except ValueError:
        return value
