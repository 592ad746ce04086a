"""The native GEMM on the host: what it refuses, what a launch is made of, what torch sees."""

from __future__ import annotations

import ctypes
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_checks import SMALL
from torch._subclasses.fake_tensor import FakeTensorMode

from slidesparse.errors import DeviceError, KernelError
from slidesparse.kernels.native import gemm as module
from slidesparse.kernels.native.config import NativeConfig
from slidesparse.kernels.native.gemm import (
    PROBLEM,
    Launch,
    NativeGemm,
    native_gemm,
    problem_struct,
    refusal,
    stages_of,
    unfit,
)
from slidesparse.kernels.native.source import Variant
from slidesparse.kernels.native.weight import PackedWeight
from slidesparse.problem import DType

FP8, INT8, BF16, FP16 = DType.FP8, DType.INT8, DType.BF16, DType.FP16
FP32, INT32 = DType.FP32, DType.INT32


def weight_of(n, k, dtype=torch.int8):
    """A packed weight of nothing: its sizes are what counts."""
    blocks = -(-k // 256) * 4
    return PackedWeight(torch.zeros(-(-n // 64), blocks, 2560, dtype=torch.uint8), n, k, dtype)


@pytest.mark.parametrize(
    ("n", "k", "dtype", "out", "reason"),
    [
        (64, 96, FP8, BF16, None),
        (8, 32, FP8, FP16, None),
        (64, 96, INT8, BF16, None),
        (64, 96, INT8, FP16, None),
        (3, 32, INT8, INT32, None),
        (64, 96, FP8, FP32, "the native kernel gives bf16, fp16 from fp8_e4m3, not fp32"),
        (64, 96, FP8, INT32, "the native kernel gives bf16, fp16 from fp8_e4m3, not int32"),
        (64, 96, INT8, INT8, "the native kernel gives bf16, fp16, int32 from int8, not int8"),
        (64, 100, FP8, BF16, "K'=100 is not a multiple of 32; pad it to 128"),
        (64, 16, INT8, INT32, "K'=16 is not a multiple of 32; pad it to 32"),
        (60, 96, FP8, BF16, "N=60 is not a multiple of 8; pad it to 64"),
        (1, 96, INT8, FP16, "N=1 is not a multiple of 8; pad it to 8"),
    ],
)
def test_refusals_name_the_values(n, k, dtype, out, reason):
    assert refusal(n, k, dtype, out) == reason


def test_raw_sums_are_refused_a_bias():
    reason = "an int32 output of the native kernel is the raw sums: no bias"
    assert refusal(64, 96, INT8, INT32, True) == reason
    assert refusal(64, 96, INT8, BF16, True) is None


def config_of(blocks=2, cluster_k=1):
    return NativeConfig(
        slabs=1, tokens=64, blocks=blocks, stages=2, cluster_k=cluster_k, box=16, boxes=2
    )


@pytest.mark.parametrize(
    ("k", "blocks", "cluster_k", "wanted"),
    [
        (3584, 2, 1, (28, False)),
        (3584, 8, 1, (7, True)),
        (3584, 8, 2, (8, False)),
        (4800, 2, 1, (38, False)),
        (4800, 4, 1, (19, True)),
        (18944, 4, 4, (74, False)),
        (384, 2, 1, (3, True)),
        (384, 2, 2, (4, False)),
        (128, 2, 1, (2, False)),  # A single stage gets an empty one beside it.
        (32, 2, 1, (2, False)),
    ],
)
def test_stages_of_known_widths(k, blocks, cluster_k, wanted):
    assert stages_of(config_of(blocks, cluster_k), k) == wanted


@given(
    k=st.integers(1, 1000).map(lambda words: 32 * words),
    blocks=st.sampled_from([2, 4, 6, 8]),
    cluster_k=st.sampled_from([1, 2, 4]),
)
def test_the_stages_cover_k_and_stay_in_what_is_stored(k, blocks, cluster_k):
    config = config_of(blocks, cluster_k)
    stages, odd = stages_of(config, k)
    assert stages * blocks * 64 >= k
    assert (stages - 2) * blocks * 64 < k
    assert stages % 2 == odd
    assert not (odd and cluster_k > 1)
    assert stages >= 2
    fits = stages * blocks <= weight_of(1, k).blocks and stages // 2 >= cluster_k
    assert (unfit(config, k) is None) == fits


@pytest.mark.parametrize(
    ("k", "blocks", "cluster_k", "reason"),
    [
        (32, 2, 1, None),
        (32, 4, 1, "2 stages of 4 blocks pass the 4 that K'=32 is stored in"),
        (3584, 8, 2, "8 stages of 8 blocks pass the 56 that K'=3584 is stored in"),
        (640, 4, 1, None),
        (640, 2, 4, "4 blocks of a cluster cannot share 6 stages of K'=640"),
        (1024, 2, 4, None),
        (32, 2, 2, "2 blocks of a cluster cannot share 2 stages of K'=32"),
    ],
)
def test_what_a_width_does_not_fit(k, blocks, cluster_k, reason):
    assert unfit(config_of(blocks, cluster_k), k) == reason


W, K, N, M = weight_of(64, 128), 128, 64, 7


def rows(m=M, k=K, dtype=torch.int8, gap=0):
    return torch.zeros(m, k + gap, dtype=dtype)[:, :k]


def outputs(m=M, n=N, dtype=torch.bfloat16):
    return torch.zeros(m, n, dtype=dtype)


def off(tensor, by):
    """The same values, `by` bytes past a multiple of 16."""
    memory = torch.zeros(tensor.nbytes + 16, dtype=torch.uint8)
    return memory[by : by + tensor.nbytes].view(tensor.dtype).view(tensor.shape)


def gemm_of(config=SMALL, out=torch.bfloat16, weight=W, clusters=132):
    """A NativeGemm that was never loaded."""
    made = {torch.bfloat16: BF16, torch.float16: FP16, torch.int32: INT32}[out]
    stages, odd = stages_of(config, weight.k)
    dtype = INT8 if weight.dtype is torch.int8 else FP8
    gemm = object.__new__(NativeGemm)
    gemm.weight, gemm.config, gemm.out, gemm.stages = weight, config, out, stages
    gemm.variant = Variant(config, dtype, made, odd)
    gemm.loaded = SimpleNamespace(function="function", shared_bytes=1234, clusters=clusters)
    return gemm


ONES, SCALE = torch.ones(M), torch.ones(N)
BAD = {
    "x has 1 dimensions (128,); reshape it to [tokens, width]": (rows()[0], outputs(), SCALE, ONES),
    "x has 96 columns, and 128 are needed": (rows(k=96), outputs(), SCALE, ONES),
    "x is torch.bfloat16; use one of float8_e4m3fn, int8": (
        rows(dtype=torch.bfloat16),
        outputs(),
        SCALE,
        ONES,
    ),
    "x is torch.float8_e4m3fn and the weight is torch.int8": (
        rows().view(torch.float8_e4m3fn),
        outputs(),
        SCALE,
        ONES,
    ),
    "the columns of x are 2 elements apart": (rows(k=2 * K)[:, ::2], outputs(), SCALE, ONES),
    "out has shape (6, 64); [7, 64] is needed": (rows(), outputs(6), SCALE, ONES),
    "out has shape (7, 72); [7, 64] is needed": (rows(), outputs(n=72), SCALE, ONES),
    "out is torch.float16 with strides (64, 1); contiguous torch.bfloat16 is needed": (
        rows(),
        outputs(dtype=torch.float16),
        SCALE,
        ONES,
    ),
    "out is torch.bfloat16 with strides (72, 1); contiguous torch.bfloat16 is needed": (
        rows(),
        outputs(n=72)[:, :64],
        SCALE,
        ONES,
    ),
    "x starts 4 bytes past a multiple of 16": (off(rows(), 4), outputs(), SCALE, ONES),
    "out starts 2 bytes past a multiple of 16": (rows(), off(outputs(), 2), SCALE, ONES),
    f"rows of x are {K + 8} bytes apart; a multiple of 16 and at least {K} is needed": (
        rows(gap=8),
        outputs(),
        SCALE,
        ONES,
    ),
    f"rows of x are 16 bytes apart; a multiple of 16 and at least {K} is needed": (
        rows(k=M * 16 + K).view(-1).as_strided((M, K), (16, 1)),
        outputs(),
        SCALE,
        ONES,
    ),
    f"rows of x are 0 bytes apart; a multiple of 16 and at least {K} is needed": (
        rows()[:1].expand(M, K),
        outputs(),
        SCALE,
        ONES,
    ),
    "an output of torch.bfloat16 needs w_scale and x_scale": (rows(), outputs(), None, ONES),
    "w_scale has shape (7,); 64 consecutive values are needed": (rows(), outputs(), ONES, ONES),
    "x_scale has shape (64,); 7 consecutive values are needed": (rows(), outputs(), SCALE, SCALE),
    "w_scale is torch.float64; float32 is needed": (rows(), outputs(), SCALE.double(), ONES),
    "x_scale has strides (2,); call .contiguous()": (
        rows(),
        outputs(),
        SCALE,
        torch.ones(2 * M)[::2],
    ),
    "bias is torch.float32; bfloat16 is needed": (rows(), outputs(), SCALE, ONES, SCALE),
    "bias has shape (7,); 64 consecutive values": (rows(), outputs(), SCALE, ONES, ONES.bfloat16()),
}


@pytest.mark.parametrize("message", BAD)
def test_wrong_operands_are_refused_with_the_values(message):
    with pytest.raises(KernelError) as raised:
        gemm_of().bind(*BAD[message])
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["w_scale", "x_scale", "bias"])
def test_raw_sums_take_no_scales(name):
    scales = {"w_scale": None, "x_scale": None, name: SCALE if name != "x_scale" else ONES}
    with pytest.raises(KernelError, match="an int32 output is the raw sums: no scales and no bias"):
        gemm_of(out=torch.int32).bind(rows(), outputs(dtype=torch.int32), **scales)


@pytest.fixture
def maps(monkeypatch):
    """What the copy engine is told; its descriptions are made by the driver."""
    pytest.importorskip("cuda.bindings.driver", reason="launches are described to the driver")
    made = []

    def describe(*arguments):
        made.append(arguments)
        address = 1000 + len(made)
        return SimpleNamespace(getPtr=lambda: address)

    monkeypatch.setattr(module, "tensor_map", describe)
    return made


def words_at(address, count):
    """`count` 64-bit words of memory."""
    return list((ctypes.c_uint64 * count).from_address(address))


def test_a_launch_describes_its_operands(maps):
    gemm = gemm_of()
    x, out, bias = rows(gap=16), outputs(), SCALE.bfloat16()
    launch = gemm.bind(x, out, SCALE, ONES, bias)
    assert maps == [
        (x.data_ptr(), (M, K), K + 16, 1, (128, 32)),
        (out.data_ptr(), (M, N), 2 * N, 2, (64, SMALL.box)),
    ]
    assert isinstance(launch, Launch)
    arguments = launch._arguments.tolist()
    assert arguments[:2] == [1001, 1002]
    pointers = [words_at(address, 1)[0] for address in arguments[2:7]]
    tensors = (W.data, out, SCALE, ONES, bias)
    assert pointers == [tensor.data_ptr() for tensor in tensors]
    problem = np.frombuffer(np.array(words_at(arguments[7], 7), np.uint64).tobytes(), PROBLEM)
    assert problem == problem_struct(W, SMALL, M, gemm.stages)
    described = launch._launch
    assert (described.gridDimX, described.blockDimX, described.sharedMemBytes) == (1, 256, 1234)


def test_a_launch_keeps_its_operands_alive(maps):
    operands = [rows(), outputs(), SCALE.clone(), ONES.clone(), SCALE.bfloat16()]
    alive = [weakref.ref(tensor) for tensor in operands]
    launch = gemm_of().bind(*operands)
    operands.clear()
    gc.collect()
    assert all(tensor() is not None for tensor in alive)
    del launch
    gc.collect()
    assert not any(tensor() is not None for tensor in alive)


def test_raw_sums_have_no_map_of_the_output_and_no_scales(maps):
    launch = gemm_of(out=torch.int32).bind(rows(), outputs(dtype=torch.int32), None, None)
    assert len(maps) == 1
    assert launch._arguments.tolist()[:2] == [1001, 1001]
    assert launch._pointers.tolist()[2:] == [0, 0, 0]


@pytest.mark.parametrize(
    ("cluster_w", "box"), [(1, (128, 64)), (2, (128, 32)), (4, (128, 16))], ids=str
)
def test_blocks_of_a_cluster_copy_a_share_of_the_tokens(maps, cluster_w, box):
    config = NativeConfig(1, 64, 2, 4, cluster_w=cluster_w, box=32, boxes=2)
    gemm_of(config).bind(rows(), outputs(), SCALE, ONES)
    assert maps[0][-1] == box
    assert maps[1][-1] == (64, 32)


def test_one_row_may_have_any_stride(maps):
    wide = torch.zeros(2, K + 8, dtype=torch.int8)[:1, :K]
    gemm_of().bind(wide, outputs(1), SCALE, ONES[:1])
    assert maps[0][1:3] == ((1, K), K)


@pytest.mark.parametrize(("clusters", "blocks"), [(132, 4), (3, 3), (1, 1)])
def test_no_more_clusters_start_than_fit_or_have_a_tile(maps, clusters, blocks):
    m = 4 * SMALL.tokens
    launch = gemm_of(clusters=clusters).bind(rows(m), outputs(m), SCALE, torch.ones(m))
    assert launch._launch.gridDimX == blocks


def test_no_tokens_launch_nothing(maps):
    launch = gemm_of().bind(rows(0), outputs(0), SCALE, torch.ones(0))
    launch(0)
    assert not maps


def test_the_kernel_wants_a_gpu():
    with pytest.raises(DeviceError, match="runs on a GPU; the weight is on cpu"):
        NativeGemm(W, SMALL, torch.bfloat16)
    with pytest.raises(DeviceError, match="runs on a GPU; the weight is on cpu"):
        native_gemm(W, rows(), SCALE, ONES, SMALL)


class OnGpu(torch.Tensor):
    """Claims to be on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(
    ("weight", "config", "out", "message"),
    [
        (W, SMALL, torch.float32, "the native kernel gives bf16, fp16, int32 from int8, not fp32"),
        (W, SMALL, torch.float64, "the output cannot be torch.float64; use bfloat16, float16 or"),
        (weight_of(60, 128), SMALL, torch.bfloat16, "N=60 is not a multiple of 8; pad it to 64"),
        (weight_of(64, 48), SMALL, torch.bfloat16, "K'=48 is not a multiple of 32; pad it to 64"),
        (
            weight_of(64, 32),
            NativeConfig(1, 32, 4, 2, box=32, boxes=2),
            torch.int32,
            "2 stages of 4 blocks pass the 4 that K'=32 is stored in",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_compiled(weight, config, out, message):
    there = PackedWeight(weight.data.as_subclass(OnGpu), weight.n, weight.k, weight.dtype)
    with pytest.raises(KernelError) as raised:
        NativeGemm(there, config, out)
    assert message in str(raised.value)


def test_rows_are_checked_before_torch_sees_them():
    with pytest.raises(KernelError, match="x has 96 columns, and 128 are needed"):
        native_gemm(W, rows(k=96), SCALE, ONES, SMALL)
    with pytest.raises(KernelError, match=r"x is torch\.float32; use one of float8_e4m3fn, int8"):
        native_gemm(W, rows(dtype=torch.float32), SCALE, ONES, SMALL)


@pytest.mark.parametrize("out", [torch.bfloat16, torch.float16, torch.int32], ids=str)
@pytest.mark.parametrize("m", [0, 1, 129])
def test_a_fake_result_has_the_shape(m, out):
    with FakeTensorMode() as mode:
        fake = PackedWeight(mode.from_tensor(W.data), W.n, W.k, W.dtype)
        scales = (None, None) if out is torch.int32 else (torch.empty(N), torch.empty(m))
        made = native_gemm(fake, torch.empty(m, K, dtype=torch.int8), *scales, SMALL, None, out)
    assert (made.shape, made.dtype) == ((m, N), out)


def test_torch_compile_sees_one_operator_for_any_m():
    graphs = []

    def remember(graph, inputs):
        """A backend that runs nothing: there is no GPU."""
        graphs.append(graph)
        return lambda *given: (torch.zeros(given[0], N),)

    def layer(x, w_scale, x_scale):
        return native_gemm(W, x, w_scale, x_scale, SMALL)

    torch.compiler.reset()
    try:
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=remember)
        for m in (7, 129, 1000):
            assert compiled(rows(m), SCALE, torch.ones(m)).shape == (m, N)
    finally:
        torch.compiler.reset()
    (graph,) = graphs
    (node,) = (node for node in graph.graph.nodes if node.op == "call_function")
    assert node.target is torch.ops.slidesparse.native_gemm.default
    assert list(node.args[-1]) == SMALL.numbers()
