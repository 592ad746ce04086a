"""The operator of a layer: torch.compile takes it whole, for every M; what does not fit is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import layer_checks as checks
import layer_plans as plans
import pytest
import torch
from layer_plans import REFERENCE, TORCHAO, shape_of
from torch._subclasses.fake_tensor import FakeTensorMode

from slidesparse.candidate import Candidate
from slidesparse.errors import KernelError
from slidesparse.layers import SparseLinear
from slidesparse.layers.op import linear_op
from slidesparse.layers.prepared import Prepared, prepared
from slidesparse.layers.ways import Reference
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.tensors import TORCH_DTYPES

N, K = 37, 100
PATTERNS = ["dense", "6:8"]
QUANTISED = ["fp8", "int8"]


def made(pattern: str = "6:8", quantised: str = "fp8", n: int = N, k: int = K) -> SparseLinear:
    return SparseLinear.from_linear(checks.linear_of(n, k, pattern), pattern, quantised)


def compiled(
    module: torch.nn.Module, graphs: list[int], dynamic: bool = True
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Compile without a break in the graph; `graphs` gets one entry for each compilation."""
    from torch._dynamo.backends.debugging import aot_eager

    torch._dynamo.reset()

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(len(inputs))
        return aot_eager(graph, inputs)

    run: Callable[[torch.Tensor], torch.Tensor] = torch.compile(
        module, fullgraph=True, dynamic=dynamic, backend=backend
    )
    return run


def arguments(quantised: str = "int8", bias: bool = True) -> tuple[object, ...]:
    layer = made(quantised=quantised)
    added = layer.bias if bias else None
    return (
        checks.tokens(3, K),
        [layer.weight],
        layer.weight_scale.view(-1),
        added,
        layer.plan.to_text(),
    )


class TestCompile:
    @pytest.mark.parametrize("quantised", QUANTISED)
    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_one_graph_for_every_number_of_tokens(self, pattern, quantised):
        layer, graphs = made(pattern, quantised), []
        run = compiled(layer, graphs)
        for m in (7, 129, 16, 64, 4097):
            x = checks.tokens(m, K)
            assert torch.equal(run(x), layer(x))
        assert len(graphs) == 1

    def test_one_token_and_none(self):
        """Dynamo specialises on 0 and 1, and that is all it compiles anew for."""
        layer, graphs = made(), []
        run = compiled(layer, graphs)
        for m in (7, 1, 0, 129, 1, 0):
            x = checks.tokens(m, K)
            assert torch.equal(run(x), layer(x))
        assert len(graphs) <= 3

    def test_three_dimensions_inside_a_model(self):
        model = torch.nn.Sequential(made(n=64), torch.nn.GELU(), made(n=N, k=64))
        graphs: list[int] = []
        run = compiled(model, graphs)
        for batch, length in ((2, 5), (3, 17), (4, 129)):
            x = checks.tokens(batch, length, K)
            assert torch.equal(run(x), model(x))
        assert len(graphs) == 1

    def test_a_transposed_input(self):
        layer, graphs = made(), []
        run = compiled(layer, graphs)
        x = checks.tokens(K, 7).t()
        assert torch.equal(run(x), layer(x))

    def test_a_refusal_comes_through(self):
        run = compiled(made(), [])
        with pytest.raises(Exception, match=r"the layer takes torch.bfloat16"):
            run(checks.tokens(3, K, dtype=torch.float32))

    def test_another_dtype_or_state_is_seen(self):
        """Plan and weight are read anew after they change."""
        layer, graphs = made(), []
        run = compiled(layer, graphs)
        x = checks.tokens(7, K)
        run(x)
        other = SparseLinear.from_linear(checks.linear_of(N, K, "6:8", seed=5), "6:8")
        layer.load_state_dict(other.state_dict())
        assert torch.equal(run(x), other(x))
        layer.half()
        assert torch.equal(run(x.half()), layer(x.half()))


class TestOperator:
    @pytest.mark.parametrize("bias", [True, False])
    def test_opcheck(self, bias):
        """INT8 only: FP8 operands cannot be checked, torch multiplies them."""
        torch.library.opcheck(linear_op, arguments(bias=bias))

    @pytest.mark.parametrize("m", [0, 1, 7])
    @pytest.mark.parametrize("out", [DType.BF16, DType.FP16, DType.FP32])
    def test_what_graphs_expect_is_what_comes(self, m, out):
        shape = shape_of(N, K, Pattern.parse("6:8"), DType.INT8, out, bias=True)
        text = plans.plan_of(shape, [(16, REFERENCE)]).to_text()
        _, weights, scale, bias, _ = arguments()
        x, bias = checks.tokens(m, K), bias.to(TORCH_DTYPES[out])
        real = linear_op(x, weights, scale, bias, text)
        with FakeTensorMode() as mode:
            given = [mode.from_tensor(t) for t in (x, *weights, scale, bias)]
            fake = linear_op(given[0], [given[1]], *given[2:], text)
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())

    def test_meta_tensors_have_shapes(self):
        with torch.device("meta"):
            x, scale = torch.empty(3, K, dtype=torch.bfloat16), torch.empty(N)
            weight = torch.empty(N, K, dtype=torch.int8)
        out = linear_op(x, [weight], scale, None, arguments()[-1])
        assert out.is_meta
        assert out.shape == (3, N)

    @pytest.mark.parametrize(
        "x",
        [
            torch.zeros(3, K - 1, dtype=torch.bfloat16),
            torch.zeros(3, 2, K, dtype=torch.bfloat16),
            torch.zeros(K, dtype=torch.bfloat16),
            torch.zeros(3, K, dtype=torch.float64),
        ],
        ids=lambda x: f"{x.dtype} {tuple(x.shape)}",
    )
    def test_an_x_that_does_not_fit_the_plan(self, x):
        _, *rest = arguments()
        with pytest.raises(KernelError) as raised:
            linear_op(x, *rest)
        assert str(raised.value) == (
            f"x is {x.dtype} {tuple(x.shape)}; bfloat16, float16 or float32 [M, 100] is needed"
        )

    def test_a_text_that_is_no_plan(self):
        *rest, _ = arguments()
        with pytest.raises(KernelError, match=r"^not the plan of a linear layer: "):
            linear_op(*rest, "{}")

    def test_a_plan_that_nothing_runs(self):
        *rest, _ = arguments()
        shape = shape_of(N, K, DENSE, DType.INT8, bias=True)
        text = plans.plan_of(shape, [(16, TORCHAO)]).to_text()
        with pytest.raises(KernelError, match=r"^nothing runs candidates of torchao in a layer$"):
            linear_op(*rest, text)

    def test_inputs_are_left_alone(self):
        given = arguments()
        before = [t.clone() for t in (given[0], *given[1], given[2], given[3])]
        linear_op(*given)
        after = [given[0], *given[1], given[2], given[3]]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(("m", "ran"), [(1, 16), (16, 16), (17, 256), (256, 256), (4097, 256)])
def test_the_step_of_the_number_of_tokens_runs(m, ran, monkeypatch):
    calls = []

    class Noted(Reference):
        def run(self, q, x_scale, weight, w_scale, bias, out):
            calls.append((self.candidate.params["up_to"], weight))
            super().run(q, x_scale, weight, w_scale, bias, out)

    monkeypatch.setattr("slidesparse.layers.prepared.make_way", lambda plan, c: Noted(plan, c))
    shape = shape_of(N, K, Pattern.parse("6:8"), DType.INT8, bias=True)
    steps = [(b, Candidate("reference", {"up_to": b, "m": m})) for b in (16, 256)]
    _, weights, scale, bias, _ = arguments()
    text = plans.plan_of(shape, steps).to_text()
    linear_op(checks.tokens(m, K), weights, scale, bias, text)
    ((bucket, weight),) = calls
    assert bucket == ran
    assert weight.data_ptr() == weights[0].data_ptr()


def test_equal_layers_share_what_runs_them():
    first, second = made(), SparseLinear.from_linear(checks.linear_of(N, K, "6:8", seed=9), "6:8")
    text = first.plan.to_text()
    assert text == second.plan.to_text()
    assert prepared(text, "cpu", 0) is prepared(text, "cpu", 0)


def test_native_kernels_of_a_plan_are_compiled_together(tmp_path, monkeypatch):
    """NVRTC compiles for a GPU that is not there; only loading is left out."""
    pytest.importorskip("cuda.core", reason="it compiles the CUDA sources")
    monkeypatch.setenv("SLIDESPARSE_CACHE_DIR", str(tmp_path))
    compiled, loaded = tmp_path / "native" / "entries", []

    def load(variant, device):
        loaded.append((variant, len(list(compiled.glob("*/*")))))

    monkeypatch.setattr("slidesparse.kernels.native.program.load", load)
    other = replace(plans.NATIVE, params={**plans.SMALL, "tokens": 64})
    steps = [(16, plans.NATIVE), (64, other), (256, REFERENCE), (1024, plans.NATIVE)]
    Prepared(plans.plan_of(shape_of(), steps), torch.device("cpu"))
    assert [count for _, count in loaded] == [2, 2, 2]
    assert len({variant for variant, _ in loaded}) == 2


def test_nothing_is_made_ready_while_a_graph_is_captured(monkeypatch):
    """On a GPU: compiling and loading would break the capture."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    text = plans.plan_of(shape_of(n=16, k=48), [(16, REFERENCE)]).to_text()
    with pytest.raises(KernelError) as raised:
        prepared(text, "cuda", 0)
    assert (
        str(raised.value)
        == "the layer never ran on cuda:0, which a CUDA graph cannot capture; run it once before"
    )
