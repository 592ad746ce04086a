"""vLLM's GEMM in SparseLinear on the GPU: any number of tokens, in graphs and compiled."""

from __future__ import annotations

from collections.abc import Iterator

import gpu_layers as layers
import kernel_checks as checks
import layer_plans as plans
import pytest
import torch
from gpu_layers import CUDA, Tuned
from layer_plans import SCALED_MM

from slidesparse import vllm_gemm
from slidesparse.candidate import Candidate
from slidesparse.devices import Device, detect
from slidesparse.layers import SparseLinear
from slidesparse.layers.planning import LayerShape
from slidesparse.tensors import DTYPES

FP8, INT8 = checks.QUANTISED
BF16, FP16 = torch.bfloat16, torch.float16
TOKENS = (1, 7, 16, 17, 64, 65, 128, 129, 4097, 0)
QWEN = (4608, 3584)
ODD = (288, 336)
REPLAYS = 3


@pytest.fixture(scope="module", autouse=True)
def _vllm(gpu: Device) -> None:
    reason = vllm_gemm.missing()
    if reason:
        pytest.skip(f"vLLM's GEMM is not tested in layers: {reason}")


@pytest.fixture(params=[FP8, INT8], ids=checks.short)
def dtype(request: pytest.FixtureRequest, gpu: Device) -> torch.dtype:
    """The dtypes that this GPU has."""
    reason = vllm_gemm.refusal(DTYPES[request.param], DTYPES[BF16], detect(gpu).sm)
    if reason:
        pytest.skip(reason)
    return request.param


@pytest.fixture
def tuned(gpu, tmp_path) -> Iterator[Tuned]:
    with layers.tuned_at(gpu, tmp_path) as use:
        yield use
    torch.cuda.empty_cache()


def made(
    tuned: Tuned, shape: LayerShape, seed: int, candidate: Candidate | None = None
) -> SparseLinear:
    """A layer that runs vLLM's product for all tokens."""
    return layers.running(tuned, shape, seed, [(16, candidate or vllm_gemm.candidate())])


@pytest.mark.parametrize("out", [BF16, FP16], ids=checks.short)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [QWEN, ODD, (512, 18944)], ids=str)
def test_any_number_of_tokens(sizes, bias, out, dtype, tuned, seed):
    shape = layers.shape(*sizes, quantised=dtype, out=out, bias=bias)
    layers.check(made(tuned, shape, seed), shape, seed, TOKENS)


@pytest.mark.parametrize("m", [1, 16, 129, 1000])
def test_replays_with_changed_inputs(m, dtype, tuned, seed):
    """Its workspace comes from torch's allocator, so a graph keeps it."""
    shape = layers.shape(*QWEN, quantised=dtype, bias=True)
    layer = made(tuned, shape, seed)
    x = layers.tokens(m, shape, seed)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        layer(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = layer(x)
    for run in range(1, REPLAYS + 1):
        x.copy_(layers.tokens(m, shape, seed + 100 * run))
        got.fill_(float("nan"))
        graph.replay()
        layers.assert_right(got, layer, x)


def test_it_runs_on_the_current_stream(dtype, tuned, seed):
    """An output that another stream still writes would hold what the input was before."""
    shape = layers.shape(*QWEN, quantised=dtype, bias=True)
    layer = made(tuned, shape, seed)
    layer(layers.tokens(129, shape, seed))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x = layers.tokens(129, shape, seed + 1)
        got = layer(x)
    stream.synchronize()
    layers.assert_right(got, layer, x)


def test_compiled_it_is_one_call(dtype, tuned, seed):
    shape = layers.shape(*ODD, quantised=dtype, bias=True)
    layer = made(tuned, shape, seed)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for m in (7, 129):
        x = layers.tokens(m, shape, seed)
        layers.assert_right(compiled(x), layer, x)


def test_a_row_of_zeros_gives_the_bias(dtype, tuned, seed):
    shape = layers.shape(*ODD, quantised=dtype, bias=True)
    layer = made(tuned, shape, seed)
    x = layers.tokens(7, shape, seed)
    x[3] = 0
    assert torch.equal(layer(x)[3], layer.bias)


def test_another_version_is_left_out_of_the_plan(tuned, seed):
    """What was measured of it says nothing of the one that is installed."""
    shape = layers.shape(*ODD, quantised=FP8)
    mine = vllm_gemm.candidate()
    other = Candidate(mine.backend, {**mine.params, "version": "0.0.1"})
    tuned([plans.race(shape, 16, {other: 1.0, SCALED_MM: 2.0})])
    layer = layers.layer_of(shape, seed)
    assert plans.steps_of(layer.plan) == [(16, SCALED_MM)]
    assert layer.state_dict()["weight"].device == torch.device(CUDA)
    layers.check(layer, shape, seed, (1, 129))
