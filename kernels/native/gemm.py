"""Running the native sparse GEMM: D = (X W^T) * x_scale[m] * w_scale[n] (+ bias[n])."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from slidesparse.errors import DeviceError, KernelError
from slidesparse.kernels.launch import QUANTISED, check_rows, check_shape, check_vector
from slidesparse.kernels.native.config import NativeConfig
from slidesparse.kernels.native.program import bind_thread, checked, is_loaded, launch_config, load
from slidesparse.kernels.native.source import Variant
from slidesparse.kernels.native.weight import (
    BLOCK,
    K_ALIGNMENT,
    SLAB,
    PackedWeight,
    stored_blocks,
)
from slidesparse.problem import DType
from slidesparse.tensors import DTYPES

N_ALIGNMENT = 8
"""Rows of a 16-bit output are stored by the copy engine: multiples of 16 bytes."""

ADDRESS_ALIGNMENT = 16
LARGEST = 2**31 - 2**12
"""Rows and tiles are counted in 32 bits, past the end of the last tile."""

OUTPUTS = {
    DType.FP8: (DType.BF16, DType.FP16),
    DType.INT8: (DType.BF16, DType.FP16, DType.INT32),
}
"""What comes out: scaled 16-bit values, or the raw sums of INT8."""

_DIVISOR = [("factor", np.uint32), ("shift", np.uint32)]
PROBLEM = np.dtype(
    [
        *((name, np.int32) for name in ("m", "n", "blocks", "stages", "tiles_w", "tiles_x")),
        *((name, np.int32) for name in ("group", "along_x")),
        *((name, _DIVISOR) for name in ("band", "width", "last_width")),
    ]
)
"""The struct Problem of kernels/cuda/schedule.cuh."""


def refusal(n: int, k: int, dtype: DType, out: DType, bias: bool = False) -> str | None:
    """Why the kernel cannot compute a weight [N, K'] of `dtype` to `out`, or None."""
    if out not in OUTPUTS[dtype]:
        names = ", ".join(map(str, OUTPUTS[dtype]))
        return f"the native kernel gives {names} from {dtype}, not {out}"
    if bias and out is DType.INT32:
        return "an int32 output of the native kernel is the raw sums: no bias"
    n_step = 1 if out is DType.INT32 else N_ALIGNMENT
    for name, size, step in (("K'", k, K_ALIGNMENT), ("N", n, n_step)):
        if size % step:
            return f"{name}={size} is not a multiple of {step}; pad it to {-(-size // step) * step}"
    return None


def stages_of(config: NativeConfig, k: int) -> tuple[int, bool]:
    """How many stages K' takes, and whether the odd one of them needs its own variant."""
    stages = -(-k // (BLOCK * config.blocks))
    odd = stages % 2 == 1 and stages > 1 and config.cluster_k == 1
    return stages if odd else stages + stages % 2, odd


def variant_of(config: NativeConfig, k: int, dtype: DType, out: DType) -> Variant:
    """The code that runs a configuration on K': the raster is an argument of it, not a part."""
    return Variant(replace(config, group=1, along_x=False), dtype, out, stages_of(config, k)[1])


def unfit(config: NativeConfig, k: int) -> str | None:
    """Why a configuration cannot run a K', or None: whole pairs of stages for every block."""
    stages, _ = stages_of(config, k)
    stored = stored_blocks(k)
    if stages * config.blocks > stored:
        return (
            f"{stages} stages of {config.blocks} blocks pass the {stored} that K'={k} is stored in"
        )
    if stages // 2 < config.cluster_k:
        return f"{config.cluster_k} blocks of a cluster cannot share {stages} stages of K'={k}"
    return None


class NativeGemm:
    """One weight and configuration, for any number of tokens.

    Args:
        weight: packed, on a CUDA device of SM 9.0.
        config: how to run.
        out: dtype of the output: bf16 or fp16 with scales, int32 for the raw sums of INT8.

    Raises:
        KernelError: the weight, the output and the configuration do not fit each other, or a graph
            is being captured and this process has not loaded the variant.
        DeviceError: the weight is not on a GPU of SM 9.0.
        CandidateError: the configuration does not compile.
    """

    def __init__(self, weight: PackedWeight, config: NativeConfig, out: torch.dtype) -> None:
        """Compile and load what this needs, if this process has not."""
        if not weight.data.is_cuda:
            raise DeviceError(
                f"the native kernel runs on a GPU; the weight is on {weight.data.device}"
            )
        if out not in DTYPES:
            raise KernelError(f"the output cannot be {out}; use bfloat16, float16 or int32")
        dtype, made = DTYPES[weight.dtype], DTYPES[out]
        reason = refusal(weight.n, weight.k, dtype, made) or unfit(config, weight.k)
        if reason:
            raise KernelError(reason)
        self.weight, self.config, self.out = weight, config, out
        self.stages, _ = stages_of(config, weight.k)
        self.variant = variant_of(config, weight.k, dtype, made)
        if torch.cuda.is_current_stream_capturing() and not is_loaded(
            self.variant, weight.data.device.index
        ):
            raise KernelError(
                f"{config.label} is not loaded yet, which a CUDA graph cannot capture; "
                "run it once before"
            )
        self.loaded = load(self.variant, weight.data.device.index)

    def bind(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        w_scale: torch.Tensor | None,
        x_scale: torch.Tensor | None,
        bias: torch.Tensor | None = None,
    ) -> Launch:
        """Fix the operands; the result launches any number of times on any stream.

        Args:
            x: [M, K'] of the weight's dtype; rows may be strided by a multiple of 16 bytes.
            out: [M, N] contiguous.
            w_scale: [N] float32; None with an int32 output.
            x_scale: [M] float32; None with an int32 output.
            bias: [N] of the output's dtype, or None.

        Raises:
            KernelError: an operand has the wrong shape, dtype, layout or device.
        """
        self._check(x, out, w_scale, x_scale, bias)
        return Launch(self, x, out, w_scale, x_scale, bias)

    def _check(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        w_scale: torch.Tensor | None,
        x_scale: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> None:
        weight = self.weight
        check_rows(x, "x", QUANTISED, weight.k)
        _check_dtype(x, weight.dtype)
        check_shape(x, "x", (x.shape[0], weight.k), weight.data)
        check_shape(out, "out", (x.shape[0], weight.n), weight.data)
        if out.dtype is not self.out or not out.is_contiguous():
            raise KernelError(
                f"out is {out.dtype} with strides {out.stride()}; contiguous {self.out} is needed"
            )
        for name, tensor in (("x", x), ("out", out)):
            start = tensor.data_ptr() % ADDRESS_ALIGNMENT
            if start:
                raise KernelError(f"{name} starts {start} bytes past a multiple of 16")
        if x.shape[0] > 1 and (x.stride(0) % ADDRESS_ALIGNMENT or x.stride(0) < weight.k):
            raise KernelError(
                f"rows of x are {x.stride(0)} bytes apart; a multiple of 16 and at least "
                f"{weight.k} is needed"
            )
        if self.variant.scaled:
            if w_scale is None or x_scale is None:
                raise KernelError(f"an output of {self.out} needs w_scale and x_scale")
            check_vector(w_scale, "w_scale", weight.n, weight.data)
            check_vector(x_scale, "x_scale", x.shape[0], weight.data)
        elif w_scale is not None or x_scale is not None or bias is not None:
            raise KernelError("an int32 output is the raw sums: no scales and no bias")
        if bias is not None:
            check_vector(bias, "bias", weight.n, weight.data, (self.out,))


class Launch:
    """A GEMM whose operands are fixed and, until `release`, kept alive; for one thread at a time.

    Args:
        gemm: what to run.
        x, out, w_scale, x_scale, bias: as `NativeGemm.bind` takes and checks them.
    """

    def __init__(
        self,
        gemm: NativeGemm,
        x: torch.Tensor,
        out: torch.Tensor,
        w_scale: torch.Tensor | None,
        x_scale: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> None:
        """Describe the operands to the copy engine and the kernel."""
        self._function = gemm.loaded.function
        self._device = gemm.weight.data.device.index
        self._operands: tuple[torch.Tensor | None, ...] = (
            *(gemm.weight.data, x, out),
            *(w_scale, x_scale, bias),
        )
        self._empty = x.shape[0] == 0
        if self._empty:
            return
        config = gemm.config
        self._problem = problem_struct(gemm.weight, config, x.shape[0], gemm.stages)
        tiles = int(self._problem["tiles_w"][0]) * int(self._problem["tiles_x"][0])
        clusters = min(tiles, gemm.loaded.clusters)
        self._launch = launch_config(gemm.variant, gemm.loaded.shared_bytes, clusters, overlap=True)
        stride = x.stride(0) if x.shape[0] > 1 else x.shape[1]
        box = (2 * BLOCK, config.tokens // config.cluster_w)
        self._x_map = tensor_map(x.data_ptr(), tuple(x.shape), stride, 1, box)
        if gemm.variant.scaled:
            self._out_map = tensor_map(
                out.data_ptr(), tuple(out.shape), 2 * out.shape[1], 2, (SLAB, config.box)
            )
        else:
            self._out_map = self._x_map  # Raw sums are stored from registers; this is not read.
        tensors = (gemm.weight.data, out, w_scale, x_scale, bias)
        self._pointers = np.array([0 if t is None else t.data_ptr() for t in tensors], np.uint64)
        self._arguments = np.array(
            [
                self._x_map.getPtr(),
                self._out_map.getPtr(),
                *(self._pointers.ctypes.data + 8 * i for i in range(len(tensors))),
                self._problem.ctypes.data,
            ],
            np.uint64,
        )

    def release(self) -> None:
        """Keep the operands alive no longer: whoever launches from now on does."""
        self._operands = ()

    def __call__(self, stream: int) -> None:
        """Launch on a stream, given as the driver's handle; may be captured in a graph."""
        if self._empty:
            return
        from cuda.bindings import driver

        self._launch.hStream = stream
        # The default stream's handle is that of whatever device is current.
        with _on(self._device):
            bind_thread(self._device)
            checked(
                driver.cuLaunchKernelEx(
                    self._launch, self._function, self._arguments.ctypes.data, 0
                )
            )


def _on(device: int) -> AbstractContextManager[None]:
    """That device as the current one, at no cost where it already is."""
    if torch.cuda.current_device() == device:
        return nullcontext()
    return torch.cuda.device(device)


def _check_dtype(x: torch.Tensor, dtype: torch.dtype) -> None:
    if x.dtype is not dtype:
        raise KernelError(f"x is {x.dtype} and the weight is {dtype}")


def problem_struct(weight: PackedWeight, config: NativeConfig, m: int, stages: int) -> Any:
    """One element of `PROBLEM`: sizes, tiles and the raster's divisors.

    Raises:
        KernelError: there are more tiles than the kernel counts.
    """
    tiles_w = -(-weight.n // (SLAB * config.slabs * config.cluster_w))
    tiles_x = -(-m // (config.tokens * config.cluster_x))
    if max(m, weight.n, tiles_w * tiles_x) > LARGEST:
        raise KernelError(f"M={m} with N={weight.n} are more tiles than 2^31; split M")
    inner, outer = (tiles_x, tiles_w) if config.along_x else (tiles_w, tiles_x)
    group = min(config.group, inner)
    return np.array(
        [
            (
                *(m, weight.n, weight.blocks, stages, tiles_w, tiles_x, group, config.along_x),
                *(divisor(group * outer), divisor(group), divisor(inner % group or group)),
            )
        ],
        PROBLEM,
    )


def divisor(number: int) -> tuple[int, int]:
    """Factor and shift with n // number == (2 n factor) >> (32 + shift) for 0 <= n < 2^31.

    Source: Granlund and Montgomery, "Division by invariant integers using multiplication" (1994).
    """
    shift = (number - 1).bit_length()
    return -(-(1 << (31 + shift)) // number), shift


def tensor_map(
    address: int, shape: Sequence[int], stride: int, width: int, box: tuple[int, int]
) -> Any:
    """The copy engine's view of a matrix, in boxes whose rows of 128 bytes are swizzled.

    Args:
        address: of the first element.
        shape: rows and columns.
        stride: bytes between rows.
        width: bytes of an element, 1 or 2.
        box: columns and rows of a box.
    """
    from cuda.bindings import driver

    bind_thread(torch.cuda.current_device())
    types = driver.CUtensorMapDataType
    u64, u32 = driver.cuuint64_t, driver.cuuint32_t
    return checked(
        driver.cuTensorMapEncodeTiled(
            # Sixteen bits are moved as they are, whatever they mean.
            types.CU_TENSOR_MAP_DATA_TYPE_UINT8
            if width == 1
            else types.CU_TENSOR_MAP_DATA_TYPE_UINT16,
            2,
            address,
            [u64(shape[1]), u64(shape[0])],
            [u64(stride)],
            [u32(box[0]), u32(box[1])],
            [u32(1), u32(1)],
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )


@torch.library.custom_op("slidesparse::native_gemm", mutates_args=())
def native_gemm_op(
    data: torch.Tensor,
    x: torch.Tensor,
    w_scale: torch.Tensor | None,
    x_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    n: int,
    out_dtype: torch.dtype,
    config: Sequence[int],
) -> torch.Tensor:
    """`native_gemm` as torch.compile sees it; config is NativeConfig's fields in order."""
    weight = PackedWeight(data, n, x.shape[1], x.dtype)
    out = torch.empty((x.shape[0], n), dtype=out_dtype, device=x.device)
    # A stream's handle says nothing of its device, and the default one's is the same for all.
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        gemm = NativeGemm(weight, NativeConfig.from_numbers(config), out_dtype)
        launch = gemm.bind(x, out, w_scale, x_scale, bias)
        launch(torch.cuda.current_stream().cuda_stream)
    return out


@native_gemm_op.register_fake
def _(
    data: torch.Tensor,
    x: torch.Tensor,
    w_scale: torch.Tensor | None,
    x_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    n: int,
    out_dtype: torch.dtype,
    config: Sequence[int],
) -> torch.Tensor:
    return torch.empty((x.shape[0], n), dtype=out_dtype, device=x.device)


def native_gemm(
    weight: PackedWeight,
    x: torch.Tensor,
    w_scale: torch.Tensor | None,
    x_scale: torch.Tensor | None,
    config: NativeConfig,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """D[m, n] = (sum over K' of x[m, k] w[n, k]) * x_scale[m] * w_scale[n] (+ bias[n]).

    FP8 accumulates in FP32 as the tensor cores do (about 14 bits), INT8 exactly in INT32. Programs
    that come before it on the stream may still run while it fetches weights.

    Args:
        weight: packed 2:4 weight [N, K'].
        x: [M, K'] of the weight's dtype, lifted and quantised; M = 0 gives an empty result.
        w_scale: [N] float32 per output channel; None for an int32 output.
        x_scale: [M] float32 per token; None for an int32 output.
        config: how to run, for example a search's winner.
        bias: [N] of `out_dtype`, or None.
        out_dtype: bfloat16, float16, or int32 for the raw sums of INT8.

    Returns:
        [M, N] of `out_dtype`.

    Raises:
        KernelError: an operand or the configuration does not fit.
        DeviceError: the GPU is not of SM 9.0.
        CandidateError: the configuration does not compile.
    """
    check_rows(x, "x", QUANTISED, weight.k)
    _check_dtype(x, weight.dtype)
    made: torch.Tensor = native_gemm_op(
        weight.data, x, w_scale, x_scale, bias, weight.n, out_dtype, config.numbers()
    )
    return made
