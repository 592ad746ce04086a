"""The configurations that are worth trying for a problem, the most promising first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

from slidesparse.errors import KernelError
from slidesparse.kernels.native.config import WGMMA_N, NativeConfig
from slidesparse.kernels.native.gemm import unfit
from slidesparse.kernels.native.weight import BLOCK, BLOCK_BYTES, SLAB
from slidesparse.problem import DType

FEW_TOKENS = 64
"""Up to here the weight streams from memory once, and how it is cut along K is what counts."""

SLABS = (1, 2, 3, 4)
TOKENS = range(32, 257, 16)
MOST_STAGES, ENOUGH_STAGES = 10, 4
LARGEST_BOX = 64
"""Tokens stored at a time: a second warpgroup's boxes are worth more than larger ones."""

# Clock cycles of a multiprocessor of an H200, fitted to runs of 128x256, 192x192, 256x128 and
# 64x256 tiles with two lengths of K each: one instruction, storing a token of a slab, and what else
# a tile takes.
WGMMA_BASE, WGMMA_TOKEN = 16.0, 0.551
STORE_TOKEN, STORE_BOX = 3.0, 190.0
TILE_CYCLES = 1100.0
COPIED_PER_CYCLE = 64.0
"""Bytes that reach a multiprocessor from the L2 cache in a clock cycle."""

GROUPS = (4, 8, 16, 32)
"""Widths of the raster's bands."""

CLUSTERS = ((2, 1), (1, 2), (2, 2), (4, 1))


def candidates(m: int, n: int, k: int, dtype: DType, count: int, sms: int) -> list[NativeConfig]:
    """The `count` configurations that the model expects to be the fastest, best first.

    Among few tokens the memory decides and the model does not rank: the count is three times that.

    Args:
        m: tokens.
        n: output channels.
        k: K' of the 2:4 weight.
        dtype: of the operands; INT8 has fewer token counts.
        count: how many at most.
        sms: multiprocessors of the GPU.
    """
    every = _few(m, dtype) if m <= FEW_TOKENS else _many(m, dtype)
    fitting = [config for config in every if unfit(config, k) is None]
    ranked = sorted(fitting, key=lambda config: predicted_cycles(config, m, n, k, sms))
    return list(dict.fromkeys(ranked))[: 3 * count if m <= FEW_TOKENS else count]


def neighbours(config: NativeConfig, m: int, n: int, k: int) -> list[NativeConfig]:
    """Variations of a configuration that did well: its raster, a cluster, its stages."""
    found: list[NativeConfig] = []
    for along_x, group in product((False, True), GROUPS):
        _, inner = _tiles(replace(config, along_x=along_x), m, n)
        if group < 2 * inner:
            found.append(replace(config, along_x=along_x, group=group))
    if config.cluster == 1 and m > FEW_TOKENS:
        for w, x in CLUSTERS:
            found += _made(replace, config, cluster_w=w, cluster_x=x)
    found += _made(replace, config, stages=config.stages - 1)
    if config.box % 32 == 0 and m > FEW_TOKENS:
        found += _filled(replace, config, box=config.box // 2)
    return [other for other in found if other != config and unfit(other, k) is None]


def predicted_cycles(config: NativeConfig, m: int, n: int, k: int, sms: int) -> float:
    """Clock cycles that the whole GEMM should take on `sms` multiprocessors.

    A model of the tensor cores and of storing; memory is left out, so among few tokens, where it
    decides, it only prefers configurations that use all multiprocessors.
    """
    tiles, _ = _tiles(config, m, n)
    steps = -(-k // BLOCK) / config.cluster_k
    multiply = config.slabs * (WGMMA_BASE + WGMMA_TOKEN * config.tokens)
    copy = (config.slabs * BLOCK_BYTES + BLOCK * config.tokens) / COPIED_PER_CYCLE
    tokens = config.tokens / config.cluster_k
    store = TILE_CYCLES + config.slabs * tokens * STORE_TOKEN + tokens / config.box * STORE_BOX
    # Blocks that share a multiprocessor multiply in turn, and one multiplies while another stores.
    waves = -(-tiles // (sms // config.cluster * config.resident))
    busy = steps * max(multiply, copy) * config.resident
    return waves * (busy + store if config.resident == 1 else max(busy, busy / 2 + store))


def _tiles(config: NativeConfig, m: int, n: int) -> tuple[int, int]:
    """Cluster tiles in all, and along the raster's inner direction."""
    w = -(-n // (SLAB * config.slabs * config.cluster_w))
    x = -(-m // (config.tokens * config.cluster_x))
    return w * x, x if config.along_x else w


def _few(m: int, dtype: DType) -> Iterator[NativeConfig]:
    """For few tokens: one tile of tokens, as many stages as fit, K split by a cluster."""
    least = next(t for t in (16, 32, 64) if m <= t)
    for tokens, slabs, blocks, split, resident in product(
        (least, 2 * least), (1, 2, 4), (4, 2), (1, 2, 4), (1, 2)
    ):
        if tokens > FEW_TOKENS or tokens not in WGMMA_N[str(dtype)]:
            continue
        if tokens > least and split < 4:
            continue  # More tokens than needed only where a split by four asks for them.
        box = min(LARGEST_BOX, tokens // split)
        yield from _filled(
            NativeConfig,
            **{"slabs": slabs, "tokens": tokens, "blocks": blocks, "cluster_k": split},
            **{"resident": resident, "box": box, "boxes": 2, "group": 1},
        )


def _many(m: int, dtype: DType) -> Iterator[NativeConfig]:
    """For many tokens: every tile that fits, with large boxes where they leave four stages."""
    for slabs, tokens, resident in product(SLABS, TOKENS, (1, 2)):
        if tokens not in WGMMA_N[str(dtype)] or tokens >= 2 * m:
            continue
        made: list[NativeConfig] = []
        boxes = [box for box in range(LARGEST_BOX, 15, -16) if tokens % box == 0]
        for box, count in product(boxes, (3, 2)):
            changes = {"slabs": slabs, "tokens": tokens, "resident": resident}
            if not (made and made[0].stages >= ENOUGH_STAGES):
                made = list(_filled(NativeConfig, **changes, box=box, boxes=count)) or made
        yield from made


def _filled(
    make: Callable[..., NativeConfig], *base: NativeConfig, **changes: int
) -> Iterator[NativeConfig]:
    """With as many stages as fit the shared memory, if there are at least two."""
    for stages in range(MOST_STAGES, 1, -1):
        made = _made(make, *base, **changes, stages=stages)
        if made:
            yield made[0]
            return


def _made(
    make: Callable[..., NativeConfig], *base: NativeConfig, **changes: int
) -> list[NativeConfig]:
    """The configuration, or none where it does not fit."""
    try:
        return [make(*base, **changes)]
    except KernelError:
        return []
