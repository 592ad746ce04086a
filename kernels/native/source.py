"""The CUDA source of one compiled variant: macros, the files of kernels/cuda, one instruction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

from slidesparse.kernels.native.config import NativeConfig
from slidesparse.problem import DType

FILES = ("ptx.cuh", "INSTRUCTION", "layout.cuh", "schedule.cuh", "epilogue.cuh", "sparse_gemm.cu")
"""In the order of their dependence; INSTRUCTION stands for the generated one."""

KERNEL = "sparse_gemm"


@dataclass(frozen=True)
class Variant:
    """All that the compiled code depends on.

    Args:
        config: with the raster at a fixed value, see `gemm.variant_of`.
        dtype: of the operands.
        out: BF16 or FP16 with scales, INT32 for raw INT8 sums.
        odd: whether K' takes an odd number of stages.
        traced: whether every lane releases a stage, where one does for its warp: slower, but what
            a race checker can follow.
    """

    config: NativeConfig
    dtype: DType
    out: DType
    odd: bool
    traced: bool = False

    @property
    def scaled(self) -> bool:
        """Whether scales are applied; raw sums otherwise."""
        return self.out is not DType.INT32

    def macros(self) -> dict[str, int]:
        """What the source is compiled with."""
        config = self.config
        return {
            "SLABS": config.slabs,
            "TOKENS": config.tokens,
            "BLOCKS": config.blocks,
            "STAGES": config.stages,
            "CLUSTER_W": config.cluster_w,
            "CLUSTER_X": config.cluster_x,
            "CLUSTER_K": config.cluster_k,
            "RESIDENT": config.resident,
            "STORE_TOKENS": config.box if self.scaled else 0,
            "STORE_BOXES": config.boxes,
            "SHARED": config.shared_bytes(self.scaled),
            "ODD": int(self.odd),
            "FP8": int(self.dtype is DType.FP8),
            "SCALED": int(self.scaled),
            "OUT_FP16": int(self.out is DType.FP16),
            "TRACED": int(self.traced),
        }


def source(variant: Variant) -> str:
    """The whole translation unit; it includes nothing."""
    macros = "".join(f"#define {name} {value}\n" for name, value in variant.macros().items())
    parts = (
        instruction(variant.config.tokens, variant.dtype) if name == "INSTRUCTION" else _file(name)
        for name in FILES
    )
    return "\n".join([macros, *parts])


def instruction(tokens: int, dtype: DType) -> str:
    """The sparse wgmma of 64 channels by `tokens`, K = 64, both operands in shared memory.

    Args:
        tokens: N of the instruction, whose accumulators are N / 2 registers of every thread.
        dtype: FP8 (sums in FP32) or INT8 (sums in INT32).
    """
    count = tokens // 2
    fp8 = dtype is DType.FP8
    kind, letter = ("float", "f") if fp8 else ("int", "r")
    types = "f32.e4m3.e4m3" if fp8 else "s32.s8.s8"
    sums = ", ".join(f"%{i}" for i in range(count))
    operands = ", ".join(f'"+{letter}"(sums[{i}])' for i in range(count))
    signs = ", 1, 1" if fp8 else ""
    return f"""typedef {kind} Accumulator;

// sums = (add ? sums : 0) + weights x tokens, asynchronously.
__device__ __forceinline__ void wgmma(Accumulator (&sums)[{count}], u64 weights, u64 tokens,
                                      u32 metadata, bool add) {{
  asm volatile(
      "{{\\n\\t.reg .pred add;\\n\\t"
      "setp.ne.b32 add, %{count + 3}, 0;\\n\\t"
      "wgmma.mma_async.sp.sync.aligned.m64n{tokens}k64.{types} "
      "{{{sums}}}, %{count}, %{count + 1}, %{count + 2}, 0, add{signs};\\n\\t}}"
      : {operands}
      : "l"(weights), "l"(tokens), "r"(metadata), "r"(static_cast<int>(add)));
}}
"""


@cache
def _file(name: str) -> str:
    folder = resources.files("slidesparse.kernels") / "cuda"
    return (folder / name).read_text(encoding="utf-8")
