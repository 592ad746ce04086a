"""Norms and activations joined with a layer on the GPU, every way, in graphs too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gpu_layers as layers
import kernel_checks as checks
import native_layers
import pytest
import torch
from gpu_layers import CUDA, Tuned, candidate_of

from slidesparse.devices import Device
from slidesparse.kernels import quantize, rmsnorm_quantize, silu_mul_quantize
from slidesparse.layers import SparseLinear
from slidesparse.layers.fused import rmsnorm_linear, silu_mul_linear
from slidesparse.layers.op import linear_op

FP8, INT8 = checks.QUANTISED
N, K, EPS = 288, 336, 1e-5
REPLAYS = 3
SIZES = (1, 7, 129, 1000)
WAYS = [(way, dtype) for way in ("native", "cublaslt", "torch") for dtype in (FP8, INT8)]
each_way = pytest.mark.parametrize(("way", "dtype"), WAYS, ids=checks.short)

Quantised = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def _compiled(gpu: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled code is kept in a folder of this module."""
    yield from native_layers.on_hopper(gpu, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tuned(gpu, tmp_path) -> Iterator[Tuned]:
    with layers.tuned_at(gpu, tmp_path) as use:
        yield use


def made(way: str, dtype: torch.dtype, tuned: Tuned, seed: int) -> SparseLinear:
    shape = layers.shape(N, K, quantised=dtype, bias=True)
    return layers.running(tuned, shape, seed, [(16, candidate_of(way, shape))])


def rows(m: int, k: int, seed: int) -> torch.Tensor:
    return layers.tokens(m, layers.shape(N, k), seed)


def norm_weight(seed: int) -> torch.Tensor:
    return 1 + rows(1, K, seed)[0] / 8


def assert_product(got: torch.Tensor, layer: SparseLinear, made: Quantised) -> None:
    """The output is that of these quantised rows and the layer's weight."""
    state = layer.state_dict()
    scale = state["weight_scale"].view(-1)
    truth = native_layers.Layer(
        *(made[0], state["weight"], made[1], scale, layer.bias, layer.pattern, layer.dtype)
    )
    native_layers.assert_right(got, truth)


@each_way
@pytest.mark.parametrize("m", SIZES)
def test_rmsnorm_and_the_residual(m, way, dtype, tuned, seed):
    layer, weight = made(way, dtype, tuned, seed), norm_weight(seed)
    x, residual = rows(m, K, seed), rows(m, K, seed + 1)
    q, scale, _ = rmsnorm_quantize(x, weight, EPS, dtype)
    out, same = rmsnorm_linear(layer, x, weight, EPS)
    assert same is x
    assert_product(out, layer, (q, scale))
    q, scale, hidden = rmsnorm_quantize(x, weight, EPS, dtype, residual=residual)
    out, summed = rmsnorm_linear(layer, x, weight, EPS, residual)
    assert torch.equal(summed, hidden)
    assert_product(out, layer, (q, scale))


@each_way
@pytest.mark.parametrize("m", SIZES)
def test_silu_mul(m, way, dtype, tuned, seed):
    layer, gate_up = made(way, dtype, tuned, seed), rows(m, 2 * K, seed)
    assert_product(silu_mul_linear(layer, gate_up), layer, silu_mul_quantize(gate_up, dtype))


@each_way
def test_a_static_scale(way, dtype, tuned, seed):
    layer, x = made(way, dtype, tuned, seed), rows(129, K, seed)
    given = torch.full((1,), 0.01, device=CUDA)
    expected = quantize(x, dtype, static_scale=given)
    assert torch.equal(expected[1], given.expand(129))
    assert_product(linear_op(x, *layer.operands(), given), layer, expected)


def captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of what ran before on a side stream, as torch asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


@each_way
def test_a_graph_of_all_of_them(way, dtype, tuned, seed):
    """What a decoder layer does, replayed with other inputs."""
    layer, weight = made(way, dtype, tuned, seed), norm_weight(seed)
    x, residual, gate_up = rows(64, K, seed), rows(64, K, seed + 1), rows(64, 2 * K, seed + 2)
    outputs: list[torch.Tensor] = []

    def run() -> None:
        outputs[:] = [
            rmsnorm_linear(layer, x, weight, EPS)[0],
            *rmsnorm_linear(layer, x, weight, EPS, residual),
            silu_mul_linear(layer, gate_up),
        ]

    graph = captured(run)
    replayed = list(outputs)
    for again in range(1, REPLAYS + 1):
        for tensor, k in ((x, K), (residual, K), (gate_up, 2 * K)):
            tensor.copy_(rows(64, k, seed + 100 * again + tensor.shape[1]))
        for tensor in replayed:
            tensor.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        run()
        assert all(torch.equal(a, b) for a, b in zip(replayed, outputs, strict=True))
