"""The sparse GEMM of our own for Hopper: CUDA C++ in kernels/cuda, compiled when first needed.

weight    the compressed format, packing and unpacking
config    a configuration: its parameters, and the model of what fits a multiprocessor
space     the configurations that are worth trying for a problem
source    the CUDA source of a configuration
program   compiling it, keeping it on disk and in memory
gemm      running it
"""

from slidesparse.kernels.native.config import NativeConfig
from slidesparse.kernels.native.gemm import NativeGemm, native_gemm
from slidesparse.kernels.native.weight import PackedWeight, pack, unpack

__all__ = ["NativeConfig", "NativeGemm", "PackedWeight", "native_gemm", "pack", "unpack"]
