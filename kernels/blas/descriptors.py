"""Opaque descriptors of the libraries: data types, attributes, ownership."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from slidesparse.problem import DType

CUDA_DTYPE = {
    DType.FP8: 28,
    DType.INT8: 3,
    DType.BF16: 14,
    DType.FP16: 2,
    DType.FP32: 0,
    DType.INT32: 10,
}
"""cudaDataType_t of each element type (CUDA's library_types.h)."""

ROW_ALIGNMENT = 16
"""Rows of X and D are allocated in multiples of this: sparse libraries refuse a ragged M."""


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
    buffer = np.array([value], dtype=dtype_of(int(name)))
    leading = target if isinstance(target, tuple) else (target,)
    setter(*leading, int(name), buffer.ctypes.data, buffer.nbytes)
    return buffer


def own(owner: object, destroy: Callable[[int], None], descriptor: int) -> int:
    """Destroy a descriptor when its owner goes, but not at exit: the CUDA context goes first."""
    weakref.finalize(owner, destroy, descriptor).atexit = False
    return int(descriptor)


def host_float(value: float) -> npt.NDArray[np.float32]:
    """A float32 in host memory for alpha and beta."""
    return np.array([value], dtype=np.float32)
