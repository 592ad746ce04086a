"""Which tiles a block computes: kernels/cuda/schedule.cuh in Python, with the host's divisors."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native_checks import SHAPES

from slidesparse.errors import KernelError
from slidesparse.kernels.native.config import NativeConfig
from slidesparse.kernels.native.gemm import PROBLEM, divisor, problem_struct, stages_of


def sized(n, blocks=4):
    """What a struct needs of a packed weight, for sizes that no memory holds."""
    return SimpleNamespace(n=n, blocks=blocks)


def divide(n, by):
    """As Divisor of kernels/cuda/schedule.cuh: 32-bit words, the high one of a product."""
    factor, shift = (int(word) for word in by)
    return ((2 * n % 2**32) * factor >> 32) >> shift


NUMBERS = st.one_of(st.integers(1, 5000), st.integers(1, 2**31 - 1))


@given(number=NUMBERS, n=st.integers(0, 2**31 - 1), quotient=st.integers(0, 2**31 - 1))
@example(number=1, n=2**31 - 1, quotient=0)
@example(number=2**31 - 1, n=2**31 - 1, quotient=1)
@example(number=2**30 + 1, n=2**31 - 1, quotient=1)
@settings(max_examples=500)
def test_a_divisor_divides(number, n, quotient):
    factor, shift = divisor(number)
    assert 0 <= factor < 2**32
    assert 0 <= shift < 32
    # Around a multiple, where rounding would show.
    multiple = min(quotient, (2**31 - 1) // number) * number
    for value in {n, multiple, max(multiple - 1, 0), min(multiple + 1, 2**31 - 1)}:
        assert divide(value, (factor, shift)) == value // number


def test_small_divisors_of_small_numbers_and_of_the_largest():
    numbers = np.concatenate([np.arange(20_000), 2**31 - 1 - np.arange(20_000)]).astype(np.uint64)
    for number in range(1, 400):
        factor, shift = divisor(number)
        high = (2 * numbers * np.uint64(factor)) >> np.uint64(32)
        assert (high >> np.uint64(shift) == numbers // np.uint64(number)).all(), number


def test_the_struct_is_what_the_kernel_reads(root):
    """Fourteen 32-bit words, named and ordered as in kernels/cuda/schedule.cuh."""
    assert PROBLEM.itemsize == 14 * 4
    code = (root / "kernels" / "cuda" / "schedule.cuh").read_text()
    (body,) = re.findall(r"struct Problem \{(.*?)\};", code, re.DOTALL)
    words = []
    for kind, names in re.findall(r"(int|Divisor) ([^;]+);", body):
        for name, count in re.findall(r"(\w+)(?:\[(\d)\])?", names):
            words += int(count or 1) * [(name, 4 if kind == "int" else 8)]
    assert [name for name, _ in words[:9]] == list(PROBLEM.names or ())[:9]
    assert [name for name, _ in words[9:]] == ["width", "width"]
    assert (PROBLEM.names or ())[9:] == ("width", "last_width")
    sizes = [PROBLEM[name].itemsize for name in PROBLEM.names or ()]
    assert sizes == [size for _, size in words]


def test_fields_of_a_problem():
    config = NativeConfig(slabs=2, tokens=64, stages=2, box=64, boxes=2, group=4)
    (made,) = problem_struct(sized(1000, 8), config, 150, 6)
    assert [int(made[name]) for name in PROBLEM.names[:8]] == [150, 1000, 8, 6, 8, 3, 4, 0]
    assert tuple(made["band"]) == divisor(4 * 3)
    assert tuple(made["width"]) == tuple(made["last_width"]) == divisor(4)


def test_fields_of_a_problem_with_a_cluster_and_a_last_band():
    config = NativeConfig(
        **{"slabs": 1, "tokens": 64, "stages": 2, "box": 64, "boxes": 2},
        **{"cluster_x": 2, "group": 2, "along_x": True},
    )
    (made,) = problem_struct(sized(640, 4), config, 900, 2)
    assert [int(made[name]) for name in PROBLEM.names[:8]] == [900, 640, 4, 2, 10, 8, 2, 1]
    assert tuple(made["band"]) == divisor(2 * 10)
    (made,) = problem_struct(sized(640, 4), config, 800, 2)
    assert int(made["tiles_x"]) == 7
    assert (tuple(made["width"]), tuple(made["last_width"])) == (divisor(2), divisor(1))


def test_a_group_is_no_wider_than_the_raster():
    config = NativeConfig(slabs=1, tokens=64, stages=2, box=64, boxes=2, group=2**20)
    (made,) = problem_struct(sized(640), config, 64, 2)
    assert int(made["group"]) == 10


def test_too_many_tiles_are_refused():
    config = NativeConfig(slabs=1, tokens=8, stages=2, box=8, boxes=2)
    n, m = 64 * 2**20, 8 * 2**10
    assert int(problem_struct(sized(n), config, m, 2)["tiles_w"][0]) == 2**20
    with pytest.raises(KernelError) as raised:
        problem_struct(sized(2 * n), config, m, 2)
    assert str(raised.value) == f"M={m} with N={2 * n} are more tiles than 2^31; split M"
    for m in (2**31 - 1, 2**31, 2**40):  # Where a tile ends is counted in 32 bits too.
        with pytest.raises(KernelError, match=f"M={m} with N=64"):
            problem_struct(sized(64), config, m, 2)


class Schedule:
    """kernels/cuda/schedule.cuh in Python: what block `rank` of a cluster computes."""

    def __init__(self, problem, config, cluster, clusters, rank):
        self.problem, self.config, self.rank = problem, config, rank
        self.tile, self.stride = cluster, clusters
        part = rank // (config.cluster_w * config.cluster_x)
        pairs, parts = int(problem["stages"]) // 2, config.cluster_k
        self.begin = pairs * part // parts * 2
        self.end = int(problem["stages"]) if parts == 1 else pairs * (part + 1) // parts * 2

    def __iter__(self):
        """Channel and token where each tile begins."""
        config = self.config
        names = ("tiles_w", "tiles_x", "group", "along_x")
        tiles_w, tiles_x, group, along_x = (int(self.problem[name]) for name in names)
        band, width, last_width = (self.problem[name] for name in ("band", "width", "last_width"))
        while self.tile < tiles_w * tiles_x:
            inner, outer = (tiles_x, tiles_w) if along_x else (tiles_w, tiles_x)
            first = divide(self.tile, band) * group
            left = inner - first
            wide = min(group, left)
            rest = self.tile - first * outer
            across = divide(rest, last_width if left < group else width)
            along = first + rest - across * wide
            x, w = (along, across) if along_x else (across, along)
            rank_w = self.rank % config.cluster_w
            rank_x = self.rank // config.cluster_w % config.cluster_x
            yield (
                (w * config.cluster_w + rank_w) * 64 * config.slabs,
                (x * config.cluster_x + rank_x) * config.tokens,
            )
            self.tile += self.stride


CLUSTERS = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (4, 1, 1), (1, 1, 2), (1, 1, 4)]


def visits(weight, config, m, stages, clusters):
    """How often each (channel, token, stage) is computed, for all blocks."""
    (problem,) = problem_struct(weight, config, m, stages)
    found = []
    for cluster, rank in itertools.product(range(clusters), range(config.cluster)):
        schedule = Schedule(problem, config, cluster, clusters, rank)
        assert schedule.begin % 2 == 0
        assert schedule.begin < schedule.end
        found += [(*tile, schedule.begin, schedule.end) for tile in schedule]
    return problem, found


@given(
    m=st.integers(1, 700),
    n=st.integers(1, 3000),
    slabs=st.integers(1, 2),
    sides=st.sampled_from(CLUSTERS),
    group=st.integers(1, 50),
    along_x=st.booleans(),
    clusters=st.integers(1, 140),
    pairs=st.integers(4, 20),
    odd=st.booleans(),
)
@settings(max_examples=300)
def test_every_tile_is_computed_once(m, n, slabs, sides, group, along_x, clusters, pairs, odd):
    cluster_w, cluster_x, cluster_k = sides
    config = NativeConfig(
        **{"slabs": slabs, "tokens": 32, "stages": 2, "box": 8, "boxes": 2},
        **{"cluster_w": cluster_w, "cluster_x": cluster_x, "cluster_k": cluster_k},
        **{"group": group, "along_x": along_x},
    )
    stages = 2 * pairs + (odd and cluster_k == 1)
    problem, found = visits(sized(n), config, m, stages, clusters)
    w, x = int(problem["tiles_w"]) * cluster_w, int(problem["tiles_x"]) * cluster_x
    assert (w - cluster_w) * 64 * slabs < n <= w * 64 * slabs
    assert (x - cluster_x) * 32 < m <= x * 32
    tiles = {(64 * slabs * i, 32 * j) for i in range(w) for j in range(x)}
    assert len(found) == len(set(found)) == len(tiles) * cluster_k
    assert {visit[:2] for visit in found} == tiles
    parts = sorted({visit[2:] for visit in found})
    assert len(parts) == cluster_k
    assert (parts[0][0], parts[-1][1]) == (0, stages)
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(parts))


@pytest.mark.parametrize("along_x", [False, True])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_every_tile_of_a_real_layer_is_computed_once(n, k, along_x):
    config = NativeConfig(group=16, along_x=along_x)
    stages, _ = stages_of(config, k)
    _, found = visits(sized(n), config, 16384 + 1, stages, 132)
    assert len(found) == len(set(found)) == -(-n // 128) * 65


@pytest.mark.parametrize("along_x", [False, True])
def test_bands_are_walked_across(along_x):
    """Of five by three tiles in bands of two, the third band has one; by hand."""
    config = NativeConfig(
        **{"slabs": 1, "tokens": 32, "stages": 2, "box": 32, "boxes": 2},
        **{"group": 2, "along_x": along_x},
    )
    n, m = (3 * 64, 5 * 32) if along_x else (5 * 64, 3 * 32)
    (problem,) = problem_struct(sized(n), config, m, 2)
    order = [(c // 64, t // 32) for c, t in Schedule(problem, config, 0, 1, 0)]
    if along_x:
        order = [(inner, outer) for outer, inner in order]
    bands = [(0, 1), (2, 3), (4,)]
    assert order == [(inner, outer) for band in bands for outer in range(3) for inner in band]
