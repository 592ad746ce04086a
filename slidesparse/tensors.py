"""The dtypes of problems as torch knows them, and how far their values reach."""

from __future__ import annotations

import torch

from slidesparse.problem import DType

TORCH_DTYPES = {
    DType.FP8: torch.float8_e4m3fn,
    DType.INT8: torch.int8,
    DType.BF16: torch.bfloat16,
    DType.FP16: torch.float16,
    DType.FP32: torch.float32,
    DType.INT32: torch.int32,
}

TOP = {DType.FP8: 448.0, DType.INT8: 127.0}
"""Largest magnitude of each operand dtype."""

DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
"""The other way round: torch.dtype to DType."""
