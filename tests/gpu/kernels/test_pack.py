"""pack24 on the GPU equals its reference, strided and wide, and names the first overfull row."""

from __future__ import annotations

import kernel_checks as checks
import pytest
import torch

from slidesparse.errors import PatternError
from slidesparse.kernels import pack24, reference
from slidesparse.kernels.pack import pack24_op
from slidesparse.pattern import Pattern
from slidesparse.slide import prune_magnitude, slide

CUDA = "cuda:0"
FP8, INT8 = checks.QUANTISED
each_dtype = pytest.mark.parametrize("dtype", checks.QUANTISED, ids=checks.short)


def assert_same(made, want):
    for a, b in zip(made, want, strict=True):
        assert a.dtype is b.dtype
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@each_dtype
@pytest.mark.parametrize("text", ["2:4", "6:8", "14:16"])
@pytest.mark.parametrize("shape", [(1, 64), (129, 3584), (3584, 18944)], ids=str)
def test_equals_the_reference(dtype, text, shape, seed):
    pattern = Pattern.parse(text)
    n, k = shape
    w = prune_magnitude(checks.draw(n, k, torch.float32, seed, CUDA) * 30, pattern).to(dtype)
    slid = slide(w, pattern)
    made = pack24(slid)
    assert_same(made, reference.pack24(slid))
    assert_same(pack24(slid), made)
    back = reference.unpack24(*made).view(torch.uint8)
    # FP8's negative zeros are dropped: they are no values.
    same = back == slid.view(torch.uint8)
    assert bool((same | (slid.view(torch.uint8) == 0x80)).all() if dtype is FP8 else same.all())


@each_dtype
def test_strided_rows_and_overfull_ones(dtype):
    w = torch.zeros(65, 4096 + 32, device=CUDA).to(dtype)
    w.view(torch.uint8)[:, ::3] = 0x38
    w.view(torch.uint8)[:, ::6] = 0
    full = torch.full_like(w.view(torch.uint8), 0x38).view(dtype)
    with pytest.raises(PatternError, match="row 0 has more than two"):
        pack24(full)
    part = w[:, 32:]
    assert_same(pack24(part), reference.pack24(part))
    w.view(torch.uint8)[64, 4093:4096] = 0x38
    w.view(torch.uint8)[17, 4:8] = 0x38
    with pytest.raises(PatternError, match="row 17 has more than two"):
        pack24(w)


def test_the_op_runs_in_a_graph(seed):
    """Without the check, which waits."""
    w = torch.zeros(129, 3584, dtype=INT8, device=CUDA)
    w[:, ::2] = 5
    pack24_op(w)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = pack24_op(w)
    w.zero_()
    w[:, 1::2] = -7
    graph.replay()
    assert_same(made[:2], reference.pack24(w))
    assert int(made[2]) == 129
    torch.library.opcheck(pack24_op, (w,))
