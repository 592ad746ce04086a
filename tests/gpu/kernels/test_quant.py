"""quantize on the GPU: every bit, against the reference, the oracle in NumPy, and vLLM."""

from __future__ import annotations

import kernel_checks as checks
import kernel_oracle as oracle
import kernel_variants
import numpy as np
import pytest
import torch
from kernel_variants import BY_NAME

from slidesparse.kernels import quantize, reference
from slidesparse.kernels.config import Config
from slidesparse.pattern import DENSE, Pattern
from slidesparse.slide import prune_magnitude, slide

CUDA = "cuda:0"
FP8, INT8 = checks.QUANTISED
SIX_EIGHT = Pattern.parse("6:8")
NAN, INF = float("nan"), float("inf")
each_dtype = pytest.mark.parametrize("dtype", checks.QUANTISED, ids=checks.short)


def test_every_pattern_dtype_and_source(seed):
    kernel_variants.check_all(
        {
            "variant": BY_NAME["quantize"],
            "m": 129,
            "k": 576,
            "source": source,
            "dtype": dtype,
            "pattern": pattern,
            "seed": seed,
            "device": CUDA,
            "gap": 2 * (pattern.block % 4),
            "config": Config(block=512, warps=4),
            "wide": pattern.windows % 2 == 0,
        }
        for source in checks.FLOATS
        for dtype in checks.QUANTISED
        for pattern in checks.PATTERNS
    )


def assert_oracle(x, dtype, pattern, scale=None):
    """The kernel agrees with NumPy in every bit."""
    given = None if scale is None else np.float32(scale)
    with np.errstate(all="ignore"):
        want = oracle.quantized(x.float().numpy(), dtype is INT8, pattern.block, given)
    on_gpu = None if scale is None else torch.tensor([scale], device=CUDA)
    q, scales = quantize(x.to(CUDA), dtype, pattern, static_scale=on_gpu)
    np.testing.assert_array_equal(scales.cpu().numpy(), want[1])
    codes = q.view(torch.uint8).cpu().numpy()
    np.testing.assert_array_equal(oracle.one_nan(codes) if dtype is FP8 else codes, want[0])


def test_fp8_ties_go_to_even():
    """Quotients between two codes and beside them, under 200 scales: the division is exact."""
    tops = np.random.default_rng(0).uniform(0.01, 1000, 200).astype(np.float32)
    rows = []
    for top in tops:
        x = (oracle.FP8_TIES * np.float64(top / np.float32(448))).astype(np.float32)
        beside = [np.nextafter(x, np.float32(side)) for side in (INF, -INF)]
        rows.append(np.concatenate([x, -x, *beside, [top]]))
    x = torch.from_numpy(np.stack(rows))
    assert_oracle(x, FP8, DENSE)
    for scale in (1.0, 0.0371):
        assert_oracle(x * (scale * 448 / 1000), FP8, DENSE, scale)


def test_int8_ties_go_to_even():
    x = torch.cat([torch.arange(-127, 127) + 0.5, torch.tensor([127.0])])[None]
    assert_oracle(torch.cat([x * 2.0**power for power in range(-30, 30)]), INT8, DENSE)


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16], ids=checks.short)
def test_int8_divides_by_a_static_scale(source):
    """Multiples of half a scale and their neighbours: a product with the inverse misses some."""
    for scale in (*np.random.default_rng(0).uniform(1e-5, 1, 50).astype(np.float32), 2.0**-126):
        x = (np.arange(-260, 261) * np.float64(0.5) * np.float64(scale)).astype(np.float32)
        beside = [np.nextafter(x, np.float32(side)) for side in (INF, -INF)]
        rows = torch.from_numpy(np.stack([x, *beside])).to(source)
        assert_oracle(rows, INT8, SIX_EIGHT, float(scale))


def test_a_static_scale_reaches_the_ends():
    x = torch.tensor([[-INF, -3e38, -129.0, -128.4, -127.5, 126.5, 127.4, 500.0, INF, NAN]])
    one = torch.ones(1, device=CUDA)
    q, _ = quantize(x.to(CUDA), INT8, static_scale=one)
    assert q[0].tolist() == [-128, -128, -128, -128, -128, 126, 127, 127, 127, 0]
    q, _ = quantize(4 * x.to(CUDA), FP8, static_scale=one)
    ends = q[0].float()[[0, 1, 2, 7, 8]]
    assert ends.tolist() == [-448.0, -448.0, -448.0, 448.0, 448.0]
    assert checks.is_nan(q)[0].tolist() == [False] * 9 + [True]


@each_dtype
def test_a_static_scale_is_read_when_the_kernel_runs(dtype, seed):
    """A replayed graph sees another value in the same place, without a host that waits for it."""
    x = checks.draw(129, 576, torch.bfloat16, seed, CUDA)
    scale = torch.full((1,), 0.02, device=CUDA)
    quantize(x, dtype, SIX_EIGHT, static_scale=scale)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = quantize(x, dtype, SIX_EIGHT, static_scale=scale)
    for value in (0.01, 0.5):
        scale.fill_(value)
        graph.replay()
        for a, b in zip(made, reference.quantize(x, dtype, SIX_EIGHT, scale), strict=True):
            checks.assert_same_bits(a, b)


@each_dtype
@pytest.mark.parametrize("pattern", [DENSE, SIX_EIGHT], ids=str)
def test_special_rows(dtype, pattern):
    """Zeros of both signs, huge, tiny and subnormal values, NaN and infinity; static scales too."""
    rows = [
        [0.0, -0.0, 0.0],
        [3e38, -1e38, 1.0],
        [torch.finfo(torch.float32).max, 1e38, 0.0],
        [1e-40, -3e-41, 1e-45],
        [1e-37, -5e-38, 2e-39],
        [4.8e-6, 1e-6, -1e-3],
        [1.0, NAN, -2.0],
        [1.0, INF, -2.0],
        [-INF, NAN, 2.0],
        [1.0, 2.0, 3.0],
    ]
    x = torch.tensor([[*row, *([0.0] * 18)] for row in rows])
    assert_oracle(x, dtype, pattern)
    for scale in (1.0, 0.02, 1e30, 2.0**-126):
        assert_oracle(x, dtype, pattern, scale)
    # A zero scale makes infinity of any quotient; ours of tiny values stays finite.
    for scale in (0.0, NAN, INF):
        assert_oracle(x[[0, 1, 2, 6, 7, 8, 9]], dtype, pattern, scale)


@each_dtype
def test_random_bits(dtype, seed):
    """Every bfloat16 there is, NaN and infinity in rows of their own; then random float32 bits."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    assert_oracle(every[every.isfinite()].reshape(-1, 255), dtype, SIX_EIGHT)
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, (200, 333), generator=generator).to(torch.int32)
    x = bits.view(torch.float32).nan_to_num(1.0, 2.0, 3.0)
    assert_oracle(x, dtype, SIX_EIGHT)
    assert_oracle(x, dtype, SIX_EIGHT, 3.7)


@pytest.mark.parametrize("text", ["4:6", "6:8", "14:16"])
def test_slide_times_lift_is_the_dense_product(text, seed):
    pattern = Pattern.parse(text)
    w = prune_magnitude(checks.draw(64, 3588, torch.float32, seed) * 40, pattern).to(INT8)
    x = checks.draw(33, 3588, torch.bfloat16, seed, CUDA)
    q, _ = quantize(x, INT8, pattern)
    dense, _ = quantize(x, INT8)
    # Float64 on the CPU: whole numbers below 2^53 are exact.
    left = slide(w, pattern).double() @ q.cpu().double().T
    assert torch.equal(left, w.double() @ dense.cpu().double().T)


def test_narrow_offsets_serve_small_tensors(seed):
    for wide in (False, True):
        kernel_variants.check_against_reference(
            BY_NAME["quantize"], 129, 3584, torch.bfloat16, FP8, SIX_EIGHT, seed, CUDA,
            config=Config(block=2048, warps=4), wide=wide,
        )  # fmt: skip


@pytest.mark.parametrize("k", [576, 3584, 18944])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16], ids=checks.short)
def test_the_same_as_vllm_for_finite_rows(k, source, seed):
    """Bytes and scales are vLLM's. Not compared: rows with NaN or infinity, undefined there."""
    ops = pytest.importorskip("vllm._custom_ops", reason="vLLM is not installed")
    x = checks.draw(129, k, source, seed, CUDA)
    theirs, their_scale = ops.scaled_fp8_quant(x, use_per_token_if_dynamic=True)
    q, scale = quantize(x, FP8)
    checks.assert_same_bits(scale, their_scale.reshape(-1))
    checks.assert_same_bits(q, theirs)
    theirs, their_scale = ops.scaled_int8_quant(x)[:2]
    q, scale = quantize(x, INT8)
    checks.assert_same_bits(scale, their_scale.reshape(-1))
    checks.assert_same_bits(q, theirs)


@pytest.mark.parametrize("k", [576, 3584, 18944])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16], ids=checks.short)
def test_the_same_as_vllm_under_a_static_scale(k, source, seed):
    """Bytes are vLLM's, infinity included; NaN is not compared: FP8 keeps it, vLLM does not."""
    ops = pytest.importorskip("vllm._custom_ops", reason="vLLM is not installed")
    x = checks.draw(129, k, source, seed, CUDA)
    x[3, :2] = torch.tensor([INF, -INF])
    for value in (0.0371, 0.004, 1.0):
        scale = torch.full((1,), value, device=CUDA)
        q, made = quantize(x, FP8, static_scale=scale)
        checks.assert_same_bits(q, ops.scaled_fp8_quant(x, scale)[0])
        assert made.tolist() == [scale.item()] * 129
        q, _ = quantize(x, INT8, static_scale=scale)
        checks.assert_same_bits(q, ops.scaled_int8_quant(x, scale)[0])


def test_a_row_of_zeros_is_vllm_s_too():
    """The scale of FP8 as well; INT8 gives 2^-126 where vLLM's is zero, which has no inverse."""
    ops = pytest.importorskip("vllm._custom_ops", reason="vLLM is not installed")
    x = torch.zeros(3, 576, dtype=torch.bfloat16, device=CUDA)
    theirs, their_scale = ops.scaled_fp8_quant(x, use_per_token_if_dynamic=True)
    q, scale = quantize(x, FP8)
    checks.assert_same_bits(scale, their_scale.reshape(-1))
    checks.assert_same_bits(q, theirs)


@each_dtype
def test_the_reference_computes_the_same_on_both_devices(dtype, seed):
    x = checks.draw(64, 3588, torch.bfloat16, seed)
    here = reference.quantize(x, dtype, SIX_EIGHT)
    there = reference.quantize(x.to(CUDA), dtype, SIX_EIGHT)
    for a, b in zip(here, there, strict=True):
        checks.assert_same_bits(b.cpu(), a)
