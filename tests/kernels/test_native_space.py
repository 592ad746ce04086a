"""The configurations on offer: they fit, they differ, and the model's order is sane."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_checks import SHAPES, SMS

from slidesparse.kernels.native import space
from slidesparse.kernels.native.config import WGMMA_N, NativeConfig
from slidesparse.kernels.native.gemm import unfit
from slidesparse.kernels.native.space import FEW_TOKENS, candidates, neighbours, predicted_cycles
from slidesparse.problem import DType

EVERY = 10_000
DTYPES = (DType.FP8, DType.INT8)
SIZES = [*SHAPES, (8, 32), (64, 64), (1040, 96), (4608, 3584), (151936, 2048)]
TOKENS = (1, 7, 16, 17, 64, 65, 129, 512, 4096, 16384, 65536)

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_size = pytest.mark.parametrize(("n", "k"), SIZES)


@each_dtype
@each_size
@pytest.mark.parametrize("m", TOKENS)
def test_candidates_fit_and_differ(m, n, k, dtype):
    offered = candidates(m, n, k, dtype, EVERY, SMS)
    assert offered
    assert len(set(offered)) == len(offered)
    for config in offered:
        assert unfit(config, k) is None
        assert config.tokens in WGMMA_N[str(dtype)]
        assert NativeConfig.from_params(config.params()) == config
        if m <= FEW_TOKENS:
            assert config.tokens >= m, "a weight would be read twice"


@each_dtype
@pytest.mark.parametrize("count", [1, 4, 12, 200])
@pytest.mark.parametrize("m", [1, 64, 65, 16384])
def test_the_best_are_offered_and_no_more_than_asked_for(m, count, dtype):
    n, k = SHAPES[0]
    offered = candidates(m, n, k, dtype, count, SMS)
    every = candidates(m, n, k, dtype, EVERY, SMS)
    most = 3 * count if m <= FEW_TOKENS else count
    assert offered == every[:most]
    assert len(offered) == min(most, len(every))
    cycles = [predicted_cycles(config, m, n, k, SMS) for config in offered]
    assert cycles == sorted(cycles)


@each_dtype
def test_two_runs_agree(dtype):
    for n, k in SHAPES:
        for m in (1, 64, 65, 16384):
            assert candidates(m, n, k, dtype, 12, SMS) == candidates(m, n, k, dtype, 12, SMS)


@given(
    m=st.integers(1, 70_000),
    n=st.integers(1, 20_000).map(lambda eighths: 8 * eighths),
    k=st.integers(1, 900).map(lambda words: 32 * words),
    dtype=st.sampled_from(DTYPES),
    sms=st.sampled_from([78, 114, 132]),
)
@settings(max_examples=60)
def test_something_is_offered_for_every_problem(m, n, k, dtype, sms):
    first, *_ = candidates(m, n, k, dtype, 1, sms)
    assert unfit(first, k) is None
    assert first.tokens in WGMMA_N[str(dtype)]
    assert first.tokens < 2 * max(m, 64)


@pytest.mark.parametrize("sms", [16, 26, 60])
@pytest.mark.parametrize("m", [1, 64, 512])
def test_a_slice_of_a_gpu_has_candidates_too(m, sms):
    """MIG's slices of an H200."""
    assert candidates(m, 4608, 3584, DType.FP8, 12, sms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_products_begin_with_large_tiles(dtype):
    n, k = 37888, 3584
    first = [(64 * c.slabs, c.tokens) for c in candidates(16384, n, k, dtype, 3, SMS)]
    assert {(128, 256), (192, 192)} & set(first), first


def test_few_tokens_and_a_short_output_split_k():
    """More blocks than tiles: without a split most multiprocessors would have nothing to do."""
    for m in (1, 16):
        best = candidates(m, 3584, 18944, DType.FP8, 4, SMS)[0]
        assert best.cluster_k > 1
    assert all(c.cluster_k == 1 for c in candidates(16384, 3584, 18944, DType.FP8, EVERY, SMS))


@each_dtype
@pytest.mark.parametrize(
    ("k", "most"), [(32, 1), (128, 1), (256, 1), (288, 2), (512, 2), (1024, 4)]
)
def test_k_is_not_split_into_more_parts_than_pairs_of_stages(k, most, dtype):
    offered = candidates(16, 4608, k, dtype, EVERY, SMS)
    assert max(config.cluster_k for config in offered) == most


def test_predicted_cycles_grow_with_every_side():
    config = NativeConfig()
    base = predicted_cycles(config, 4096, 4096, 4096, SMS)
    assert base > 0
    assert predicted_cycles(config, 8192, 4096, 4096, SMS) > base
    assert predicted_cycles(config, 4096, 8192, 4096, SMS) > base
    assert predicted_cycles(config, 4096, 4096, 8192, SMS) > base
    assert predicted_cycles(config, 4096, 4096, 4096, SMS // 2) > base


def test_predicted_cycles_are_within_reach_of_the_tensor_cores():
    """A multiprocessor multiplies 64 x N x 64 (2:4) in no less than N / 2 cycles."""
    for m, n, k in ((16384, 37888, 3584), (512, 4608, 4800)):
        for config in candidates(m, n, k, DType.FP8, EVERY, SMS):
            least = m * n * k / (64 * 64 * 2) / SMS
            assert predicted_cycles(config, m, n, k, SMS) > least


@each_dtype
@each_size
@pytest.mark.parametrize("m", [1, 64, 65, 512, 16384])
def test_neighbours_fit_and_differ(m, n, k, dtype):
    for config in candidates(m, n, k, dtype, 6, SMS):
        near = neighbours(config, m, n, k)
        assert config not in near
        assert len(set(near)) == len(near)
        for other in near:
            assert unfit(other, k) is None
            tile = (config.slabs, config.tokens, config.blocks, config.cluster_k, config.resident)
            assert tile == (
                *(other.slabs, other.tokens, other.blocks),
                *(other.cluster_k, other.resident),
            )


def test_neighbours_vary_raster_cluster_stages_and_boxes():
    m, (n, k) = 16384, SHAPES[0]
    config = NativeConfig(slabs=2, tokens=256, stages=4, box=64, boxes=3, group=16)
    near = neighbours(config, m, n, k)
    assert {(c.along_x, c.group) for c in near} >= {(x, g) for x in (False, True) for g in (4, 32)}
    assert {(c.cluster_w, c.cluster_x) for c in near} >= {(2, 1), (1, 2)}
    assert {c.stages for c in near} >= {3, 4}
    assert len({c.box for c in near}) > 1


def test_among_few_tokens_only_the_raster_and_the_stages_vary():
    config = NativeConfig(slabs=1, tokens=16, stages=8, cluster_k=2, box=8, boxes=2, group=1)
    near = neighbours(config, 16, 3584, 18944)
    assert {(c.cluster_w, c.cluster_x, c.cluster_k, c.box) for c in near} == {(1, 1, 2, 8)}
    assert {c.stages for c in near} == {7, 8}
    assert not any(c.along_x for c in near), "one tile of tokens has no raster along them"


def test_one_tile_has_no_other_raster():
    config = NativeConfig(slabs=1, tokens=64, stages=4, box=64, boxes=2, group=1)
    near = neighbours(config, 64, 64, 3584)
    assert {(c.along_x, c.group) for c in near} == {(False, 1)}
    assert {c.stages for c in near} == {3}


def test_two_stages_are_the_fewest():
    config = NativeConfig(slabs=1, tokens=64, stages=2, box=64, boxes=2, group=1)
    assert neighbours(config, 64, 64, 3584) == []


def test_what_does_not_fit_k_is_not_offered(monkeypatch):
    """`unfit` is asked, with K' and not K."""
    n, k = SHAPES[0]
    asked = []

    def refuse(config, given):
        asked.append(given)
        return "no" if config.tokens == 256 else None

    monkeypatch.setattr(space, "unfit", refuse)
    assert 256 not in {c.tokens for c in candidates(16384, n, k, DType.FP8, EVERY, SMS)}
    assert neighbours(NativeConfig(), 16384, n, k) == []
    assert set(asked) == {k}
