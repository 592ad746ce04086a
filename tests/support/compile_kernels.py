"""Compile every kernel for a GPU that need not be there; run with TRITON_INTERPRET=0."""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from slidesparse.kernels.config import tile_of
from slidesparse.kernels.dequant import dequantize_kernel
from slidesparse.kernels.pack import pack24_kernel
from slidesparse.kernels.quant import quantize_kernel
from slidesparse.kernels.rmsnorm_quant import rmsnorm_quantize_kernel
from slidesparse.kernels.silu_mul_quant import silu_mul_quantize_kernel
from slidesparse.pattern import Pattern

TYPES = {
    "m": "i32",
    "rows": "i32",
    "eps": "fp32",
    "q_ptr": "*i8",
    "scale_ptr": "*fp32",
    "static_ptr": "*fp32",
    "row_scale_ptr": "*fp32",
    "column_scale_ptr": "*fp32",
    "w_ptr": "*i32",
    "values_ptr": "*i16",
    "metadata_ptr": "*i8",
    "overfull_ptr": "*i32",
}

SCALED_BACK = {"BIAS": True, "RESIDUAL": True, "DEQUANT": True, "STATIC": False}
PLAIN = {"BIAS": False, "RESIDUAL": False, "DEQUANT": False, "STATIC": False}
ROWS = [
    (quantize_kernel, {"STATIC": False}),
    (quantize_kernel, {"STATIC": True}),
    (rmsnorm_quantize_kernel, PLAIN),
    (rmsnorm_quantize_kernel, SCALED_BACK),
    (silu_mul_quantize_kernel, PLAIN),
    (silu_mul_quantize_kernel, SCALED_BACK),
    (rmsnorm_quantize_kernel, {**PLAIN, "STATIC": True}),
    (silu_mul_quantize_kernel, {**PLAIN, "STATIC": True}),
]


def compile_kernel(kernel, fixed, read, sm):
    """Compile for `sm` with these constants, rows of type `read`; raises what Triton raises."""
    names = kernel.arg_names
    types = {**TYPES, "x_ptr": read, "a_ptr": read}
    signature = {
        name: "constexpr"
        if name.isupper()
        else "i32"
        if name.startswith("stride")
        else types.get(name, "*bf16")
        for name in names
    }
    made = ASTSource(kernel, signature, {name: fixed[name] for name in names if name.isupper()})
    triton.compile(made, target=GPUTarget("cuda", sm, 32), options={"num_warps": 4})


def jobs(sm):
    for number, (kernel, flags) in enumerate(ROWS):
        common = {"STAGES": 1, "OVERLAP": sm >= 90, "INT8": sm < 89 or number % 2 == 0, **flags}
        for wide, loop, pattern in ((False, False, "6:8"), (True, True, "dense")):
            tile = tile_of(1000, Pattern.parse(pattern), 512)
            read = "*i32" if flags.get("DEQUANT") else "*bf16"
            yield kernel, {**common, "WIDE": wide, "LOOP": loop, "T": tile}, read
    tile = {"N": 1000, "BLOCK": 512, "ROWS": 4, "OVERLAP": False, "WIDE": True}
    yield dequantize_kernel, {**SCALED_BACK, **tile}, "*i32"
    packs = {"WORDS": 256, "BLOCK": 256, "FP8": True, "OVERLAP": False}
    yield pack24_kernel, packs, "*bf16"


def main(sm):
    count = 0
    for kernel, fixed, read in jobs(sm):
        compile_kernel(kernel, fixed, read, sm)
        count += 1
    print(f"{count} kernels compiled for sm_{sm}")


main(int(sys.argv[1]))
