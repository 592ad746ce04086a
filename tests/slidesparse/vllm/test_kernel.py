"""Which class vLLM gives its linear layers, and what the layers then compute."""

from __future__ import annotations

import logging

import layer_checks as checks
import pytest
import torch
import vllm_layers as layers

from slidesparse.layers.layer_plan import from_text
from slidesparse.layers.prepared import prepared

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.usefixtures("cuda_platform")

N, K = 32, 96


@pytest.fixture(autouse=True)
def registered(vllm_group):
    import slidesparse.vllm

    slidesparse.vllm.register()


@pytest.fixture
def measured(monkeypatch):
    """Plain torch was measured, so that layers are taken over and run here."""
    monkeypatch.setattr("slidesparse.vllm.taken.measured_ways", layers.ways_of(16, 4096))


def kernel_of(layer):
    return getattr(layer.scheme, "fp8_linear", None) or layer.scheme.kernel


def made(block, pattern="6:8", parts=1, bias=True, config=None):
    """A loaded layer, its kernel, and the weight it stands for."""
    with layers.building(config or layers.make_config()):
        layer = layers.linear_of(N, K, block, bias, parts)
        w = layers.fill(layer, pattern)
        layers.process(layer)
    return layer, kernel_of(layer), w


def said(caplog):
    """What our part of the log says."""
    return [r.getMessage() for r in caplog.records if r.name == "vllm.slidesparse"]


class TestChoice:
    @pytest.mark.parametrize(
        ("kind", "ours", "stock"),
        [
            ("float", "SlideSparseFP8LinearKernel", "CutlassFP8ScaledMMLinearKernel"),
            ("int", "SlideSparseInt8LinearKernel", "CutlassInt8ScaledMMLinearKernel"),
        ],
    )
    def test_ours_is_asked_first_and_knows_what_vllm_would_take(self, kind, ours, stock):
        with layers.building(layers.make_config()):
            kernel = kernel_of(layers.linear_of(N, K, layers.quantization(kind)))
        assert type(kernel).__name__ == ours
        assert type(kernel.stock).__name__ == stock
        assert kernel.input_quant_key() is None

    def test_registering_again_changes_nothing(self):
        import slidesparse.vllm
        from slidesparse.vllm import compat

        before = [list(compat.kernels_of(kind)) for kind in ("fp8", "int8")]
        slidesparse.vllm.register()
        assert [list(compat.kernels_of(kind)) for kind in ("fp8", "int8")] == before

    @pytest.mark.parametrize("kind", ["float", "int"])
    @pytest.mark.parametrize(
        "change",
        [
            {"additional": {"slidesparse": {"off": True}}},
            {"additional": {"slidesparse": {"of": True}}},
            {"lora_config": object()},
            {"linear_backend": "cutlass"},
            {"cpu_offload_gb": 4},
            {"quantization": "fp8"},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_vllm_keeps_what_is_not_ours(self, kind, change):
        change = dict(change)
        backend, other = change.pop("linear_backend", None), change.pop("quantization", None)
        host = change.pop("cpu_offload_gb", 0)
        config = layers.make_config(change.pop("additional", None), **change)
        if backend:
            config.kernel_config.linear_backend = backend
        if other:
            config.model_config.quantization = other
        config.offload_config.uva.cpu_offload_gb = host
        with layers.building(config):
            kernel = kernel_of(layers.linear_of(N, K, layers.quantization(kind)))
        assert type(kernel).__name__.startswith("Cutlass")
        assert "post_grad_custom_post_pass" not in config.compilation_config.inductor_compile_config

    def test_vllm_keeps_a_model_whose_results_may_not_depend_on_the_batch(self, monkeypatch):
        monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
        with layers.building(layers.make_config()):
            kernel = kernel_of(layers.linear_of(N, K, layers.quantization()))
        assert type(kernel).__name__.startswith("Cutlass")

    def test_an_option_that_cannot_be_read_is_said_once(self, caplog):
        config = layers.make_config({"slidesparse": {"memory_format": "tiny"}})
        with caplog.at_level(logging.WARNING, "vllm.slidesparse"), layers.building(config):
            for _ in range(2):
                layers.linear_of(N, K, layers.quantization())
        assert said(caplog) == [
            "slidesparse is off: slidesparse.memory_format is 'tiny'; use fastest or smallest"
        ]

    def test_vllm_keeps_layers_whose_callers_ask_for_another_class(self, monkeypatch):
        """As they ask for Marlin, whose weights they ready in another way."""
        from slidesparse.vllm import kernel

        monkeypatch.setenv("VLLM_DISABLED_KERNELS", "CutlassInt8ScaledMMLinearKernel")
        monkeypatch.setattr(kernel, "UNLIKE", ("Triton",))
        with layers.building(layers.make_config()):
            layer = layers.linear_of(N, K, layers.quantization("int"))
        assert type(kernel_of(layer)).__name__ == "TritonInt8ScaledMMLinearKernel"

    def test_int8_with_static_activations_stays_with_vllm(self):
        with layers.building(layers.make_config()):
            layer = layers.linear_of(N, K, layers.quantization("int", static=True))
        assert type(kernel_of(layer)).__name__ == "CutlassInt8ScaledMMLinearKernel"


class TestTaken:
    @pytest.mark.parametrize("pattern", ["dense", "2:4", "6:8"])
    @pytest.mark.parametrize("weights", ["channel", "tensor"])
    @pytest.mark.parametrize("kind", ["float", "int"])
    def test_computes_the_product(self, measured, kind, weights, pattern):
        layer, kernel, w = made(layers.quantization(kind, weights), pattern)
        assert kernel.taken
        assert str(from_text(kernel.plan).pattern) == pattern
        for shape in ((1, K), (7, K), (2, 3, K), (0, K)):
            x = checks.tokens(*shape)
            out = layer(x)[0]
            assert out.shape == (*shape[:-1], N)
            assert out.dtype is torch.bfloat16
            rows = checks.quantised(x.reshape(-1, K), layer.weight.dtype)
            truth = rows.values @ w.t() + layer.bias.double()
            assert ((out.reshape(-1, N) - truth).abs() <= truth.abs() * 2**-8 + 1e-5).all()

    @pytest.mark.parametrize(
        ("kind", "weights"), [("float", "channel"), ("int", "channel"), ("int", "tensor")]
    )
    def test_merged_layers_keep_the_scales_of_their_parts(self, measured, kind, weights):
        with layers.building(layers.make_config()):
            layer = layers.linear_of(N, K, layers.quantization(kind, weights), parts=2)
            halves = torch.randn(2, N // 2, K, generator=torch.Generator().manual_seed(4))
            halves[1] *= 20
            largest = 448 if kind == "float" else 127
            one = weights == "tensor"
            step = halves.abs().amax((1, 2) if one else 2, keepdim=True) / largest
            q = (halves / step).reshape(N, K)
            layer.weight.data.copy_(q if kind == "float" else q.round())
            layer.weight_scale.data.copy_(step.reshape(layer.weight_scale.shape))
            layer.bias.data.zero_()
            stored = layer.weight.data.double().reshape(halves.shape) * step.double()
            layer.quant_method.process_weights_after_loading(layer)
        assert kernel_of(layer).taken
        x = checks.tokens(5, K)
        rows = checks.quantised(x, layer.weight.dtype)
        truth = rows.values @ stored.reshape(N, K).t()
        assert ((layer(x)[0] - truth).abs() <= truth.abs() * 2**-8 + 1e-5).all()

    def test_static_activations_are_quantised_by_their_scale(self, measured):
        with layers.building(layers.make_config()):
            layer = layers.linear_of(N, K, layers.quantization(static=True))
            w = layers.fill(layer, "6:8")
            layer.input_scale.data.fill_(0.02)
            layer.quant_method.process_weights_after_loading(layer)
        x = checks.tokens(7, K)
        q = (x.double() / 0.02).clamp(-448, 448).to(torch.float8_e4m3fn).double()
        truth = q * 0.02 @ w.t() + layer.bias.double()
        assert ((layer(x)[0] - truth).abs() <= truth.abs() * 2**-6 + 1e-3).all()

    def test_a_pattern_that_is_not_allowed_runs_dense(self, measured):
        config = layers.make_config({"slidesparse": {"patterns": ["2:4"]}})
        _, kernel, _ = made(layers.quantization(), "6:8", config=config)
        assert str(from_text(kernel.plan).pattern) == "dense"
        _, kernel, _ = made(layers.quantization(), "2:4", config=config)
        assert str(from_text(kernel.plan).pattern) == "2:4"


class TestLeftToVllm:
    def test_without_a_tuning_result(self, caplog):
        config = layers.make_config()
        with caplog.at_level(logging.INFO, "vllm.slidesparse"):
            layer, kernel, _ = made(layers.quantization(), config=config)
        assert not kernel.taken
        assert layer.weight.shape == (K, N)  # As vLLM's kernel wants it.
        assert said(caplog)[-1] == (
            "slidesparse 0.1.0: 0 of 1 W8A8 linears taken; left to vLLM: no tuning result 1; run "
            "slidesparse search and tune for this model on this GPU"
        )

    def test_whatever_breaks_costs_the_layer_only(self, measured, monkeypatch, caplog):
        def fails(*arguments):
            raise RuntimeError("no such thing")

        monkeypatch.setattr("slidesparse.vllm.taken.to_format", fails)
        layer, kernel, _ = made(layers.quantization())
        assert not kernel.taken
        assert layer.weight.shape == (K, N)
        assert "a linear layer stays with vLLM: RuntimeError: no such thing" in caplog.messages

    def test_what_cannot_be_prepared(self, measured, monkeypatch):
        from slidesparse.errors import CandidateError

        def fails(*arguments):
            raise CandidateError("it does not fit")

        monkeypatch.setattr("slidesparse.vllm.taken.prepared", fails)
        _, kernel, _ = made(layers.quantization("int"))
        assert not kernel.taken
        assert "it does not fit 1" in kernel.session.summary()

    def test_calls_go_to_the_kernel_of_vllm(self, monkeypatch):
        layer, kernel, _ = made(layers.quantization())
        monkeypatch.setattr(kernel.stock, "apply_weights", lambda layer, x, bias: (x, bias))
        x = checks.tokens(2, K)
        out, bias = kernel.apply_weights(layer, x, layer.bias)
        assert out is x
        assert bias is layer.bias


def test_the_summary_of_a_model(measured, caplog):
    config = layers.make_config()
    with caplog.at_level(logging.INFO, "vllm.slidesparse"), layers.building(config):
        loaded = [layers.linear_of(N, K, layers.quantization()) for _ in range(3)]
        for layer, pattern in zip(loaded, ("6:8", "6:8", "2:4"), strict=True):
            layers.fill(layer, pattern)
            assert not said(caplog)
            layer.quant_method.process_weights_after_loading(layer)
    assert said(caplog) == [
        "slidesparse 0.1.0: 3 of 3 W8A8 linears taken; 6:8 2, 2:4 1; GEMMs at M=4096 reference 3; "
        "GEMMs expected 1.00x as fast as the best dense ones"
    ]


def test_layers_of_equal_plans_share_what_runs_them(measured):
    kernels = [made(layers.quantization())[1] for _ in range(2)]
    assert kernels[0].plan == kernels[1].plan
    assert prepared(kernels[0].plan, "cpu", 0) is prepared(kernels[1].plan, "cpu", 0)
