"""What the cuBLASLt and cuSPARSELt backends share: data types, attributes, availability."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from slidesparse.devices import Device, detect, lacks_fp8
from slidesparse.libraries import ABSENT, binding_version
from slidesparse.problem import DType, GemmProblem
from slidesparse.search.backend import Availability

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CUDA_DTYPE = {
    DType.FP8: 28,
    DType.INT8: 3,
    DType.BF16: 14,
    DType.FP16: 2,
    DType.FP32: 0,
    DType.INT32: 10,
}
"""cudaDataType_t of each element type (CUDA's library_types.h)."""

EXTRAS = "pip install 'slidesparse[cuda13]' (or [cuda12] with a CUDA 12 driver)"


def set_attribute(
    setter: Callable[..., None], dtype_of: Callable[[int], Any], target: Any, name: int, value: Any
) -> npt.NDArray[Any]:
    """Set one attribute of an opaque descriptor.

    Args:
        setter: the binding's ..._set_attribute.
        dtype_of: the binding's get_..._attribute_dtype.
        target: the leading arguments of the setter: one descriptor, or a tuple of handles.
        name: of the attribute, a member of the binding's enumeration.
        value: a number.

    Returns:
        The buffer that holds the value; pointers are read while it lives.
    """
    import numpy as np

    buffer = np.array([value], dtype=dtype_of(int(name)))
    leading = target if isinstance(target, tuple) else (target,)
    setter(*leading, int(name), buffer.ctypes.data, buffer.nbytes)
    return buffer


def own(owner: object, destroy: Callable[[int], None], descriptor: int) -> int:
    """Destroy a descriptor when its owner goes, but not at exit: the CUDA context goes first."""
    weakref.finalize(owner, destroy, descriptor).atexit = False
    return int(descriptor)


def needs_gpu(device: Device) -> Availability | None:
    """The answer of a GPU backend for a CPU, or None on a GPU."""
    if device.is_gpu:
        return None
    return Availability(False, "needs an NVIDIA GPU", "run on a machine with one")


def library_availability(device: Device, binding: str) -> Availability:
    """Whether a library that nvmath binds loads here, with its run-time version."""
    missing = needs_gpu(device)
    if missing is not None:
        return missing
    version, reason = binding_version(binding)
    if version == ABSENT:
        return Availability(False, reason, EXTRAS)
    return Availability(True, f"version {version}")


def fp8_refusal(problem: GemmProblem, device: Device) -> str | None:
    """Refuse FP8 on GPUs without FP8 tensor cores."""
    return lacks_fp8(detect(device).sm) if problem.dtype is DType.FP8 else None


def alignment_refusal(problem: GemmProblem, n: int, k: int) -> str | None:
    """Refuse an N or K that is not a multiple of what the library asks."""
    for name, size, step in (("N", problem.n, n), ("K", problem.k, k)):
        if size % step:
            up = -(-size // step) * step
            return f"{name}={size} is not a multiple of {step}; pad it to {up}"
    return None


def host_float(value: float) -> npt.NDArray[np.float32]:
    """A float32 in host memory for alpha and beta."""
    import numpy as np

    return np.array([value], dtype=np.float32)
