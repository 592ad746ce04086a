"""SparseLinear in CUDA graphs, on several streams and threads, and in torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import gpu_layers as layers
import kernel_checks as checks
import layer_plans as plans
import native_layers
import pytest
import torch
from gpu_layers import CUDA, Tuned, candidate_of

from slidesparse.devices import Device
from slidesparse.errors import KernelError
from slidesparse.layers import SparseLinear
from slidesparse.layers.op import linear_op
from slidesparse.layers.planning import LayerShape
from slidesparse.layers.prepared import prepared

FP8, INT8 = checks.QUANTISED
BF16, FP16, FP32 = checks.FLOATS
ODD = (288, 336)
RUNS = 20
REPLAYS = 3
IN_FLIGHT = 100
"""Replays that are enqueued at once."""

NOT_READY = "which a CUDA graph cannot capture; run it once before"

WAYS = [
    *(("torch", FP8, out) for out in (BF16, FP16)),
    ("torch", INT8, BF16),
    *(("cublaslt", dtype, BF16) for dtype in (FP8, INT8)),
    *(("native", dtype, BF16) for dtype in (FP8, INT8)),
    *(("cusparselt", dtype, BF16) for dtype in (FP8, INT8)),
    ("reference", FP8, BF16),
]
each_way = pytest.mark.parametrize(("way", "dtype", "out"), WAYS, ids=checks.short)
each_dtype = pytest.mark.parametrize("dtype", [FP8, INT8], ids=checks.short)


@pytest.fixture(scope="module", autouse=True)
def _compiled(gpu: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled code is kept in a folder of this module."""
    yield from native_layers.on_hopper(gpu, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tuned(gpu, tmp_path) -> Iterator[Tuned]:
    with layers.tuned_at(gpu, tmp_path) as use:
        yield use


def made(
    way: str, dtype: torch.dtype, out: torch.dtype, tuned: Tuned, seed: int, **sizes: int
) -> tuple[SparseLinear, LayerShape]:
    """A layer with a bias that runs one way."""
    n, k = sizes.get("n", ODD[0]), sizes.get("k", ODD[1])
    shape = layers.shape(n, k, quantised=dtype, out=out, bias=True)
    return layers.running(tuned, shape, seed, [(16, candidate_of(way, shape))]), shape


def captured(run: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """A graph of what was run before on a side stream, as torch asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph, out


class TestGraphs:
    @each_way
    @pytest.mark.parametrize("m", [1, 16, 129, 1000])
    def test_replays_with_changed_inputs(self, m, way, dtype, out, tuned, seed):
        layer, shape = made(way, dtype, out, tuned, seed)
        x = layers.tokens(m, shape, seed)
        graph, got = captured(lambda: layer(x))
        for run in range(1, REPLAYS + 1):
            x.copy_(layers.tokens(m, shape, seed + 100 * run))
            got.fill_(float("nan"))
            graph.replay()
            layers.assert_right(got, layer, x)
            assert torch.equal(got, layer(x))

    def test_a_chain_of_layers(self, tuned, seed):
        """Each quantises what the one before wrote; they overlap, and wait for it."""
        up, down = (
            layers.shape(*sizes, quantised=FP8, bias=True) for sizes in ((1024, 512), (512, 1024))
        )
        tuned(
            [
                plans.race(up, 16, {candidate_of("native", up): 1.0}),
                plans.race(down, 16, {candidate_of("cublaslt", down): 1.0}),
            ]
        )
        first, second = layers.layer_of(up, seed), layers.layer_of(down, seed)
        x = layers.tokens(129, up, seed)

        def chain() -> torch.Tensor:
            hidden = x
            for _ in range(4):
                hidden = second(torch.nn.functional.silu(first(hidden))) * 0.05
            return hidden

        graph, got = captured(chain)
        for run in range(REPLAYS):
            x.copy_(layers.tokens(129, up, seed + run))
            got.fill_(float("nan"))
            graph.replay()
            assert torch.equal(got, chain())
            assert bool(got.isfinite().all())

    def test_graphs_of_several_sizes_share_a_pool(self, tuned, seed):
        shape = layers.shape(*ODD, bias=True)
        steps = [(16, candidate_of("native", shape)), (256, candidate_of("torch", shape))]
        layer = layers.running(tuned, shape, seed, steps)
        pool, graphs = torch.cuda.graph_pool_handle(), []
        for m in (256, 64, 16, 1):
            x = layers.tokens(m, shape, seed)
            layer(x)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                out = layer(x)
            graphs.append((graph, x, out))
        for graph, x, out in graphs:
            x.mul_(2)
            graph.replay()
            layers.assert_right(out, layer, x)

    @each_way
    def test_all_memory_is_of_the_graphs_pool(self, way, dtype, out, tuned, seed):
        """A capture in the global mode refuses what allocates beside torch; torch says the rest."""
        layer, shape = made(way, dtype, out, tuned, seed)
        x = layers.tokens(1000, shape, seed)
        layer(x)
        # What torch and the driver allocate with the first graph of a process, among it memory for
        # a hundred launches in flight, is none of the layer's; the first graph stays meanwhile.
        first, _ = self.captured_and_run(lambda: layer(x))
        torch.cuda.empty_cache()
        before = {segment["address"] for segment in torch.cuda.memory_snapshot()}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="global"):
            got = layer(x)
        new = [s for s in torch.cuda.memory_snapshot() if s["address"] not in before]
        assert new
        beside = [
            (segment["segment_pool_id"], segment["total_size"])
            for segment in new
            if tuple(segment["segment_pool_id"]) != tuple(graph.pool())
        ]
        assert not beside, f"pool and bytes: {beside}, the graph's pool is {graph.pool()}"
        graph.replay()
        torch.cuda.synchronize()
        free, _ = torch.cuda.mem_get_info()
        count = torch.cuda.memory_stats()["allocation.all.allocated"]
        for _ in range(IN_FLIGHT):
            graph.replay()
        torch.cuda.synchronize()
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == count
        taken = free - torch.cuda.mem_get_info()[0]
        assert not taken, f"{taken} bytes of the GPU were taken by replays"
        layers.assert_right(got, layer, x)
        del first

    @staticmethod
    def captured_and_run(
        run: Callable[[], torch.Tensor],
    ) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """A graph, captured in the global mode and replayed as often as memory is watched for."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="global"):
            out = run()
        for _ in range(IN_FLIGHT):
            graph.replay()
        torch.cuda.synchronize()
        return graph, out

    @each_dtype
    def test_what_is_not_ready_is_refused_and_works_once_it_ran(self, dtype, tuned, seed):
        layer, shape = made("native", dtype, BF16, tuned, seed)
        x = layers.tokens(7, shape, seed)
        want = layer(x)
        prepared.cache_clear()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            busy = torch.zeros(1, device=CUDA)
            with pytest.raises(KernelError) as raised:
                layer(x)
        assert str(raised.value) == f"the layer never ran on cuda:0, {NOT_READY}"
        graph.replay()
        assert float(busy) == 0
        assert torch.equal(layer(x), want)
        graph, got = captured(lambda: layer(x))
        graph.replay()
        assert torch.equal(got, want)

    @pytest.mark.parametrize(("way", "k"), [("torch", 1008), ("native", 1040)])
    def test_a_number_of_tokens_that_never_ran_is_refused(self, way, k, tuned, seed):
        """Its kernels would be compiled in the capture, which breaks it and all that follows."""
        layer, shape = made(way, FP8, BF16, tuned, seed, n=256, k=k)
        layer(layers.tokens(300, shape, seed))
        x = layers.tokens(7, shape, seed)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            busy = torch.zeros(1, device=CUDA)
            with pytest.raises(KernelError) as raised:
                layer(x)
        assert str(raised.value) == f"the layer never ran M=7 or near, {NOT_READY}"
        graph.replay()
        assert float(busy) == 0
        layers.check(layer, shape, seed, [7])
        captured(lambda: layer(x[:5]))


class TestStreams:
    @each_way
    def test_two_streams_do_not_meet(self, way, dtype, out, tuned, seed):
        """Same layer, interleaved, on a busy GPU: scratch memory must not be shared."""
        layer, shape = made(way, dtype, out, tuned, seed, n=1024, k=1024)
        inputs = [layers.tokens(m, shape, seed) for m in (129, 300)]
        alone = [layer(x) for x in inputs]
        for got, x in zip(alone, inputs, strict=True):
            layers.assert_right(got, layer, x)
        streams = [torch.cuda.Stream() for _ in inputs]
        torch.cuda.synchronize()
        results: list[list[torch.Tensor]] = [[], []]
        for _ in range(RUNS):
            for stream, x, kept in zip(streams, inputs, results, strict=True):
                with torch.cuda.stream(stream):
                    kept.append(layer(x))
        torch.cuda.synchronize()
        for kept, want in zip(results, alone, strict=True):
            assert all(torch.equal(got, want) for got in kept)

    @each_way
    def test_new_threads_run_it_at_once(self, way, dtype, out, tuned, seed):
        layer, shape = made(way, dtype, out, tuned, seed)
        inputs = [layers.tokens(m, shape, seed) for m in (1, 7, 129, 1000)]
        alone = [layer(x) for x in inputs]
        torch.cuda.synchronize()

        def run(x: torch.Tensor) -> list[torch.Tensor]:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                results = [layer(x) for _ in range(RUNS)]
            stream.synchronize()
            return results

        with ThreadPoolExecutor(4) as pool:
            for results, want in zip(pool.map(run, inputs), alone, strict=True):
                assert all(torch.equal(got, want) for got in results)

    @each_way
    def test_nothing_waits_for_the_gpu(self, way, dtype, out, tuned, seed):
        layer, shape = made(way, dtype, out, tuned, seed)
        inputs = [layers.tokens(m, shape, seed) for m in (1, 129)]
        alone = [layer(x) for x in inputs]
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            results = [layer(x) for x in inputs]
        finally:
            torch.cuda.set_sync_debug_mode(before)
        assert all(torch.equal(a, b) for a, b in zip(results, alone, strict=True))

    def test_the_same_bytes_every_time(self, tuned, seed):
        shape = layers.shape(1024, 2048, bias=True)
        steps = [(16, candidate_of("native", shape)), (256, candidate_of("cublaslt", shape, 256))]
        layer = layers.running(tuned, shape, seed, steps)
        for m in (7, 129):
            x = layers.tokens(m, shape, seed)
            want = layer(x)
            assert all(torch.equal(layer(x), want) for _ in range(RUNS))


class TestCompile:
    """Dynamo starts anew for each layer: their common code would be compiled once per plan."""

    @each_way
    def test_one_graph_for_every_number_of_tokens(self, way, dtype, out, tuned, seed):
        torch._dynamo.reset()
        layer, shape = made(way, dtype, out, tuned, seed)
        graphs = []

        def backend(graph, inputs):
            graphs.append(len(graph.graph.nodes))
            return torch._inductor.compile(graph, inputs)

        def forward(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
            return layer(x * 2) + residual

        run = torch.compile(forward, fullgraph=True, backend=backend)
        for m in (7, 16, 129, 4097):
            x, residual = (
                layers.tokens(m, shape, seed),
                torch.zeros(m, shape.n, device=CUDA).to(out),
            )
            torch._dynamo.mark_dynamic(x, 0)
            torch._dynamo.mark_dynamic(residual, 0)
            layers.assert_right(run(x, residual), layer, x * 2)
        assert len(graphs) == 1

    @each_dtype
    def test_steps_of_several_forms_are_one_graph(self, dtype, tuned, seed):
        """Which step runs is decided in the operator, not in the graph."""
        torch._dynamo.reset()
        shape = layers.shape(*ODD, quantised=dtype, bias=True)
        steps = [(16, candidate_of("native", shape)), (256, candidate_of("torch", shape))]
        layer = layers.running(tuned, shape, seed, steps)
        run = torch.compile(layer, fullgraph=True, dynamic=True)
        for m in (7, 16, 17, 129, 1):
            x = layers.tokens(m, shape, seed)
            assert torch.equal(run(x), layer(x))

    @each_dtype
    def test_with_graphs_of_inductors_own(self, dtype, tuned, seed):
        torch._dynamo.reset()
        layer, shape = made("native", dtype, BF16, tuned, seed)
        run = torch.compile(layer, fullgraph=True, mode="reduce-overhead")
        with torch.inference_mode():
            for turn in range(6):
                x = layers.tokens(16, shape, seed + turn)
                torch.compiler.cudagraph_mark_step_begin()
                layers.assert_right(run(x).clone(), layer, x)

    def test_a_layer_moved_or_changed_is_compiled_anew(self, tuned, seed):
        torch._dynamo.reset()
        layer, shape = made("native", FP8, BF16, tuned, seed)
        run = torch.compile(layer, fullgraph=True, dynamic=True)
        x = layers.tokens(7, shape, seed)
        layers.assert_right(run(x), layer, x)
        layer.half()
        layers.assert_right(run(x.half()), layer, x.half())

    @pytest.mark.parametrize("way", ["native", "torch"])
    def test_opcheck(self, way, tuned, seed):
        """INT8 only: FP8 operands cannot be checked, torch multiplies them."""
        layer, shape = made(way, INT8, BF16, tuned, seed)
        forms = [layer.get_buffer(f"form_{name}") for name in layer.plan.forms]
        scale = layer.weight_scale.view(-1)
        x = layers.tokens(7, shape, seed)
        torch.library.opcheck(linear_op, (x, forms, scale, layer.bias, layer.plan.to_text()))
