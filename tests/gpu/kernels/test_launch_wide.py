"""Tensors of more than 2^31 elements: 32-bit offsets would crash or write elsewhere."""

from __future__ import annotations

import kernel_checks as checks
import pytest
import torch
from kernel_variants import BY_NAME

from slidesparse.devices import detect
from slidesparse.kernels import dequantize, pack24, quantize, reference
from slidesparse.pattern import DENSE, Pattern

CUDA = "cuda:0"
FP8, INT8 = checks.QUANTISED
SIX_EIGHT = Pattern.parse("6:8")
BF16, INT32 = torch.bfloat16, torch.int32
CASES = [
    # variant, M, K, source, dtype, pattern: K = 18944 is F of Qwen2.5-7B, 37888 its gate_up.
    ("quantize", 131072, 18944, BF16, INT8, SIX_EIGHT),
    ("quantize", 131072, 18944, BF16, FP8, DENSE),
    ("add_rmsnorm", 131072, 18944, BF16, FP8, SIX_EIGHT),
    ("silu_mul", 65536, 18944, BF16, FP8, DENSE),
    ("silu_mul", 131072, 18944, BF16, INT8, SIX_EIGHT),
    ("dequantize", 65536, 37888, INT32, BF16, DENSE),
    ("dequantize_all", 65536, 37888, BF16, BF16, DENSE),
    ("dequant_add_rmsnorm", 131072, 18944, BF16, INT8, SIX_EIGHT),
    ("dequant_silu_mul", 65536, 18944, INT32, FP8, SIX_EIGHT),
]
PER_ROW = ("x", "gate_up", "a", "residual", "row_scale")


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[1]}-{c[4]}".replace("torch.", ""))
def test_the_first_the_last_and_the_crossing_rows_are_right(case, gpu, seed):
    if detect(gpu).memory_mib < 100_000:
        pytest.skip("needs 100 GB of GPU memory")
    name, m, k, source, dtype, pattern = case
    variant = BY_NAME[name]
    torch.cuda.empty_cache()
    t = variant.draw(m, k, source, seed, CUDA)
    assert t[variant.first].numel() > 2**31
    poisoned = variant.poisoned(t, dtype, pattern)
    outs = tuple(each.view for each in poisoned)
    if name == "add_rmsnorm":
        made = variant.call(t, dtype, pattern)
    else:
        made = variant.into(t, dtype, pattern, outs)
    for start in (0, 2**31 // t[variant.first].shape[1] - 32, m - 64):
        rows = slice(start, start + 64)
        part = {n: tensor[rows] if n in PER_ROW else tensor for n, tensor in t.items()}
        want = variant.reference(part, dtype, pattern)
        variant.assert_right(tuple(out[rows] for out in made), want)
    del t, outs, made, poisoned
    torch.cuda.empty_cache()


FAR = 2**30 + 64
"""Elements between rows: the third of three lies beyond 2^31."""


def far(x):
    """The same rows far apart: few elements in much memory."""
    out = torch.empty_strided(x.shape, (FAR, 1), dtype=x.dtype, device=x.device)
    return out.copy_(x)


@pytest.mark.parametrize("name", ["x", "q"])
def test_quantize_of_a_few_rows_far_apart(name, seed):
    x = checks.draw(3, 64, BF16, seed, CUDA)
    q = torch.empty(3, SIX_EIGHT.expanded_k(64), dtype=INT8, device=CUDA)
    out = (far(q) if name == "q" else q, torch.empty(3, device=CUDA))
    quantize(far(x) if name == "x" else x, INT8, SIX_EIGHT, out=out)
    want = reference.quantize(x, INT8, SIX_EIGHT)
    for got, wanted in zip(out, want, strict=True):
        checks.assert_same_bits(got.contiguous(), wanted)


@pytest.mark.parametrize("name", ["a", "residual", "out"])
def test_dequantize_of_a_few_rows_far_apart(name, seed):
    a, residual = (checks.draw(3, 64, BF16, seed + i, CUDA) for i in range(2))
    row, column = checks.positive(3, seed, CUDA), checks.positive(64, seed, CUDA)
    t = {"a": a, "residual": residual, "out": torch.empty(3, 64, dtype=BF16, device=CUDA)}
    t[name] = far(t[name])
    made = dequantize(t["a"], row, column, BF16, residual=t["residual"], out=t["out"])
    want = reference.dequantize(a, row, column, BF16, residual=residual)
    checks.assert_rounded_once(made.contiguous(), want)


def test_pack24_of_a_wide_matrix():
    """65536 x 37888 bytes: rows beyond 2^31."""
    w = torch.zeros(65536, 37888, dtype=INT8, device=CUDA)
    w[:, 1::4] = 3
    w[:, 3::4] = torch.arange(65536, device=CUDA).to(INT8)[:, None]
    values, metadata = pack24(w)
    for rows in (slice(0, 64), slice(65472, 65536)):
        want = reference.pack24(w[rows])
        assert torch.equal(values[rows], want[0])
        assert torch.equal(metadata[rows], want[1])
