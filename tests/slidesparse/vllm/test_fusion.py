"""What stands before a linear joins it in the graphs that Inductor compiles, and only then."""

from __future__ import annotations

import layer_checks as checks
import pytest
import torch
import vllm_layers as layers
from torch import nn

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.usefixtures("cuda_platform")

HIDDEN, INNER = 32, 48


@pytest.fixture(autouse=True)
def taken(vllm_group, monkeypatch):
    import slidesparse.vllm

    slidesparse.vllm.register()
    monkeypatch.setattr("slidesparse.vllm.taken.measured_ways", layers.ways_of(16, 4096))


class Block(nn.Module):
    """One decoder layer without its attention."""

    def __init__(self, kind: str = "float") -> None:
        from vllm.model_executor.layers.activation import SiluAndMul
        from vllm.model_executor.layers.layernorm import RMSNorm

        super().__init__()
        block = layers.quantization(kind)
        self.before, self.between = RMSNorm(HIDDEN, 1e-5), RMSNorm(HIDDEN, 1e-6)
        self.qkv = layers.linear_of(HIDDEN, HIDDEN, block)
        self.o = layers.linear_of(HIDDEN, HIDDEN, block, bias=False)
        self.gate_up = layers.linear_of(2 * INNER, HIDDEN, block, bias=False, parts=2)
        self.down = layers.linear_of(HIDDEN, INNER, block, bias=False)
        self.act = SiluAndMul.forward_native  # Its class looks up a CUDA operator when made.
        generator = torch.Generator().manual_seed(1)
        for norm in (self.before, self.between):
            norm.weight.data.copy_(1 + torch.randn(HIDDEN, generator=generator) / 8)
        for seed, linear in enumerate((self.qkv, self.o, self.gate_up, self.down)):
            layers.fill(linear, "6:8", seed)
            layers.process(linear)

    def forward(self, x, residual=None):
        if residual is None:
            residual = x
            x = self.before.forward_native(x)
        else:
            x, residual = self.before.forward_native(x, residual)
        x, residual = self.between.forward_native(self.o(self.qkv(x)[0])[0], residual)
        return self.down(self.act(self.gate_up(x)[0]))[0], residual


def made(cls=Block, *arguments):
    config = layers.make_config()
    with layers.building(config):
        return cls(*arguments), config


def compiled(module, config, ops):
    """Compile a module as Inductor does for vLLM, which lowers its norms after our pass.

    `ops` gets the operators behind our pass.
    """
    from vllm.compilation.passes.inductor_pass import InductorPass, pass_context
    from vllm.compilation.passes.ir.clone_elimination import UnsafeCloneEliminationPass
    from vllm.compilation.passes.ir.inplace_functionalization import (
        VllmIRInplaceFunctionalizationPass,
    )
    from vllm.compilation.passes.ir.lowering_pass import VllmIRLoweringPass
    from vllm.compilation.passes.utility.post_cleanup import PostCleanupPass
    from vllm.config import set_current_vllm_config
    from vllm.config.utils import Range

    change = config.compilation_config.inductor_compile_config["post_grad_custom_post_pass"]

    class Seen(InductorPass):
        def uuid(self):
            return change.uuid()

        def __call__(self, graph):
            change(graph)
            graph.lint()
            ops.extend(str(n.target) for n in graph.nodes if n.op == "call_function")

    torch._dynamo.reset()
    # What vLLM runs behind a custom pass, less what looks up CUDA operators.
    cleanup = PostCleanupPass(config)
    following = (cleanup, VllmIRLoweringPass(config), UnsafeCloneEliminationPass(config), cleanup)

    class Manager(Seen):
        def __call__(self, graph):
            super().__call__(graph)
            for each in following:
                each(graph)
            graph.lint()

    options = {
        "pre_grad_custom_pass": VllmIRInplaceFunctionalizationPass(config),
        "post_grad_custom_post_pass": Manager(),
        "fx_graph_cache": False,
    }
    run = torch.compile(module, fullgraph=True, dynamic=True, options=options)

    def call(*inputs):
        with torch.no_grad(), set_current_vllm_config(config), pass_context(Range(1, 8192)):
            return run(*inputs)

    return call


def ours(ops):
    return [op.split(".")[1] for op in ops if op.startswith("slidesparse.")]


def eager(module, config, *inputs):
    from vllm.config import set_current_vllm_config

    with torch.no_grad(), set_current_vllm_config(config):
        return module(*inputs)


def error(out, truth):
    return float((out.double() - truth).norm() / truth.norm())


def norm_of(x, norm):
    wide = x.double()
    mean = wide.pow(2).mean(1, keepdim=True)
    return wide * (mean + norm.variance_epsilon).rsqrt() * norm.weight.double()


class TestADecoderLayer:
    def truth(self, block, x, residual):
        """In float64, with the weights that the layers hold and nothing else rounded."""

        def product(linear, rows):
            w = linear.weight.double() * linear.weight_scale.double()[:, None]
            out = rows @ w.t()
            return out if linear.bias is None else out + linear.bias.double()

        summed = x.double() if residual is None else x.double() + residual.double()
        rows = product(block.o, product(block.qkv, norm_of(summed, block.before)))
        summed = summed + rows
        gate, up = product(block.gate_up, norm_of(summed, block.between)).chunk(2, 1)
        return product(block.down, torch.nn.functional.silu(gate) * up), summed

    @pytest.mark.parametrize("first", [False, True])
    @pytest.mark.parametrize("kind", ["float", "int"])
    def test_is_joined_and_as_right_as_before(self, kind, first):
        block, config = made(Block, kind)
        ops: list[str] = []
        run = compiled(block, config, ops)
        for m in (5, 64):
            x = checks.tokens(m, HIDDEN)
            given = () if first else (checks.tokens(m, HIDDEN, seed=9),)
            got = run(x.clone(), *(t.clone() for t in given))
            plain = eager(block, config, x, *given)
            truth = self.truth(block, x, None if first else given[0])
            for ours_, theirs, exact in zip(got, plain, truth, strict=True):
                assert error(ours_, exact) <= 1.3 * error(theirs, exact) + 1e-3
        before = "rmsnorm_linear" if first else "add_rmsnorm_linear"
        assert ours(ops) == [before, "linear", "add_rmsnorm_linear", "silu_mul_linear"]
        assert not [op for op in ops if "rms_norm" in op or "sigmoid" in op or "exp" in op]

    def test_a_pass_is_added_once(self):
        _, config = made()
        change = config.compilation_config.inductor_compile_config["post_grad_custom_post_pass"]
        assert change.uuid().count("slidesparse-fusion") == 1

    def test_a_pass_of_the_user_runs_too(self):
        from vllm.compilation.passes.inductor_pass import CallableInductorPass

        seen = []
        config = layers.make_config()
        options = config.compilation_config.inductor_compile_config
        options["post_grad_custom_post_pass"] = CallableInductorPass(seen.append, "theirs")
        with layers.building(config):
            block = Block()
        assert options["post_grad_custom_post_pass"].uuid().startswith("theirs+slidesparse-fusion:")
        ops: list[str] = []
        compiled(block, config, ops)(checks.tokens(3, HIDDEN))
        assert len(seen) == 1
        assert "rmsnorm_linear" in ours(ops)


class Part(nn.Module):
    """A linear behind what a subclass computes."""

    def __init__(self) -> None:
        from vllm.model_executor.layers.layernorm import RMSNorm

        super().__init__()
        self.norm = RMSNorm(HIDDEN, 1e-5)
        self.linear = layers.linear_of(HIDDEN, HIDDEN, layers.quantization())
        layers.fill(self.linear, "dense")
        layers.process(self.linear)


class ReadTwice(Part):
    """A router reads the norm too."""

    def forward(self, x):
        h = self.norm.forward_native(x)
        return self.linear(h)[0], h.sum(1)


class ReadByTwo(Part):
    """Two linears read one norm: each would compute it."""

    def forward(self, x):
        h = self.norm.forward_native(x)
        return self.linear(h)[0] + self.linear(h)[0]


class PartOfTheRow(Part):
    """The norm's variance is that of half the row."""

    def forward(self, x):
        from vllm import ir

        return self.linear(ir.ops.rms_norm(x, self.norm.weight.data, 1e-5, HIDDEN // 2))[0]


class NoWeight(Part):
    """The norm has no weight."""

    def forward(self, x):
        from vllm import ir

        return self.linear(ir.ops.rms_norm(x, None, 1e-5))[0]


class Swapped(Part):
    """The gate is the second half."""

    def forward(self, x):
        wide = torch.cat([x, x + 1], 1)
        return self.linear(wide[:, :HIDDEN] * nn.functional.silu(wide[:, HIDDEN:]))[0]


class Shifted(Part):
    """Gate and up overlap."""

    def forward(self, x):
        wide = torch.cat([x, x + 1], 1)
        rows = nn.functional.silu(wide[:, :HIDDEN]) * wide[:, HIDDEN - 1 : -1]
        return self.linear(rows)[0]


class OtherActivation(Part):
    """GELU, not SiLU."""

    def forward(self, x):
        wide = torch.cat([x, x + 1], 1)
        return self.linear(nn.functional.gelu(wide[:, :HIDDEN]) * wide[:, HIDDEN:])[0]


class ThreeDimensions(Part):
    """Rows of a batch, as encoders have them."""

    def forward(self, x):
        return self.linear(self.norm.forward_native(x[None]))[0]


@pytest.mark.parametrize(
    "cls",
    [
        ReadTwice,
        ReadByTwo,
        PartOfTheRow,
        NoWeight,
        Swapped,
        Shifted,
        OtherActivation,
        ThreeDimensions,
    ],
)
def test_what_cannot_be_joined_stays_apart(cls):
    part, config = made(cls)
    ops: list[str] = []
    x = checks.tokens(6, HIDDEN)
    got = compiled(part, config, ops)(x.clone())
    assert set(ours(ops)) == {"linear"}
    plain = eager(part, config, x)
    for one, other in zip(
        *((t if isinstance(t, tuple) else (t,)) for t in (got, plain)), strict=True
    ):
        assert error(one, other.double()) <= 0.03


class Upwards(Part):
    """SiLU * mul in the order up * SiLU(gate), and a view of the rows."""

    def forward(self, x):
        wide = torch.cat([x, x + 1], 1)
        rows = wide[:, HIDDEN:] * nn.functional.silu(wide[:, :HIDDEN])
        return self.linear(rows.view(-1, HIDDEN))[0]


def test_the_order_of_the_factors_does_not_matter():
    part, config = made(Upwards)
    ops: list[str] = []
    x = checks.tokens(6, HIDDEN)
    got = compiled(part, config, ops)(x)
    assert ours(ops) == ["silu_mul_linear"]
    assert error(got, eager(part, config, x).double()) <= 0.05


def test_a_linear_that_vllm_keeps_is_left_alone(monkeypatch):
    monkeypatch.setattr("slidesparse.vllm.taken.measured_ways", layers.ways_of())
    part, config = made(Part)
    kernel = part.linear.scheme.fp8_linear
    monkeypatch.setattr(kernel.stock, "apply_weights", lambda layer, x, bias: x * 2)

    class Kept(nn.Module):
        def forward(self, x):
            return part.linear(part.norm.forward_native(x))[0]

    ops: list[str] = []
    x = checks.tokens(4, HIDDEN)
    got = compiled(Kept(), config, ops)(x)
    assert ours(ops) == []
    assert error(got, 2 * norm_of(x, part.norm)) <= 0.01


def test_a_graph_that_says_nothing_of_its_values_runs_as_it_is():
    """A pass of the user may make such nodes."""
    from slidesparse.layers.op import linear_op
    from slidesparse.vllm.fusion import fuse

    graph = torch.fx.Graph()
    x, w, scale = (graph.placeholder(name) for name in ("x", "w", "scale"))
    view = graph.call_function(torch.ops.aten.view.default, (x, [-1, HIDDEN]))
    graph.output(graph.call_function(linear_op, (view, [w], scale, None, "{}")))
    before = str(graph)
    fuse(graph)
    assert str(graph) == before
