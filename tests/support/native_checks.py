"""What the tests of kernels/native share: configurations, variants, and whether NVRTC is here."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import lru_cache

from slidesparse.kernels.native import space
from slidesparse.kernels.native.config import NativeConfig
from slidesparse.kernels.native.gemm import variant_of
from slidesparse.kernels.native.source import Variant
from slidesparse.problem import DType

SMALL = NativeConfig(slabs=1, tokens=32, stages=4, box=32, boxes=2, group=1)
"""Compiles in a fraction of a second."""

SMS = 132
SHAPES = ((37888, 3584), (37888, 5376), (3584, 18944), (4608, 4800))
"""N and K' of layers of Qwen2.5-7B, 2:4 and 6:8."""

TOKENS = (16, 64, 512, 16384)
FP8, INT8 = (DType.FP8, DType.BF16), (DType.INT8, DType.INT32)


@lru_cache
def no_compiler() -> str:
    """Why NVRTC cannot compile for Hopper here, or "".

    Asked of cuda.core itself: `program.missing` is what is tested.
    """
    try:
        from cuda.core import Program, ProgramOptions

        program = Program("__global__ void nothing() {}", "c++", ProgramOptions(arch="sm_90a"))
        program.compile("cubin")
        program.close()
    except Exception as error:  # Loaders and NVRTC have error classes of their own.
        return f"the CUDA sources cannot be compiled here: {type(error).__name__}: {error}"
    return ""


def offered(dtype: DType, out: DType, near: bool = False) -> list[Variant]:
    """Distinct codes of the candidates for SHAPES and TOKENS, or of their neighbours."""
    found: dict[Variant, None] = {}
    for n, k in SHAPES:
        for m in TOKENS:
            for config in space.candidates(m, n, k, dtype, 12, SMS):
                around = space.neighbours(config, m, n, k) if near else [config]
                found |= dict.fromkeys(variant_of(other, k, dtype, out) for other in around)
    return list(found)


@dataclass(frozen=True)
class Report:
    """What ptxas says of a variant, and the code."""

    code: bytes
    log: str

    @property
    def spilled(self) -> int:
        """Bytes, the larger of stores and loads."""
        stores, loads = self._numbers(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
        return max(stores, loads)

    @property
    def registers(self) -> int:
        """Of a thread when the kernel starts."""
        (count,) = self._numbers(r"Used (\d+) registers")
        return count

    def _numbers(self, pattern: str) -> list[int]:
        (found,) = re.finditer(pattern, self.log)
        return [int(number) for number in found.groups()]


def assembled(text: str) -> Report:
    """Compile the source of a variant, with ptxas's remarks; raises what cuda.core raises."""
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(arch="sm_90a", std="c++17", ptxas_options=["-v"])
    program, log = Program(text, "c++", options), io.StringIO()
    try:
        made = program.compile("cubin", logs=log)
        return Report(bytes(made.code), log.getvalue())
    finally:
        program.close()
