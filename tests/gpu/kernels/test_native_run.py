"""Running the native GEMM: graphs, streams, threads, torch.compile, refusals, compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import kernel_checks as checks
import native_layers as layers
import pytest
import torch
from native_layers import BF16, CUDA, FP8, FP16, HAND, INT8, INT32

from slidesparse.devices import Device
from slidesparse.errors import CandidateError, DeviceError, KernelError
from slidesparse.kernels import quantize
from slidesparse.kernels.native import NativeConfig, NativeGemm, PackedWeight, native_gemm, pack
from slidesparse.kernels.native.gemm import native_gemm_op
from slidesparse.pattern import Pattern

SIX_EIGHT = Pattern.parse("6:8")
SCRIPT = Path(__file__).with_name("sanitize_native.py")
SANITIZER = "compute-sanitizer"
SANITIZED_S = 300
SANITIZER_FAILED = 9
SANITIZED_CASES = 7
RUNS = 50
KINDS = ["plain", "two resident", "8 tokens", "cluster 2x2", "K in 2", "K in 4"]
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module", autouse=True)
def _cache(gpu: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from layers.on_hopper(gpu, tmp_path_factory.mktemp("cache"))


def copy(target: torch.Tensor, source: torch.Tensor) -> None:
    """FP8 has no copy of its own on every device."""
    target.view(torch.uint8).copy_(source.view(torch.uint8))


def launches(
    layer: layers.Layer, config: NativeConfig, count: int
) -> tuple[torch.Tensor, list[Callable[[int], None]]]:
    """Poisoned outputs [count, M, N], and what fills each of them."""
    shape = (count, layer.x.shape[0], layer.w.shape[0])
    outs = torch.full(shape, float("nan") if layer.out is not INT32 else -1, device=CUDA)
    outs = outs.to(layer.out)
    return outs, [layers.bind(layer, config, out) for out in outs]


@each_kind
def test_a_graph_replays_with_changed_inputs(kind, seed):
    """The bound launch and the op in one graph; the weight and the bias stay."""
    config = HAND[kind]
    layer = layers.draw(129, 1512, 2048, FP8, BF16, seed, bias=True)
    out = checks.Poisoned((129, 1512), BF16, CUDA)
    launch = layers.bind(layer, config, out.view)
    launch(layers.here())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(layers.here())
        made = native_gemm(layer.weight, layer.lifted, *layer.scales, config, layer.bias)
    for run in (1, 2, 3):
        new = layers.draw(129, 1512, 2048, FP8, BF16, seed + 10 * run)
        copy(layer.lifted, new.lifted)
        layer.x_scale.copy_(new.x_scale)
        now = replace(layer, x=new.x)
        for each in (made, out.view):
            each.view(torch.uint8).fill_(0xFF)
        graph.replay()
        for each in (made, out.view):
            layers.assert_right(each, now)
        assert out.surroundings_are_intact()


def test_a_graph_quantises_and_multiplies(seed):
    """The GEMM starts while the kernel before it runs, and waits for what that one writes."""
    layer = layers.draw(300, 1512, 896, FP8, BF16, seed, SIX_EIGHT)
    hidden = checks.draw(300, 896, BF16, seed, CUDA)

    def step() -> torch.Tensor:
        q, scale = quantize(hidden, FP8, SIX_EIGHT)
        return native_gemm(layer.weight, q, layer.w_scale, scale, HAND["plain"])

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()
    for run in (1, 2, 3):
        hidden.copy_(checks.draw(300, 896, BF16, seed + run, CUDA))
        made.fill_(float("nan"))
        graph.replay()
        dense, scale = quantize(hidden, FP8)
        layers.assert_right(made, replace(layer, x=dense, x_scale=scale))


def test_a_variant_is_not_loaded_while_a_graph_is_captured(seed):
    config = NativeConfig(slabs=1, tokens=48, stages=3, box=16, boxes=5, group=1)
    layer = layers.draw(7, 72, 896, FP8, BF16, seed)
    packed, x = layer.weight, layer.lifted
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        busy = torch.zeros(1, device=CUDA)
        with pytest.raises(KernelError, match="is not loaded yet, which a CUDA graph cannot"):
            native_gemm(packed, x, *layer.scales, config)
    graph.replay()
    assert float(busy) == 0
    layers.assert_right(native_gemm(packed, x, *layer.scales, config), layer)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        native_gemm(packed, x, *layer.scales, config)


@pytest.mark.parametrize(("first", "second"), [("plain", "plain"), ("K in 2", "cluster 2x1")])
def test_a_gemm_waits_for_the_gemm_that_writes_its_tokens(first, second, seed):
    """The bytes of a BF16 output are the INT8 tokens of the next; then they are overwritten."""
    inputs = [layers.draw(512, 1024, 896, INT8, BF16, seed + i) for i in range(5)]
    inputs = [replace(each, w=inputs[0].w, w_scale=inputs[0].w_scale) for each in inputs]
    last = layers.draw(512, 640, 2048, INT8, INT32, seed)
    between = torch.full((512, 1024), float("nan"), dtype=BF16, device=CUDA)
    outs = torch.full((RUNS, 512, 640), -1, dtype=INT32, device=CUDA)
    before = [layers.bind(each, HAND[first], between) for each in inputs]
    gemm = NativeGemm(last.weight, HAND[second], INT32)
    after = [gemm.bind(between.view(INT8), out, None, None) for out in outs]
    torch.cuda.synchronize()
    for run in range(RUNS):
        before[run % 5](layers.here())
        after[run](layers.here())
    torch.cuda.synchronize()
    for i, each in enumerate(inputs):
        alone = layers.run(each, HAND[first])
        layers.assert_right(alone, each)
        want = replace(last, x=alone.view(INT8))
        for run in range(i, RUNS, 5):
            assert torch.equal(outs[run], want.truth.to(INT32)), f"run {run}"


@each_kind
def test_two_streams_do_not_meet(kind, seed):
    config = HAND[kind]
    both = [layers.draw(m, 1512, 2048, FP8, BF16, seed, bias=True) for m in (129, 300)]
    alone = [layers.run(layer, config) for layer in both]
    for got, layer in zip(alone, both, strict=True):
        layers.assert_right(got, layer)
    filled = [launches(layer, config, RUNS) for layer in both]
    streams = [torch.cuda.Stream() for _ in both]
    torch.cuda.synchronize()
    for run in range(RUNS):
        for stream, (_, bound) in zip(streams, filled, strict=True):
            bound[run](stream.cuda_stream)
    torch.cuda.synchronize()
    for (outs, _), want in zip(filled, alone, strict=True):
        assert bool((outs == want).all(dim=2).all(dim=1).all())


@each_kind
@pytest.mark.parametrize(("dtype", "out"), [(FP8, BF16), (FP8, FP16), (INT8, INT32)])
def test_the_same_bytes_every_time(kind, dtype, out, seed):
    """Sums are added in one order, whoever is first; on a busy GPU as well."""
    layer = layers.draw(129, 1512, 2048, dtype, out, seed, bias=out is not INT32)
    outs, bound = launches(layer, HAND[kind], RUNS)
    noise = torch.randn(2048, 2048, device=CUDA)
    beside = torch.cuda.Stream()
    torch.cuda.synchronize()
    for launch in bound:
        with torch.cuda.stream(beside):
            noise @ noise
        launch(layers.here())
    torch.cuda.synchronize()
    layers.assert_right(outs[0], layer)
    raw = outs.view(torch.uint8)
    assert torch.equal(raw, raw[:1].expand_as(raw))


def test_a_launch_is_bound_once_and_run_often_with_new_contents(seed):
    layer = layers.draw(129, 456, 896, FP8, BF16, seed)
    out = torch.empty(129, 456, dtype=BF16, device=CUDA)
    launch = layers.bind(layer, HAND["plain"], out)
    for run in range(5):
        new = layers.draw(129, 456, 896, FP8, BF16, seed + 10 * run)
        copy(layer.lifted, new.lifted)
        layer.x_scale.copy_(new.x_scale)
        out.fill_(float("nan"))
        launch(layers.here())
        layers.assert_right(out, replace(layer, x=new.x))


@pytest.mark.parametrize("kind", ["plain", "K in 2"])
def test_a_new_thread_can_run_it(kind, seed):
    """A thread that never called CUDA has no current context of its own."""
    layer = layers.draw(129, 456, 896, FP8, BF16, seed)
    want = layers.run(layer, HAND[kind])
    layers.assert_right(want, layer)
    torch.cuda.synchronize()

    def through_the_op() -> torch.Tensor:
        return native_gemm(layer.weight, layer.lifted, *layer.scales, HAND[kind])

    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(through_the_op).result()
    out = torch.full((129, 456), float("nan"), dtype=BF16, device=CUDA)
    launch, stream = layers.bind(layer, HAND[kind], out), layers.here()
    torch.cuda.synchronize()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(launch, stream).result()
    torch.cuda.synchronize()
    assert torch.equal(made, want)
    assert torch.equal(out, want)


def test_another_gpu_than_the_current_one(seed):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    layer = layers.draw(129, 456, 896, FP8, BF16, seed)
    want = layers.run(layer, HAND["plain"])
    data = layer.weight.data.to("cuda:1")
    torch.cuda.synchronize("cuda:1")
    weight = PackedWeight(data, layer.weight.n, layer.weight.k, layer.weight.dtype)
    lifted, w_scale, x_scale = (
        t.to("cuda:1") for t in (layer.lifted, layer.w_scale, layer.x_scale)
    )
    assert torch.cuda.current_device() == 0
    made = native_gemm(weight, lifted, w_scale, x_scale, HAND["plain"])
    assert made.device == torch.device("cuda:1")
    assert torch.equal(made.to(CUDA), want)


def test_a_layer_compiles_for_every_m(seed):
    """Inductor around the op, one graph without a break, M dynamic."""
    torch._dynamo.reset()
    compiles = []
    layer = layers.draw(1, 1512, 896, FP8, BF16, seed, SIX_EIGHT, bias=True)
    weight, w_scale, bias, config = layer.weight, layer.w_scale, layer.bias, HAND["plain"]

    def forward(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        q, scale = quantize(x, FP8, SIX_EIGHT)
        return native_gemm(weight, q, w_scale, scale, config, bias) + residual

    def backend(graph, inputs):
        compiles.append(len(graph.graph.nodes))
        return torch._inductor.compile(graph, inputs)

    compiled = torch.compile(forward, fullgraph=True, backend=backend)
    for m in (7, 129, 300):
        x = checks.draw(m, 896, BF16, seed, CUDA)
        residual = checks.draw(m, 1512, BF16, seed, CUDA)
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(residual, 0)
        assert torch.equal(compiled(x, residual), forward(x, residual))
    assert len(compiles) == 1
    dense, scale = quantize(x, FP8)
    made = compiled(x, torch.zeros_like(residual))
    layers.assert_right(made, replace(layer, x=dense, x_scale=scale))


@pytest.mark.parametrize("out", [BF16, FP16, INT32], ids=checks.short)
def test_opcheck(out, seed):
    """INT8 only: FP8 operands cannot be checked, torch multiplies them."""
    layer = layers.draw(3, 72, 896, INT8, out, seed, bias=out is BF16)
    numbers = HAND["K in 2"].numbers()
    arguments = (layer.weight.data, layer.lifted, *layer.scales, layer.bias, 72, out, numbers)
    torch.library.opcheck(native_gemm_op, arguments)


# A call that is right, and what is changed in it; every operand is made on the GPU when asked for.
M, N, K = 5, 128, 128
CONFIG = NativeConfig(slabs=1, tokens=8, box=8, boxes=2)


def columns(width: int, start: int = 0, m: int = M) -> torch.Tensor:
    """x of rows `width` bytes apart."""
    return torch.zeros(m, width, dtype=torch.uint8, device=CUDA)[:, start : start + K].view(FP8)


def vector(size: int, dtype: torch.dtype = torch.float32, device: str = CUDA) -> torch.Tensor:
    return torch.ones(size, dtype=dtype, device=device)


def call(
    weight: torch.dtype = FP8, made: torch.dtype = BF16, **changes: Callable[[], Any]
) -> Callable[[], None]:
    """Bind a right call with some operands changed; with none it goes through."""

    def bind() -> None:
        packed = pack(torch.zeros(N, K, dtype=torch.uint8, device=CUDA).view(weight))
        raw = made is INT32
        operands: dict[str, Any] = {
            "x": columns(K).view(torch.uint8).view(weight),
            "out": torch.empty(M, N, dtype=made, device=CUDA),
            "w_scale": None if raw else vector(N),
            "x_scale": None if raw else vector(M),
        }
        operands |= {name: change() for name, change in changes.items()}
        NativeGemm(packed, CONFIG, made).bind(**operands)(layers.here())
        torch.cuda.synchronize()

    return bind


def construct(
    n: int = N,
    k: int = K,
    dtype: torch.dtype = FP8,
    out: torch.dtype = BF16,
    config: NativeConfig = CONFIG,
    device: str = CUDA,
) -> Callable[[], None]:
    """Make a NativeGemm of zeros, which need not be packed."""

    def make() -> None:
        data = torch.zeros(-(-n // 64), -(-k // 256) * 4, 2560, dtype=torch.uint8, device=device)
        NativeGemm(PackedWeight(data, n, k, dtype), config, out)

    return make


def through_the_function(weight: torch.dtype, x: torch.dtype) -> Callable[[], None]:
    """Call native_gemm with tokens of another dtype than the weight."""

    def run() -> None:
        packed = pack(torch.zeros(N, K, dtype=torch.uint8, device=CUDA).view(weight))
        tokens = torch.zeros(M, K, dtype=torch.uint8, device=CUDA).view(x)
        native_gemm(packed, tokens, vector(N), vector(M), CONFIG)

    return run


REFUSED = {
    "x is torch.bfloat16; use one of float8_e4m3fn, int8": call(x=lambda: columns(K).to(BF16)),
    "x is torch.int8 and the weight is torch.float8_e4m3fn": call(x=lambda: columns(K).view(INT8)),
    "x is torch.float8_e4m3fn and the weight is torch.int8": through_the_function(INT8, FP8),
    "x has 96 columns, and 128 are needed": call(x=lambda: columns(K)[:, :96]),
    "x has 1 dimensions (128,)": call(x=lambda: columns(K)[0]),
    "the columns of x are 2 elements apart": call(
        x=lambda: torch.zeros(M, 2 * K, dtype=torch.uint8, device=CUDA).view(FP8)[:, ::2]
    ),
    "x is on cpu and the rows are on cuda:0": call(x=lambda: columns(K).cpu()),
    "x starts 8 bytes past a multiple of 16": call(x=lambda: columns(K + 16, start=8)),
    "rows of x are 136 bytes apart; a multiple of 16 and at least 128 is needed": call(
        x=lambda: columns(K + 8)
    ),
    "an output of torch.bfloat16 needs w_scale and x_scale": call(w_scale=lambda: None),
    "an output of torch.float16 needs w_scale and x_scale": call(made=FP16, x_scale=lambda: None),
    "an int32 output is the raw sums: no scales and no bias": call(
        INT8, INT32, w_scale=lambda: vector(N), x_scale=lambda: vector(M)
    ),
    "raw sums: no scales and no bias": call(INT8, INT32, bias=lambda: vector(N, INT32)),
    "w_scale has shape (127,); 128 consecutive values are needed": call(
        w_scale=lambda: vector(N - 1)
    ),
    "x_scale has shape (1,); 5 consecutive values are needed": call(x_scale=lambda: vector(1)),
    "x_scale is torch.float64; float32 is needed": call(x_scale=lambda: vector(M, torch.float64)),
    "w_scale has strides (2,); call .contiguous()": call(w_scale=lambda: vector(2 * N)[::2]),
    "w_scale is on cpu and the rows are on cuda:0": call(w_scale=lambda: vector(N, device="cpu")),
    "bias is torch.float32; bfloat16 is needed": call(bias=lambda: vector(N)),
    "bias has shape (129,); 128 consecutive values are needed": call(
        bias=lambda: vector(N + 1, BF16)
    ),
    "out has shape (6, 128); [5, 128] is needed": call(
        out=lambda: torch.empty(M + 1, N, dtype=BF16, device=CUDA)
    ),
    "out is torch.float16 with strides (128, 1); contiguous torch.bfloat16 is needed": call(
        out=lambda: torch.empty(M, N, dtype=FP16, device=CUDA)
    ),
    "out is torch.bfloat16 with strides (136, 1); contiguous torch.bfloat16 is needed": call(
        out=lambda: torch.empty(M, N + 8, dtype=BF16, device=CUDA)[:, :N]
    ),
    "out starts 8 bytes past a multiple of 16": call(
        out=lambda: torch.empty(M * N + 4, dtype=BF16, device=CUDA)[4:].view(M, N)
    ),
    "K'=48 is not a multiple of 32; pad it to 64": construct(k=48),
    "N=12 is not a multiple of 8; pad it to 16": construct(n=12),
    "the native kernel gives bf16, fp16 from fp8_e4m3, not int32": construct(out=INT32),
    "the native kernel gives bf16, fp16, int32 from int8, not fp32": construct(
        dtype=INT8, out=torch.float32
    ),
    "the output cannot be torch.float64; use bfloat16, float16 or int32": construct(
        out=torch.float64
    ),
    "4 blocks of a cluster cannot share 2 stages of K'=256": construct(
        k=256, config=replace(HAND["K in 4"], blocks=2)
    ),
    "2 stages of 8 blocks pass the 4 that K'=128 is stored in": construct(
        config=HAND["long stages"]
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused_with_its_values(message):
    with pytest.raises(KernelError) as raised:
        REFUSED[message]()
    assert message in str(raised.value)


@pytest.mark.parametrize(("weight", "made"), layers.FORMS, ids=checks.short)
def test_the_call_that_these_change_is_right(weight, made):
    call(weight, made)()
    construct(dtype=weight, out=made)()


def test_a_weight_on_the_cpu_is_refused():
    with pytest.raises(DeviceError, match="runs on a GPU; the weight is on cpu"):
        construct(device="cpu")()


def test_a_token_count_that_int8_lacks_does_not_compile():
    config = NativeConfig(slabs=1, tokens=40, box=8, boxes=2)
    construct(dtype=FP8, config=config)()
    with pytest.raises(
        CandidateError, match=r"64x40x128 .* does not compile: .*m64n40k64"
    ) as error:
        construct(dtype=INT8, config=config)()
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 300, "only the first message"


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool):
    """FP8 and INT8, plain, in clusters that share and in those that split K."""
    program = shutil.which(SANITIZER)
    if program is None:
        pytest.skip(f"{SANITIZER} is not on PATH")
    command = [
        *(program, "--tool", tool, "--error-exitcode", str(SANITIZER_FAILED)),
        *("--target-processes", "application-only", "--report-api-errors", "no"),
        *(sys.executable, str(SCRIPT), *(["--traced"] if tool == "racecheck" else [])),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        # Every tensor is an allocation of its own, so that memcheck sees where it ends.
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=SANITIZED_S
    )
    output = done.stdout + done.stderr
    if "Device not supported" in output:
        pytest.skip(f"{SANITIZER} says that this device is not supported")
    assert done.returncode == 0, output[-5000:]
    assert output.count(": right") == SANITIZED_CASES
