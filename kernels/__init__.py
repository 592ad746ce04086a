"""Kernels around the GEMM, in Triton, each with a torch reference: one file per operation.

quant                     quantise rows and lift them
rmsnorm_quant             (residual +) RMSNorm, quantise, lift
silu_mul_quant            SiLU(gate) * up, quantise, lift
dequant                   scale a GEMM's output back
dequant_rmsnorm_quant     the two in one pass, for a GEMM that could not scale
dequant_silu_mul_quant    the same in front of SiLU(gate) * up
pack                      compress a 2:4 matrix
reference                 what each computes, in plain torch
row, launch, config       what they share: on the device, on the host, configurations
workload, case            the problems of a model, and the operands of one
tune, tune_session        the search for the fastest configuration, and its worker's side
warm                      compiling ahead
"""

from slidesparse.kernels.dequant import dequantize
from slidesparse.kernels.dequant_rmsnorm_quant import dequant_rmsnorm_quantize
from slidesparse.kernels.dequant_silu_mul_quant import dequant_silu_mul_quantize
from slidesparse.kernels.pack import pack24
from slidesparse.kernels.quant import quantize
from slidesparse.kernels.rmsnorm_quant import rmsnorm_quantize
from slidesparse.kernels.silu_mul_quant import silu_mul_quantize

__all__ = [
    "dequant_rmsnorm_quantize",
    "dequant_silu_mul_quantize",
    "dequantize",
    "pack24",
    "quantize",
    "rmsnorm_quantize",
    "silu_mul_quantize",
]
