"""The native GEMM against float64: every configuration, odd sizes, patterns, dtypes, 2^31."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import kernel_checks as checks
import native_layers as layers
import pytest
import torch
from native_layers import BF16, CUDA, FP8, FP16, HAND, INT8, INT32

from slidesparse.devices import Device, detect
from slidesparse.kernels import quantize
from slidesparse.kernels.native import NativeConfig, native_gemm, pack, unpack
from slidesparse.kernels.native.gemm import unfit, variant_of
from slidesparse.kernels.native.program import compile_variants
from slidesparse.kernels.native.source import Variant
from slidesparse.kernels.native.space import candidates, neighbours
from slidesparse.kernels.reference import FP8_NAN
from slidesparse.pattern import Pattern
from slidesparse.slide import slide
from slidesparse.tensors import DTYPES

EVERY = 10**6
SWEEP_N = 712
"""Twelve slabs, the last one with eight channels: every tile and cluster has a ragged end."""

# M, K', with neighbours: even and odd numbers of stages; 2048 is long enough to be split in four.
SWEEP = [(16, 2048, True), (64, 2048, True), (200, 1088, False), (1000, 1024, True)]
SWEEP_FORMS = [(FP8, BF16, True), (INT8, INT32, False)]
"""Neighbours only once: they differ from candidates in nothing that dtypes change."""

ROWS = [1, 7, 129, 16385]
COLUMNS = [8, 72, 1512]
RAW_COLUMNS = [5, 72, 1509]
WIDTHS = [32, 96, 352, 896, 4800]
PATTERNS = [Pattern.parse(text) for text in ("2:4", "4:6", "6:8", "8:10", "14:16")]
LARGE = 65536, 37888, 512
"""M and N of Qwen2.5-7B's gate_up in a long prefill: the output passes 2^31 elements."""

LARGE_MIB = 60_000
CHECKED_ROWS = 2048
NO_WORSE = 1.05
each_form = pytest.mark.parametrize(
    ("dtype", "out"), layers.FORMS, ids=lambda value: checks.short(value)
)
each_pattern = pytest.mark.parametrize("pattern", PATTERNS, ids=str)


def space_of(m: int, k: int, dtype: torch.dtype, near: bool) -> list[NativeConfig]:
    """All candidates, and their neighbours."""
    sms = torch.cuda.get_device_properties(CUDA).multi_processor_count
    found = candidates(m, SWEEP_N, k, DTYPES[dtype], EVERY, sms)
    around = [other for c in found if near for other in neighbours(c, m, SWEEP_N, k)]
    return list(dict.fromkeys([*found, *around]))


def needed() -> Iterator[Variant]:
    """What most of the tests below will load."""
    for (m, k, near), (dtype, out, most) in product(SWEEP, SWEEP_FORMS):
        for config in space_of(m, k, dtype, near and most):
            yield variant_of(config, k, DTYPES[dtype], DTYPES[out])
    for config, k, (dtype, out) in product(HAND.values(), WIDTHS, layers.FORMS):
        if not unfit(config, k):
            yield variant_of(config, k, DTYPES[dtype], DTYPES[out])


@pytest.fixture(scope="module", autouse=True)
def _compiled(gpu: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Everything compiled side by side, ahead: one after another would take minutes."""
    for _ in layers.on_hopper(gpu, tmp_path_factory.mktemp("cache")):
        failed = compile_variants(needed())
        assert not failed, "\n".join(failed)
        yield


@pytest.mark.parametrize(("dtype", "out", "most"), SWEEP_FORMS, ids=lambda v: checks.short(v))
@pytest.mark.parametrize(("m", "k", "near"), SWEEP)
def test_every_configuration_of_the_space(m, k, near, dtype, out, most, seed):
    layer = layers.draw(m, SWEEP_N, k, dtype, out, seed, bias=out is BF16)
    listed = space_of(m, k, dtype, near and most)
    assert layers.check_configs(layer, listed) == len(listed) >= 20


@each_form
def test_odd_sizes(dtype, out, seed):
    """Every kind of configuration; with and without a bias, in turn."""
    columns = RAW_COLUMNS if out is INT32 else COLUMNS
    whole = (dtype, out) in {(FP8, BF16), (INT8, INT32)}
    for turn, (k, n, m) in enumerate(product(WIDTHS, columns, ROWS)):
        if not whole and (turn // len(ROWS) + turn) % len(ROWS):
            continue  # Outputs that differ in rounding only: each pair of N and K' with one M.
        bias = out is not INT32 and turn % 3 == 1
        layer = layers.draw(m, n, k, dtype, out, seed + turn, bias=bias)
        assert layer.weight.k == k
        assert layers.check_configs(layer, HAND.values())


@pytest.mark.parametrize(("dtype", "out"), layers.FORMS[:-1], ids=checks.short)
def test_a_bias_is_added_or_not(dtype, out, seed):
    layer = layers.draw(129, 1512, 896, dtype, out, seed, bias=True)
    for each in (layer, replace(layer, bias=None)):
        assert layers.check_configs(each, HAND.values())


@each_pattern
@each_form
def test_patterns_give_the_unexpanded_product(pattern, dtype, out, seed):
    """K is no multiple of the block; the second time tokens are lifted by the quantising kernel."""
    layer = layers.draw(129, 456, 1202, dtype, out, seed, pattern, bias=out is BF16)
    assert layer.weight.k == pattern.expanded_k(1202) == layer.lifted.shape[1]
    assert layers.check_configs(layer, HAND.values())
    hidden = checks.draw(129, 1202, torch.bfloat16, seed + 9, CUDA)
    lifted, x_scale = quantize(hidden, dtype, pattern)
    dense, _ = quantize(hidden, dtype)
    fused = replace(layer, x=dense, x_scale=x_scale)
    for name in ("plain", "K in 2"):
        layers.assert_right(layers.run(fused, HAND[name], lifted), fused)


@pytest.mark.parametrize("k", [3584, 18944])
@pytest.mark.parametrize("text", ["2:4", "6:8", "8:10"])
def test_fp8_is_as_exact_as_torch_with_fast_accumulation(text, k, seed):
    layer = layers.draw(1000, 1536, k, FP8, BF16, seed, Pattern.parse(text))
    theirs = torch._scaled_mm(
        layer.x,
        layer.w.T,
        scale_a=layer.x_scale[:, None],
        scale_b=layer.w_scale[None],
        out_dtype=BF16,
        use_fast_accum=True,
    )
    limit = NO_WORSE * layers.relative_error(theirs, layer.truth)
    for name in ("plain", "three slabs", "cluster 2x1", "K in 2", "K in 4", "K in 8"):
        if unfit(HAND[name], layer.weight.k):
            continue
        error = layers.relative_error(layers.run(layer, HAND[name]), layer.truth)
        assert error <= limit, f"{name}: {error:.3e}, and {limit:.3e} is allowed"


def test_the_largest_int8_sums_are_exact():
    """All -128, two of four kept: 14208 products of 16384 are more than float32 counts."""
    x = torch.full((129, 28416), -128, dtype=INT8, device=CUDA)
    w = torch.zeros(72, 28416, dtype=INT8, device=CUDA)
    w[:, 1::2] = -128
    w[::3, 1::2] = 127
    one = torch.ones(129, device=CUDA), torch.ones(72, device=CUDA)
    layer = layers.Layer(x, w, *one, None, layers.TWO_FOUR, INT32)
    assert int(layer.truth.max()) == 14208 * 2**14
    assert layers.check_configs(layer, HAND.values())


def test_a_row_that_is_not_finite_spoils_no_other(seed):
    layer = layers.draw(129, 456, 896, FP8, BF16, seed)
    bits = layer.x.view(torch.uint8)
    bits[17] = FP8_NAN
    layer.x_scale[101] = float("inf")
    spoilt = [17, 101]
    kept = [row for row in range(129) if row not in spoilt]
    rest = replace(layer, x=bits[kept].view(FP8), x_scale=layer.x_scale[kept])
    for config in HAND.values():
        if unfit(config, layer.weight.k):
            continue
        out = layers.run(layer, config)
        assert not out[spoilt].isfinite().any()
        layers.assert_right(out[kept], rest)


@pytest.mark.parametrize("dtype", checks.QUANTISED, ids=checks.short)
@pytest.mark.parametrize("shape", [(1, 32), (5, 96), (1509, 352), (20000, 896)], ids=str)
def test_packing_gives_the_same_bytes_as_on_the_cpu(shape, dtype, seed):
    """20000 channels are more than one step of packing takes."""
    n, k = shape
    w = slide(layers.draw(1, n, k, dtype, BF16, seed).w, layers.TWO_FOUR)
    packed, here = pack(w), pack(w.cpu())
    assert (packed.n, packed.k, packed.dtype) == (here.n, here.k, here.dtype) == (*shape, dtype)
    assert torch.equal(packed.data.cpu(), here.data)
    back = unpack(packed)
    assert back.is_cuda
    assert torch.equal(back.cpu().view(torch.uint8), unpack(here).view(torch.uint8))
    # An FP8 zero may lose its sign.
    assert torch.equal(back.float(), w.float())


@pytest.mark.parametrize(("dtype", "out"), [(FP8, BF16), (INT8, INT32)], ids=checks.short)
@pytest.mark.parametrize("gap", [16, 32, 4096])
def test_rows_may_be_strided(gap, dtype, out, seed):
    """Around the tokens is NaN, or 127."""
    layer = layers.draw(129, 456, 352, dtype, out, seed)
    wide = torch.full((129, 352 + gap), 0x7F, dtype=torch.uint8, device=CUDA)
    x = wide[:, 16 : 16 + 352]
    x.copy_(layer.lifted.view(torch.uint8))
    for config in HAND.values():
        if not unfit(config, 352):
            layers.assert_right(layers.run(layer, config, x.view(dtype)), layer)


def test_the_stride_of_a_single_row_means_nothing(seed):
    layer = layers.draw(1, 456, 352, INT8, INT32, seed)
    wide = torch.full((2, 352 + 5), 99, dtype=INT8, device=CUDA)
    x = wide[:1, :352]
    x.copy_(layer.lifted)
    assert x.stride(0) % 16
    layers.assert_right(layers.run(layer, HAND["plain"], x), layer)


@each_form
def test_no_rows(dtype, out, seed):
    layer = layers.draw(0, 72, 896, dtype, out, seed)
    for name in ("plain", "cluster 2x1", "K in 2"):
        made = native_gemm(layer.weight, layer.lifted, *layer.scales, HAND[name], out_dtype=out)
        assert made.shape == (0, 72)
        assert made.dtype is out
        assert layers.run(layer, HAND[name]).shape == (0, 72)
    torch.cuda.synchronize()


@pytest.mark.parametrize("config", ["plain", "bands along the tokens", "cluster 2x1"])
@pytest.mark.parametrize(("dtype", "out"), [(FP8, BF16), (INT8, INT32)], ids=checks.short)
def test_m_65536_of_qwen_gate_up_is_right_to_the_last_row(config, dtype, out, gpu, seed):
    """32-bit offsets crash or write elsewhere."""
    if detect(gpu).memory_mib < LARGE_MIB:
        pytest.skip(f"needs {LARGE_MIB} MiB of GPU memory")
    torch.cuda.empty_cache()
    m, n, k = LARGE
    assert m * n > 2**31
    layer = layers.draw(m, n, k, dtype, out, seed)
    made = layers.run(layer, HAND[config])
    for start in range(0, m, CHECKED_ROWS):
        rows = slice(start, start + CHECKED_ROWS)
        part = replace(layer, x=layer.x[rows], x_scale=layer.x_scale[rows])
        layers.assert_right(made[rows], part)


def test_an_fp16_output_that_is_too_large_is_infinite():
    """And not clamped: as everywhere in torch."""
    x = torch.full((3, 64), 448.0, device=CUDA).to(FP8)
    w = torch.zeros(8, 64, device=CUDA)
    w[:4, ::2] = 448.0
    ones = torch.ones(8, device=CUDA), torch.ones(3, device=CUDA)
    out = native_gemm(pack(w.to(FP8)), x, *ones, HAND["plain"], out_dtype=FP16)
    assert bool((out[:, :4] == float("inf")).all())
    assert bool((out[:, 4:] == 0).all())
