"""What outlives one layer: caches of compiled graphs, weights that move, the line at start."""

from __future__ import annotations

import copy
import gc
import logging
import os
import pickle
import weakref
from types import SimpleNamespace

import layer_checks as checks
import pytest
import torch
import vllm_layers as layers

from slidesparse.cache_store import ENVIRONMENT

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.usefixtures("cuda_platform")

N, K = 32, 96
FP8 = layers.quantization()


@pytest.fixture(autouse=True)
def registered(vllm_group, monkeypatch):
    import slidesparse.vllm

    slidesparse.vllm.register()
    monkeypatch.setattr("slidesparse.vllm.taken.measured_ways", layers.ways_of(16, 4096))


def kernel_of(layer):
    return getattr(layer.scheme, "fp8_linear", None) or layer.scheme.kernel


def load(config, patterns, block=FP8, **changes):
    """Layers of a model, one for each pattern; None leaves a layer without its weights."""
    with layers.building(config):
        made = [layers.linear_of(N, K, block) for _ in patterns]
        for layer, pattern in zip(made, patterns, strict=True):
            for name, value in changes.items():
                setattr(layer, name, value)
            if pattern is not None:
                layers.fill(layer, pattern)
                layers.process(layer)
    return made


def identity(config):
    """Of the graphs that a configuration compiles."""
    return config.compilation_config.compute_hash()


class TestCachesOfCompiledGraphs:
    def hash_of(self, patterns, buckets=(16, 4096), monkeypatch=None):
        if monkeypatch is not None:
            name = "slidesparse.vllm.taken.measured_ways"
            monkeypatch.setattr(name, layers.ways_of(*buckets))
        config = layers.make_config()
        load(config, patterns)
        return identity(config)

    def test_depend_on_the_plans(self, monkeypatch):
        first = self.hash_of(["6:8"])
        assert self.hash_of(["6:8"]) == first
        assert self.hash_of(["2:4"]) != first
        assert self.hash_of(["6:8"], (16, 64), monkeypatch) != first

    def test_depend_on_which_layer_has_which_plan(self):
        orders = [["6:8", "2:4"], ["2:4", "6:8"], ["6:8"], ["6:8", "6:8"]]
        assert len({self.hash_of(order) for order in orders}) == len(orders)

    def test_depend_on_which_layers_stay_with_vllm(self, monkeypatch):
        from slidesparse.vllm import session
        from slidesparse.vllm.taken import LeftToVllm

        real, found = session.decide, set()
        for left in ([0], [1], [2], []):
            count = iter(range(3))

            def some(*arguments, left=left, count=count):
                if next(count) in left:
                    raise LeftToVllm("no tuning result")
                return real(*arguments)

            monkeypatch.setattr(session, "decide", some)
            found.add(self.hash_of(["6:8"] * 3))
        assert len(found) == 4

    def test_a_layer_that_is_never_loaded_changes_nothing_of_that(self):
        """A vision tower that is switched off: its layers are made and dropped."""
        assert self.hash_of([None, "6:8"]) != self.hash_of([None, "2:4"])

    def test_configurations_that_share_a_compilation_share_the_plans(self):
        """As vLLM copies one for the language model of a multimodal one, or for a draft model."""
        outer = layers.make_config()
        inner = copy.copy(outer)
        inner.additional_config = dict(outer.additional_config)
        before = identity(inner)
        load(outer, ["6:8"])
        assert identity(inner) == identity(outer) != before

    def test_what_cannot_be_cached_by_its_plans_is_not_taken(self, monkeypatch, caplog):
        from slidesparse.vllm import compat

        def fails(*arguments):
            raise AttributeError("no such option")

        monkeypatch.setattr(compat, "custom_pass", fails)
        (layer,) = load(layers.make_config(), ["6:8"])
        assert not kernel_of(layer).taken
        assert "slidesparse takes no layer: AttributeError: no such option" in caplog.messages

    def test_the_pass_goes_to_other_processes_and_is_not_copied_here(self):
        config = layers.make_config()
        load(config, ["6:8"])
        options = config.compilation_config.inductor_compile_config
        ours = options["post_grad_custom_post_pass"]
        assert pickle.loads(pickle.dumps(ours)).uuid() == ours.uuid()
        assert copy.deepcopy(options)["post_grad_custom_post_pass"] is ours


class TestWeights:
    def test_belong_to_the_layer_alone(self):
        """vLLM may move them to the host, or drop the model."""
        config = layers.make_config()
        (layer,) = load(config, ["6:8"])
        kernel = kernel_of(layer)
        held = weakref.ref(layer.weight.untyped_storage())
        layer.weight.data = layer.weight.data.clone()
        gc.collect()
        assert held() is None
        assert kernel.taken

    def test_a_model_that_is_gone_leaves_nothing(self):
        from slidesparse.vllm import session

        config = layers.make_config()
        load(config, ["6:8"])
        gone = weakref.ref(config.compilation_config)
        assert any(ref() is gone() for ref, _ in session._sessions)
        del config
        gc.collect()
        assert gone() is None

    def again(self, layer, pattern, seed=0):
        """Load other weights into a layer, as vLLM's reloading does."""
        with layers.building(layers.make_config()):
            fresh = layers.linear_of(N, K, FP8)
        w = layers.fill(fresh, pattern, seed)
        layer.weight = torch.nn.Parameter(fresh.weight.data.t(), requires_grad=False)
        layer.weight_scale = torch.nn.Parameter(fresh.weight_scale.data, requires_grad=False)
        kernel_of(layer).process_weights_after_loading(layer)
        return w

    def test_come_again(self):
        config = layers.make_config()
        (layer,) = load(config, ["6:8"])
        before, x = identity(config), checks.tokens(7, K)
        w = self.again(layer, "6:8", seed=3)
        rows = checks.quantised(x, layer.weight.dtype)
        truth = rows.values @ w.t() + layer.bias.double()
        assert ((layer(x)[0] - truth).abs() <= truth.abs() * 2**-8 + 1e-5).all()
        assert kernel_of(layer).decided.plan.to_text() == kernel_of(layer).plan
        assert identity(config) == before

    def test_that_come_again_stay_with_vllm_if_they_did(self, monkeypatch):
        monkeypatch.setattr("slidesparse.vllm.taken.measured_ways", layers.ways_of())
        config = layers.make_config()
        (layer,) = load(config, ["6:8"])
        monkeypatch.setattr("slidesparse.vllm.taken.measured_ways", layers.ways_of(16))
        self.again(layer, "6:8")
        assert not kernel_of(layer).taken
        assert layer.weight.shape == (K, N)


class TestShards:
    def block(self, keep=()):
        return {
            "version": "0.1.0",
            "pattern": "6:8",
            "layers": {},
            "method": "wanda",
            "dtype": "fp8_e4m3",
            "keep": list(keep),
        }

    def summary(self, pattern, tp=2, whole_k=2 * K + 8, allowed=None, keep=()):
        """Of a model of one layer whose K is shared; 2 K + 8 has its half inside a block of 8."""
        options = {} if allowed is None else {"slidesparse": {"patterns": allowed}}
        config = layers.make_config(options)
        config.model_config.hf_config = SimpleNamespace(slidesparse=self.block(keep))
        config.parallel_config.tensor_parallel_size = tp
        with layers.building(config):
            layer = layers.linear_of(N, K + 4, FP8)
            layer.input_size = whole_k
            layers.fill(layer, pattern)
            layers.process(layer)
        return kernel_of(layer).session.summary()

    said = "1 lost the checkpoint's pattern: tensor parallelism cuts their K inside a block"

    def test_that_begin_inside_a_block_are_said(self):
        assert self.said in self.summary("dense")

    @pytest.mark.parametrize(
        "case",
        [
            {"pattern": "6:8"},
            {"pattern": "dense", "tp": 1},
            {"pattern": "dense", "whole_k": K + 4},  # Column-parallel: N is shared.
            {"pattern": "6:8", "allowed": ["2:4"]},
        ],
        ids=str,
    )
    def test_and_nothing_else_is(self, case):
        assert "lost" not in self.summary(**case)


class TestTheLine:
    def test_comes_once_all_layers_are_there(self, caplog):
        with caplog.at_level(logging.INFO, "vllm.slidesparse"):
            load(layers.make_config(), ["6:8", "6:8", "2:4"])
        assert [r.getMessage() for r in caplog.records if r.name == "vllm.slidesparse"] == [
            "slidesparse 0.1.0: 3 of 3 W8A8 linears taken; 6:8 2, 2:4 1; GEMMs at M=4096 reference "
            "3; GEMMs expected 1.00x as fast as the best dense ones"
        ]

    def test_says_what_was_never_measured(self, monkeypatch):
        monkeypatch.setattr("slidesparse.vllm.taken.measured_ways", layers.ways_of(16))
        (layer,) = load(layers.make_config(), ["6:8"])
        assert "gain unknown: M=4096 was not measured" in kernel_of(layer).session.summary()

    def test_latent_attention_keeps_its_weight(self):
        (layer,) = load(layers.make_config(), ["6:8"], prefix="model.layers.0.self_attn.kv_b_proj")
        assert "latent attention reads its weight 1" in kernel_of(layer).session.summary()


class TestWhereResultsAre:
    def test_is_for_the_model_that_says_so(self, monkeypatch, tmp_path):
        from slidesparse.vllm import session

        monkeypatch.setenv(ENVIRONMENT, "before")
        monkeypatch.setattr(session, "_ENVIRONMENT", "before")
        one = layers.make_config({"slidesparse": {"cache_dir": str(tmp_path)}})
        load(one, ["6:8"])
        assert os.environ[ENVIRONMENT] == str(tmp_path)
        load(layers.make_config(), ["6:8"])
        assert os.environ[ENVIRONMENT] == "before"
