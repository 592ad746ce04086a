"""What a SparseLinear on the GPU keeps: state, copies and files hold the portable form only."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator

import gpu_layers as layers
import kernel_checks as checks
import native_layers
import pytest
import torch
from gpu_layers import CUDA, Tuned, candidate_of

from slidesparse.devices import Device
from slidesparse.layers import SparseLinear, sparsify_
from slidesparse.layers.planning import LayerShape

FP8, INT8 = checks.QUANTISED
BF16, FP16, FP32 = checks.FLOATS
SIZES = [(288, 336), (1504, 1202)]
"""The second has a K that only packed forms take."""

PACKED = ["native", "cusparselt"]
each_dtype = pytest.mark.parametrize("dtype", [FP8, INT8], ids=checks.short)
each_packed = pytest.mark.parametrize("way", PACKED)
each_size = pytest.mark.parametrize("sizes", SIZES, ids=str)


@pytest.fixture(scope="module", autouse=True)
def _compiled(gpu: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled code is kept in a folder of this module."""
    yield from native_layers.on_hopper(gpu, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tuned(gpu, tmp_path) -> Iterator[Tuned]:
    with layers.tuned_at(gpu, tmp_path) as use:
        yield use


def made(
    way: str, dtype: torch.dtype, tuned: Tuned, seed: int, sizes: tuple[int, int] = SIZES[0]
) -> tuple[SparseLinear, LayerShape]:
    """A layer with a bias that runs one way, and holds the form that this reads only."""
    shape = layers.shape(*sizes, quantised=dtype, bias=True)
    layer = layers.running(tuned, shape, seed, [(16, candidate_of(way, shape))])
    assert layer.plan.forms == (("dense",) if way == "torch" else (way,))
    return layer, shape


def same_states(first: SparseLinear, second: SparseLinear) -> bool:
    """Whether states are equal on whatever devices."""
    one, two = first.state_dict(), second.state_dict()
    assert list(one) == list(two)
    weights = layers.same_weight(one.pop("weight"), two.pop("weight"))
    return weights and all(torch.equal(one[name].cpu(), two[name].cpu()) for name in one)


class TestState:
    @each_size
    @each_dtype
    @each_packed
    def test_a_packed_weight_is_unpacked_to_what_the_cpu_has(self, way, dtype, sizes, tuned, seed):
        layer, shape = made(way, dtype, tuned, seed, sizes)
        linear = layers.linear_of(shape, seed)
        there = SparseLinear.from_linear(linear.cpu(), shape.pattern, shape.dtype)
        state = layer.state_dict()
        assert {value.device for value in state.values()} == {torch.device(CUDA)}
        assert state["weight"].shape == (shape.n, shape.k)
        assert same_states(layer, there)

    @each_dtype
    @pytest.mark.parametrize("way", ["torch", *PACKED])
    def test_a_state_goes_to_and_from_the_cpu(self, way, dtype, tuned, seed):
        layer, shape = made(way, dtype, tuned, seed)
        other, _ = made(way, dtype, tuned, seed + 50)
        x = layers.tokens(129, shape, seed)
        want = layer(x)
        assert not torch.equal(other(x), want)
        there = {name: value.cpu() for name, value in layer.state_dict().items()}
        other.load_state_dict(there)
        assert torch.equal(other(x), want)
        on_cpu = SparseLinear.from_linear(
            layers.linear_of(shape, seed + 50, device="cpu"), shape.pattern, shape.dtype
        )
        on_cpu.load_state_dict(layer.state_dict())
        assert same_states(on_cpu, layer)
        assert on_cpu.weight_scale.device.type == "cpu"

    @each_dtype
    def test_a_loaded_state_is_what_runs(self, dtype, tuned, seed):
        layer, shape = made("native", dtype, tuned, seed)
        other, _ = made("native", dtype, tuned, seed + 50)
        x = layers.tokens(7, shape, seed)
        layer.load_state_dict(other.state_dict())
        layers.assert_right(layer(x), layer, x)
        assert torch.equal(layer(x), other(x))


class TestTo:
    @each_size
    @each_dtype
    @pytest.mark.parametrize("way", ["torch", *PACKED])
    def test_to_the_cpu_and_back(self, way, dtype, sizes, tuned, seed):
        if way == "torch" and sizes[1] % 16:
            pytest.skip("torch has no GEMM for this K")
        layer, shape = made(way, dtype, tuned, seed, sizes)
        x = layers.tokens(129, shape, seed)
        want, before = layer(x), copy.deepcopy(layer)
        assert layer.to("cpu") is layer
        assert layer.plan.forms == ("dense",)
        assert {value.device.type for value in layer.buffers()} == {"cpu"}
        assert same_states(layer, before)
        on_cpu = layer(x.cpu())
        assert float((on_cpu.double() - want.cpu().double()).norm() / want.double().norm()) < 1e-2
        layer.to(CUDA)
        assert layer.plan == before.plan
        assert {value.device for value in layer.buffers()} == {torch.device(CUDA)}
        assert same_states(layer, before)
        assert torch.equal(layer(x), want)

    @each_dtype
    @each_packed
    def test_another_dtype_of_the_activations(self, way, dtype, tuned, seed):
        """Planned anew: the native kernel has no float32."""
        layer, shape = made(way, dtype, tuned, seed)
        weight = layer.weight
        for out in (FP16, FP32, BF16):
            layer.to(out)
            assert layers.same_weight(layer.weight, weight)
            x = layers.tokens(129, shape, seed).to(out)
            layers.assert_right(layer(x), layer, x)

    def test_memory_is_given_back(self, tuned, seed):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        shape = layers.shape(4608, 3584, quantised=FP8)
        layer = layers.layer_of(shape, seed)
        assert torch.cuda.memory_allocated() > before + shape.n * shape.k // 2
        layer.to("cpu")
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() <= before + 2**20


class TestCopies:
    @each_dtype
    @pytest.mark.parametrize("way", ["torch", *PACKED])
    def test_a_deep_copy_shares_nothing(self, way, dtype, tuned, seed):
        layer, shape = made(way, dtype, tuned, seed)
        twin = copy.deepcopy(layer)
        kept = {value.data_ptr() for value in layer.buffers()}
        assert not kept & {value.data_ptr() for value in twin.buffers()}
        assert twin.plan == layer.plan
        x = layers.tokens(129, shape, seed)
        want = layer(x)
        assert torch.equal(twin(x), want)
        for value in layer.buffers():
            value.view(torch.uint8).zero_()
        assert torch.equal(twin(x), want)

    @each_dtype
    @pytest.mark.parametrize("way", ["torch", *PACKED])
    @pytest.mark.parametrize("where", ["cpu", CUDA])
    def test_a_file_of_the_module(self, where, way, dtype, tuned, seed):
        layer, shape = made(way, dtype, tuned, seed)
        file = io.BytesIO()
        torch.save(layer, file)
        assert file.getbuffer().nbytes < 1.2 * shape.n * shape.k + 2**13
        file.seek(0)
        back = torch.load(file, map_location=where, weights_only=False)
        assert {value.device for value in back.buffers()} == {torch.device(where)}
        assert same_states(back, layer)
        back.to(CUDA)
        assert back.plan == layer.plan
        x = layers.tokens(129, shape, seed)
        assert torch.equal(back(x), layer(x))

    @each_dtype
    def test_a_file_of_the_state_loads_without_pickled_code(self, dtype, tuned, seed, tmp_path):
        layer, shape = made("native", dtype, tuned, seed)
        other, _ = made("native", dtype, tuned, seed + 50)
        torch.save(layer.state_dict(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu")
        other.load_state_dict(state)
        x = layers.tokens(129, shape, seed)
        assert torch.equal(other(x), layer(x))


@each_dtype
def test_a_model_is_replaced_where_it_is(dtype, tuned, seed):
    """Linears that differ in size and plan; one in two places."""
    up, down = (layers.shape(*sizes, quantised=dtype) for sizes in ((512, 256), (256, 512)))
    one, two = layers.linear_of(up, seed), layers.linear_of(down, seed)
    model = torch.nn.Sequential(one, torch.nn.SiLU(), two, torch.nn.Identity(), one)
    x = layers.tokens(129, up, seed)
    with torch.no_grad():
        dense = model(x * 0.01)
    sparsify_(model, "6:8", up.dtype)
    assert model[4] is model[0]
    assert [type(module) for module in model][:3] == [SparseLinear, torch.nn.SiLU, SparseLinear]
    made = model(x * 0.01)
    assert made.device == torch.device(CUDA)
    assert float((made - dense).norm() / dense.norm()) < 0.15
