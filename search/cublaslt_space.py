"""The algorithm space of cuBLASLt: what its capability queries list and its check lets through."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from nvmath.bindings import cublasLt as lt

from slidesparse.errors import CandidateError
from slidesparse.kernels.blas.cublaslt import UNREAD, Handle, Matmul, as_algo, read_config
from slidesparse.kernels.blas.descriptors import CUDA_DTYPE, set_attribute
from slidesparse.problem import GemmProblem

Cap = lt.MatmulAlgoCapAttribute
Config = lt.MatmulAlgoConfigAttribute

MOST_IDS = 64
MOST_LISTED = 1024
MOST_CUSTOM = 16
SPLITS = (2, 3, 4, 6, 8)
REDUCTIONS = (int(lt.ReductionScheme.COMPUTE_TYPE), int(lt.ReductionScheme.OUTPUT_TYPE))
COMMON_CLUSTERS = ("1x1x1", "2x1x1", "1x2x1", "2x2x1", "4x1x1", "1x4x1")


MOST_CTAS = 8
"""Clusters of more thread blocks are left to the full enumeration: few kernels gain from them."""

SHORT_LIST = 16
"""An algorithm with at most this many tiles has them all tried as variations of each other."""


def enumerate_space(
    handle: Handle, problem: GemmProblem, fast: bool, every_cluster: bool
) -> Iterator[bytes]:
    """Every algorithm id with every tile and stage that the library accepts.

    Custom option, split-K and swizzle stay at their default; `vary` opens them for the best.

    Args:
        handle: of the library.
        problem: that they are for.
        fast: whether FP8 products accumulate fast.
        every_cluster: each tile with every cluster shape, or with the first that suits it.
    """
    matmul = _checked_matmul(handle, problem, fast)
    for algo_id in _ids(matmul, problem):
        algo = _init(matmul, problem, algo_id)
        if algo is None:
            continue
        tiles = _capability(algo, Cap.TILE_IDS, MOST_LISTED) or [0]
        stages = _capability(algo, Cap.STAGES_IDS, MOST_LISTED) or [0]
        for tile in tiles:
            for stage in stages:
                if _configure(algo, {Config.TILE_ID: tile, Config.STAGES_ID: stage}):
                    if every_cluster:
                        yield from _clusters(matmul, algo)
                    else:
                        yield from itertools.islice(_with_clusters(matmul, algo, _common()), 1)


def vary(
    handle: Handle, problem: GemmProblem, fast: bool, algo: bytes, wide: bool
) -> Iterator[bytes]:
    """Variations of one algorithm that the library accepts.

    Args:
        handle: of the library.
        problem: that they are for.
        fast: whether FP8 products accumulate fast.
        algo: to vary.
        wide: also combine the common clusters with custom options.
    """
    matmul = _checked_matmul(handle, problem, fast)
    base = as_algo(algo)
    most_custom = (_capability(base, Cap.CUSTOM_OPTION_MAX, 1) or [0])[0]
    customs = range(min(most_custom, MOST_CUSTOM) + 1)
    clusters = [int(c) for c in lt.ClusterShape if 0 < _ctas(c) <= MOST_CTAS]
    changes: list[dict[int, int]] = [{Config.CUSTOM_OPTION: custom} for custom in customs]
    changes += [{Config.CLUSTER_SHAPE_ID: cluster} for cluster in clusters]
    if wide:
        changes += [
            {Config.CLUSTER_SHAPE_ID: cluster, Config.CUSTOM_OPTION: custom}
            for cluster in _common()
            for custom in customs
        ]
    changes += _tiles(base)
    if (_capability(base, Cap.CTA_SWIZZLING_SUPPORT, 1) or [0])[0]:
        changes.append({Config.CTA_SWIZZLING: 1 - read_config(algo, Config.CTA_SWIZZLING)})
    if (_capability(base, Cap.SPLITK_SUPPORT, 1) or [0])[0] and problem.m <= problem.n:
        changes += _splits(base)
    yield from _accepted(matmul, algo, changes)


def accepted(
    handle: Handle, problem: GemmProblem, fast: bool, algorithms: Iterable[bytes]
) -> list[bytes]:
    """Those of some algorithms that the library accepts for a problem, without repetitions."""
    matmul = _checked_matmul(handle, problem, fast)
    return [algo for algo in dict.fromkeys(algorithms) if _passes(matmul, algo)]


def _tiles(algo: npt.NDArray[Any]) -> list[dict[int, int]]:
    """The other tiles and stages of an algorithm, if it has few."""
    tiles = _capability(algo, Cap.TILE_IDS, MOST_LISTED)
    if len(tiles) > SHORT_LIST:
        return []
    stages = _capability(algo, Cap.STAGES_IDS, MOST_LISTED)
    return [{Config.TILE_ID: t, Config.STAGES_ID: s} for t in tiles for s in stages]


def _splits(algo: npt.NDArray[Any]) -> list[dict[int, int]]:
    mask = (_capability(algo, Cap.REDUCTION_SCHEME_MASK, 1) or [0])[0]
    schemes = [scheme for scheme in REDUCTIONS if mask & scheme]
    return [
        {Config.SPLITK_NUM: split, Config.REDUCTION_SCHEME: scheme}
        for split in SPLITS
        for scheme in schemes
    ]


def _accepted(matmul: Matmul, algo: bytes, changes: Iterable[dict[int, int]]) -> Iterator[bytes]:
    seen = {algo}
    for change in changes:
        buffer = as_algo(algo)
        if not _configure(buffer, change):
            continue
        varied = buffer.tobytes()
        if varied not in seen and _passes(matmul, varied):
            seen.add(varied)
            yield varied


def _clusters(matmul: Matmul, algo: npt.NDArray[Any]) -> Iterator[bytes]:
    """One tile with each cluster; a tile that no common cluster suits is given up early."""
    common = _common()
    passed = list(_with_clusters(matmul, algo, common))
    if not passed:
        return
    rest = [int(c) for c in lt.ClusterShape if c not in common]
    passed += _with_clusters(matmul, algo, rest)
    # A kernel without clusters lets every shape through, also those that no GPU has.
    yield from passed if len(passed) < len(lt.ClusterShape) else passed[:1]


def _with_clusters(
    matmul: Matmul, algo: npt.NDArray[Any], clusters: Iterable[int]
) -> Iterator[bytes]:
    for cluster in clusters:
        if not _configure(algo, {Config.CLUSTER_SHAPE_ID: int(cluster)}):
            continue
        varied = algo.tobytes()
        if _passes(matmul, varied):
            yield varied


def _common() -> list[int]:
    return [int(c) for c in lt.ClusterShape if _shape(c) in COMMON_CLUSTERS]


def _shape(cluster: lt.ClusterShape) -> str:
    return str(cluster.name).split("_", 1)[1]


def _ctas(cluster: lt.ClusterShape) -> int:
    """Thread blocks in a cluster of this shape; 0 for "automatic"."""
    sides = _shape(cluster).split("x")
    return math.prod(map(int, sides)) if len(sides) > 1 else 0


def _checked_matmul(handle: Handle, problem: GemmProblem, fast: bool) -> Matmul:
    matmul = Matmul(handle, problem, fast)
    matmul.bind_scales(UNREAD, UNREAD)
    return matmul


def _ids(matmul: Matmul, problem: GemmProblem) -> list[int]:
    operand, out = CUDA_DTYPE[problem.dtype], CUDA_DTYPE[problem.out]
    found = lt.matmul_algo_get_ids(
        matmul.handle.value, matmul.compute, matmul.scale, operand, operand, out, out, MOST_IDS
    )
    return [int(algo_id) for algo_id in found]


def _init(matmul: Matmul, problem: GemmProblem, algo_id: int) -> npt.NDArray[Any] | None:
    operand, out = CUDA_DTYPE[problem.dtype], CUDA_DTYPE[problem.out]
    algo = np.zeros(1, dtype=lt.matmul_algo_dtype)
    try:
        lt.matmul_algo_init(
            matmul.handle.value,
            matmul.compute,
            matmul.scale,
            operand,
            operand,
            out,
            out,
            algo_id,
            algo.ctypes.data,
        )
    except lt.cuBLASLtError:
        return None  # Listed for the data types, but not for this combination of them.
    return algo


def _capability(algo: npt.NDArray[Any], attribute: int, count: int) -> list[int]:
    values = np.zeros(count, dtype=lt.get_matmul_algo_cap_attribute_dtype(int(attribute)))
    written = np.zeros(1, dtype=np.uint64)
    try:
        lt.matmul_algo_cap_get_attribute(
            algo.ctypes.data,
            int(attribute),
            values.ctypes.data,
            values.nbytes,
            written.ctypes.data,
        )
    except lt.cuBLASLtError:
        return []
    return [int(v) for v in values[: int(written[0]) // values.itemsize]]


def _configure(algo: npt.NDArray[Any], change: dict[int, int]) -> bool:
    try:
        for attribute, value in change.items():
            set_attribute(
                lt.matmul_algo_config_set_attribute,
                lt.get_matmul_algo_config_attribute_dtype,
                algo.ctypes.data,
                attribute,
                value,
            )
    except lt.cuBLASLtError:
        return False
    return True


def _passes(matmul: Matmul, algo: bytes) -> bool:
    try:
        matmul.check(algo)
    except CandidateError:
        return False
    return True
