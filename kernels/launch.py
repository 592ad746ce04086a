"""What the launchers share: checks of the operands, the configuration, the grid, the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from slidesparse.devices import FP8_SM, OVERLAP_SM, spell_sm
from slidesparse.errors import DeviceError, KernelError
from slidesparse.kernel_problem import Op
from slidesparse.kernels import row
from slidesparse.kernels.config import Config, chosen
from slidesparse.pattern import Pattern
from slidesparse.problem import INT32_MAX, bucket_m
from slidesparse.tensors import DTYPES

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
ACCUMULATORS = (torch.int32, *FLOATS)
QUANTISED = (torch.float8_e4m3fn, torch.int8)

INTERPRETED: bool = row.INTERPRETED.value


def runs_triton(x: torch.Tensor) -> bool:
    """Whether a launch on `x` runs the kernel: on a GPU, or on the CPU in Triton's interpreter."""
    return x.is_cuda or INTERPRETED


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    listed = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    return listed[0] if len(listed) == 1 else f"one of {', '.join(listed)}"


@dataclass(frozen=True)
class Scaled:
    """What scales the output of a GEMM back.

    Args:
        row: float32, one per row or one for all.
        column: float32, one per column or one for all.
        bias: one per column, or None.
    """

    row: torch.Tensor
    column: torch.Tensor
    bias: torch.Tensor | None = None

    def check(self, a: torch.Tensor) -> None:
        """Refuse what does not fit the rows `a` [M, N].

        Raises:
            KernelError: names the tensor, what it is and what is needed.
        """
        m, n = a.shape
        for name, scale, size in (("row_scale", self.row, m), ("column_scale", self.column, n)):
            check_vector(scale, name, size if scale.numel() != 1 else 1, a)
        if self.bias is not None:
            check_vector(self.bias, "bias", n, a, FLOATS)

    @property
    def strides(self) -> tuple[int, int]:
        """Elements between the scales of neighbouring rows and columns: 1, or 0 for one for all."""
        return int(self.row.numel() != 1), int(self.column.numel() != 1)


@lru_cache(maxsize=256)
def pattern_of(block: int) -> Pattern:
    """The pattern of `block` = 2N weights; 1 for dense.

    Raises:
        PatternError: no such pattern.
    """
    return Pattern(max(block - 2, 1), block)


def check_rows(x: torch.Tensor, name: str, dtypes: tuple[torch.dtype, ...], width: int = 0) -> None:
    """Refuse what is not [M, K] with K of `width` (if given) in consecutive memory.

    Raises:
        KernelError: names the tensor, what it is and what to do.
    """
    if x.dim() != 2:
        raise KernelError(
            f"{name} has {x.dim()} dimensions {tuple(x.shape)}; reshape it to [tokens, width]"
        )
    if x.dtype not in dtypes:
        raise KernelError(f"{name} is {x.dtype}; use {_names(dtypes)}")
    if x.shape[1] == 0:
        raise KernelError(f"{name} {tuple(x.shape)} has no columns")
    if width and x.shape[1] != width:
        raise KernelError(f"{name} has {x.shape[1]} columns, and {width} are needed")
    if x.stride(1) != 1 and x.shape[1] > 1:
        raise KernelError(
            f"the columns of {name} are {x.stride(1)} elements apart; rows may be strided, columns "
            "may not: call .contiguous()"
        )


def check_vector(
    x: torch.Tensor,
    name: str,
    size: int,
    like: torch.Tensor,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
) -> None:
    """Refuse what is not `size` consecutive values of these dtypes on the device of `like`.

    Raises:
        KernelError: names the tensor, what it is and what is needed.
    """
    if x.numel() != size:
        raise KernelError(
            f"{name} has shape {tuple(x.shape)}; {size} consecutive values are needed"
        )
    if not x.is_contiguous():
        raise KernelError(f"{name} has strides {x.stride()}; call .contiguous()")
    if x.dtype not in dtypes:
        raise KernelError(f"{name} is {x.dtype}; {_names(dtypes)} is needed")
    if x.device != like.device:
        raise KernelError(f"{name} is on {x.device} and the rows are on {like.device}")


def check_shape(x: torch.Tensor, name: str, shape: tuple[int, int], like: torch.Tensor) -> None:
    """Refuse rows of another shape or device.

    Raises:
        KernelError: names the tensor, what it is and what is needed.
    """
    if tuple(x.shape) != shape:
        raise KernelError(f"{name} has shape {tuple(x.shape)}; {list(shape)} is needed")
    if x.device != like.device:
        raise KernelError(f"{name} is on {x.device} and the rows are on {like.device}")


def check_residual(residual: torch.Tensor, like: torch.Tensor) -> None:
    """Refuse a residual that does not fit the rows `like` [M, K]; raises as what it calls."""
    check_rows(residual, "residual", FLOATS)
    check_shape(residual, "residual", (like.shape[0], like.shape[1]), like)


def check_output(out: torch.Tensor, name: str, shape: tuple[int, int], like: torch.Tensor) -> None:
    """Refuse a given output of another shape or device, or one whose rows overlap.

    Raises:
        KernelError: names the tensor, what it is and what is needed.
    """
    check_shape(out, name, shape, like)
    rows, columns = shape
    if out.stride(1) != 1 and columns > 1:
        raise KernelError(f"the columns of {name} are {out.stride(1)} elements apart, not 1")
    if rows > 1 and out.stride(0) < columns:
        raise KernelError(
            f"the rows of {name} are {out.stride(0)} elements apart and have {columns} columns: "
            "they overlap; give memory of its own"
        )


def check_q(q: torch.Tensor, m: int, k: int, pattern: Pattern, like: torch.Tensor) -> None:
    """Refuse a given output for the quantised, lifted form of rows [m, k].

    Raises:
        KernelError: names what it is and what is needed.
    """
    check_output(q, "q", (m, pattern.expanded_k(k)), like)
    # The lift stores pairs of bytes.
    if pattern.windows > 1 and (q.data_ptr() % 2 or (m > 1 and q.stride(0) % 2)):
        raise KernelError(
            f"q starts {q.data_ptr() % 2} bytes past a multiple of 2 and its rows are "
            f"{q.stride(0)} bytes apart; pattern {pattern} needs multiples of 2"
        )


def check_scale_out(scale: torch.Tensor, m: int, like: torch.Tensor) -> None:
    """Refuse an output for scales that is not [M] float32; raises like `check_vector`."""
    check_vector(scale, "the output scale", m, like)


def check_made(
    q: torch.Tensor, scale: torch.Tensor, k: int, pattern: Pattern, like: torch.Tensor
) -> None:
    """Refuse given outputs, q and scale, for rows of `k` columns like those of `like` [M, ...].

    Raises:
        KernelError: names what it is and what is needed.
    """
    check_q(q, like.shape[0], k, pattern, like)
    check_scale_out(scale, like.shape[0], like)


def check_static_scale(scale: torch.Tensor | None, like: torch.Tensor) -> None:
    """Refuse a given scale that is not one float32; raises like `check_vector`."""
    if scale is not None:
        check_vector(scale, "static_scale", 1, like)


def check_out_dtype(q: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse a given q of another dtype than the one asked for.

    Raises:
        KernelError: names both.
    """
    if q.dtype is not dtype:
        raise KernelError(f"q is {q.dtype}, and {dtype} was asked for")


def check_quantised(dtype: torch.dtype, x: torch.Tensor) -> None:
    """Refuse dtypes that no kernel writes or this GPU cannot convert to.

    Raises:
        KernelError: neither float8_e4m3fn nor int8.
        DeviceError: the GPU has no FP8.
    """
    if dtype not in QUANTISED:
        raise KernelError(f"cannot quantise to {dtype}; use torch.float8_e4m3fn or torch.int8")
    if dtype is torch.float8_e4m3fn and x.is_cuda:
        sm = _sm(x)
        if sm < FP8_SM:
            raise DeviceError(
                f"FP8 needs {spell_sm(FP8_SM)} and {x.device} is {spell_sm(sm)}; use torch.int8"
            )


def empty_quantised(
    x: torch.Tensor, k: int, dtype: torch.dtype, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """New outputs for the rows of `x`: q [M, K'] and scale [M]."""
    if k < 1:
        raise KernelError(f"rows {tuple(x.shape)} have too few columns")
    shape = (x.shape[0], pattern_of(block).expanded_k(k))
    q = torch.empty(shape, dtype=dtype, device=x.device)
    return q, torch.empty(x.shape[0], dtype=torch.float32, device=x.device)


def fill(q: torch.Tensor, scale_out: torch.Tensor, made: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Copy what a reference made to given outputs; FP8 has no copy of its own on every device."""
    q.view(torch.uint8).copy_(made[0].view(torch.uint8))
    scale_out.copy_(made[1])


def config_for(
    op: Op,
    x: torch.Tensor,
    k: int,
    out: torch.dtype,
    pattern: Pattern,
    residual: bool = False,
) -> Config:
    """The configuration for rows `x` [M, ...] of `op`, tuned or default."""
    index = x.device.index if x.is_cuda else -1
    bucket = bucket_m(x.shape[0])
    return chosen(index, op, bucket, k, DTYPES[x.dtype], DTYPES[out], pattern, residual)


def launch(
    kernel: Any,
    x: torch.Tensor,
    config: Config,
    grid: tuple[int, ...],
    *arguments: Any,
    **fixed: Any,
) -> None:
    """Start a kernel on the device of `x` and its current stream."""
    options: dict[str, Any] = {"num_warps": config.warps, "enable_fp_fusion": False}
    overlap = False
    if config.registers:
        options["maxnreg"] = config.registers
    if x.is_cuda:
        overlap = config.overlap and _sm(x) >= OVERLAP_SM
        if overlap:
            options["launch_pdl"] = True
        if x.device.index != torch.cuda.current_device():
            with torch.cuda.device(x.device):
                kernel[grid](*arguments, **fixed, OVERLAP=overlap, **options)
            return
    kernel[grid](*arguments, **fixed, OVERLAP=overlap, **options)


def needs_wide(*tensors: torch.Tensor) -> bool:
    """Whether an element of one of these rows lies further in than 32 bits can count.

    64-bit offsets would serve every tensor but are not free (`slidesparse bench kernels` says what
    they cost), so they are a variant of the code for tensors that need them.
    """
    # Not a generator, which would add half a microsecond to every launch.
    for t in tensors:  # noqa: SIM110
        if t.shape[0] * t.stride(0) > INT32_MAX:
            return True
    return False


def programs(x: torch.Tensor, config: Config) -> int:
    """How many programs a row kernel starts for the rows of `x`."""
    m = x.shape[0]
    if config.per_sm and x.is_cuda:
        return min(m, config.per_sm * _sm_count(x.device.index))
    return -(-m // config.rows)


def loops(config: Config) -> bool:
    """Whether a program may have more than one row."""
    return config.per_sm > 0 or config.rows > 1


def _sm(x: torch.Tensor) -> int:
    """The compute capability of the GPU that holds `x`, 90 for 9.0."""
    major, minor = _capability(x.device.index)
    return 10 * major + minor


@lru_cache(maxsize=64)
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@lru_cache(maxsize=64)
def _sm_count(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
