"""What linears launch on a GPU, compiled before the first of them: in parallel it takes seconds."""

from __future__ import annotations

from collections.abc import Sequence

from slidesparse.cache import TuningCache
from slidesparse.devices import Device
from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.kernels.config import Table, load
from slidesparse.kernels.warm import compile_parallel, launch_jobs, native_variants
from slidesparse.models import LinearLayer
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, Scales


def compile_ahead(
    device: Device,
    layers: Sequence[LinearLayer],
    dtypes: Sequence[DType],
    patterns: Sequence[Pattern],
    tokens: Sequence[int],
    cache: TuningCache,
) -> list[str]:
    """Compile the quantisation and the native GEMMs that linears may launch, into caches on disk.

    The tuned configurations of the cache are what launches of this process take from then on.

    Args:
        device: a GPU.
        layers: whose linears will run.
        dtypes: of their operands.
        patterns: of their weights.
        tokens: of the batches.
        cache: of tuning results, from which the linears plan.

    Returns:
        One line per kernel that could not be compiled; it is tried again where it is launched.
    """
    load(device.index, Table(hit.result for hit in cache.kernel_entries().values()))
    problems = quantise_problems(layers, dtypes, patterns, tokens)
    failed = compile_parallel(launch_jobs(problems, device), device)
    return failed + compile_native(layers, dtypes, patterns, cache)


def compile_native(
    layers: Sequence[LinearLayer],
    dtypes: Sequence[DType],
    patterns: Sequence[Pattern],
    cache: TuningCache,
) -> list[str]:
    """Compile the native GEMMs that linears may launch, into the cache on disk.

    It takes threads only, no processes. Arguments and result as `compile_ahead`.
    """
    from slidesparse.kernels.native.program import SM, compile_variants, missing

    if cache.fingerprint.sm != SM or missing():
        return []
    shapes = {(layer.n, layer.k) for layer in layers}
    planned = [
        hit.result
        for hit in cache.entries().values()
        if (hit.result.problem.n, hit.result.problem.k) in shapes
        and hit.result.problem.dtype in dtypes
        and hit.result.problem.pattern in patterns
        and hit.result.problem.scales is Scales.ROWCOL
    ]
    return compile_variants(native_variants(planned))


def quantise_problems(
    layers: Sequence[LinearLayer],
    dtypes: Sequence[DType],
    patterns: Sequence[Pattern],
    tokens: Sequence[int],
) -> list[KernelProblem]:
    """Every quantisation in front of a linear: lifted for a sparse GEMM, or not for a dense one."""
    found = dict.fromkeys(
        KernelProblem(Op.QUANTIZE, layer.rows(count), layer.k, DType.BF16, dtype, pattern)
        for layer in layers
        for dtype in dtypes
        for pattern in (DENSE, *patterns)
        for count in tokens
    )
    return list(found)
