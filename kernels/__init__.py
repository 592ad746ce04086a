"""Kernels around the GEMM: Triton and CUDA C++ kernels, their tuner and their references."""
