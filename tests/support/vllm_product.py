"""What stands in for vLLM's product on the CPU: as strict as the op, and exact to its rounding."""

from __future__ import annotations

import torch

VERSION = "0.25.1"
SCHEMA = (
    "cutlass_scaled_mm(Tensor! out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, "
    "Tensor? bias) -> ()"
)
"""Of vLLM 0.25.1; a test holds it against the library where that is installed."""


class StrictProduct:
    """Plain torch behind the checks that the op makes (csrc of vLLM, scaled_mm_entry.cu)."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scales: torch.Tensor,
        b_scales: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> None:
        self.calls += 1
        (m, k), (_, n) = a.shape, b.shape
        assert b.shape == (k, n), (a.shape, b.shape)
        assert out.shape == (m, n), (out.shape, m, n)
        assert a.is_contiguous(), "rows one after the other, whatever the strides say"
        assert out.is_contiguous()
        assert b.stride() == (1, k), "column-major, without gaps"
        assert out.stride(0) % 16 == 0
        assert b.stride(1) % 16 == 0
        assert a.dtype is b.dtype
        assert a.dtype in (torch.float8_e4m3fn, torch.int8)
        assert out.dtype in (torch.bfloat16, torch.float16)
        for scales, count in ((a_scales, m), (b_scales, n)):
            assert scales.dtype is torch.float32
            assert scales.numel() in (1, count)
            assert scales.is_contiguous()
        made = a.double() @ b.double()
        made *= a_scales.double().view(-1, 1) * b_scales.double().view(1, -1)
        if bias is not None:
            assert bias.dtype is out.dtype
            assert bias.shape == (n,)
            assert bias.is_contiguous()
            made += bias.double()
        out.copy_(made)
