"""SparseLinear on the CPU gives the product of its quantised operands, rounded once."""

from __future__ import annotations

import layer_checks as checks
import layer_plans as plans
import pytest
import torch
from torch import nn

from slidesparse.candidate import Candidate
from slidesparse.errors import KernelError, PatternError, ProblemError
from slidesparse.layers import LayerPlan, SparseLinear, SparseWeight
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method
from slidesparse.slide import detect_pattern, prune_magnitude

N, K = 37, 100
"""K is a multiple of no block and of no 16 bytes, N of nothing."""

PATTERNS = ["dense", "2:4", "4:6", "6:8", "8:10"]
QUANTISED = ["fp8", "int8"]
FLOATS = [torch.bfloat16, torch.float16, torch.float32]
SIX_EIGHT = Pattern.parse("6:8")
LOSS = {"fp8": 0.05, "int8": 0.015}
"""Of a product of normal values, relative: what eight bits cost. Measured: 3.7 % and 0.9 %."""


def made(
    pattern="6:8", quantised="fp8", dtype=torch.bfloat16, bias=True, n=N, k=K, **options
) -> SparseLinear:
    linear = checks.linear_of(n, k, pattern, dtype, bias)
    return SparseLinear.from_linear(linear, pattern, quantised, **options)


class TestProduct:
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("quantised", QUANTISED)
    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_every_pattern_and_dtype(self, pattern, quantised, dtype):
        for bias in (True, False):
            layer = made(pattern, quantised, dtype, bias)
            for m in (1, 7, 129, 0):
                x = checks.tokens(m, K, dtype=dtype)
                checks.assert_right(layer(x), layer, x)

    @pytest.mark.parametrize("quantised", QUANTISED)
    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_it_stands_for_the_linear_it_was_made_of(self, pattern, quantised):
        linear = checks.linear_of(N, K, pattern, torch.float32)
        layer = SparseLinear.from_linear(linear, pattern, quantised)
        x = checks.tokens(129, K, dtype=torch.float32)
        want = x.double() @ linear.weight.detach().double().T
        got = layer(x).double() - layer.bias.double()
        assert float((got - want).norm() / want.norm()) < LOSS[quantised]

    @pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 3), (64, 128), (257, 18), (5, 2050)])
    @pytest.mark.parametrize("quantised", QUANTISED)
    def test_other_sizes(self, n, k, quantised):
        layer = made(quantised=quantised, n=n, k=k)
        x = checks.tokens(3, k)
        checks.assert_right(layer(x), layer, x)

    @pytest.mark.parametrize("shape", [(K,), (2, 5, K), (2, 0, K), (1, 2, 3, K), (1, 1, K)])
    def test_any_number_of_dimensions(self, shape):
        layer = made()
        x = checks.tokens(*shape)
        checks.assert_right(layer(x), layer, x)

    @pytest.mark.parametrize(
        "turn",
        [
            lambda: checks.tokens(K, 7).t(),
            lambda: checks.tokens(7, 2 * K)[:, ::2],
            lambda: checks.tokens(7, K + 9)[:, 4 : 4 + K],
            lambda: checks.tokens(14, K)[::2],
            lambda: checks.tokens(1, K).expand(7, K),
            lambda: checks.tokens(2, K, 3).transpose(1, 2),
            lambda: checks.tokens(3, 2, K).transpose(0, 1),
            lambda: checks.tokens(2, 3, K + 1)[..., 1:],
        ],
        ids=[
            *("transposed", "every second column", "columns", "every second row", "one row"),
            *("channels first", "sequence first", "columns of three dimensions"),
        ],
    )
    def test_inputs_need_not_be_contiguous(self, turn):
        layer, x = made(), turn()
        assert not x.is_contiguous()
        before = x.clone()
        checks.assert_right(layer(x), layer, x)
        assert torch.equal(layer(x), layer(x.contiguous()))
        assert torch.equal(x, before)

    @pytest.mark.parametrize("pattern", ["dense", "6:8"])
    @pytest.mark.parametrize("quantised", QUANTISED)
    def test_in_tritons_interpreter_too(self, pattern, quantised, monkeypatch):
        """The kernel that quantises on a GPU."""
        from slidesparse.kernels import row

        if not row.INTERPRETED.value:
            pytest.skip("Triton runs on the GPU here")
        monkeypatch.setattr("slidesparse.kernels.launch.INTERPRETED", True)
        layer = made(pattern, quantised)
        for m in (1, 7):
            x = checks.tokens(m, K)
            checks.assert_right(layer(x), layer, x)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @pytest.mark.parametrize("quantised", QUANTISED)
    def test_a_token_that_is_not_finite_spoils_no_other(self, quantised, bad):
        layer = made(quantised=quantised)
        x = checks.tokens(7, K)
        clean = layer(x)
        x[3, 40] = bad
        got = layer(x)
        assert not got[3].isfinite().any()
        kept = [0, 1, 2, 4, 5, 6]
        assert torch.equal(got[kept], clean[kept])

    def test_a_token_of_zeros_gives_the_bias(self):
        layer = made()
        assert torch.equal(layer(torch.zeros(2, K, dtype=torch.bfloat16))[1], layer.bias)

    def test_it_has_no_gradient(self):
        layer = made()
        x = checks.tokens(3, K).requires_grad_()
        out = layer(x)
        with pytest.raises(KernelError) as raised:
            out.sum().backward()
        assert str(raised.value) == (
            "a SparseLinear has no gradient; run it under torch.inference_mode()"
        )
        assert not list(layer.parameters())
        with torch.inference_mode():
            assert torch.equal(layer(x), out)


class TestMaking:
    def test_the_original_is_left_alone(self):
        linear = checks.linear_of(N, K, "dense")
        before = {name: value.clone() for name, value in linear.state_dict().items()}
        layer = SparseLinear.from_linear(linear, "6:8", prune="magnitude")
        with torch.no_grad():
            layer.bias.zero_()
            layer.weight_scale.zero_()
        for name, value in linear.state_dict().items():
            assert torch.equal(value, before[name])

    @pytest.mark.parametrize("method", ["magnitude", Method.MAGNITUDE])
    def test_pruning_here_is_pruning_before(self, method):
        linear = checks.linear_of(N, K, "dense")
        layer = SparseLinear.from_linear(linear, "6:8", prune=method)
        assert detect_pattern(layer.weight) == SIX_EIGHT
        with torch.no_grad():
            linear.weight.copy_(prune_magnitude(linear.weight, SIX_EIGHT))
        same = SparseLinear.from_linear(linear, "6:8")
        assert torch.equal(layer.weight.float(), same.weight.float())

    def test_spellings_of_pattern_and_dtype(self):
        linear = checks.linear_of(N, K, "6:8")
        for pattern in ("6:8", "2:8", SIX_EIGHT):
            for dtype in ("fp8", "float8_e4m3fn", DType.FP8):
                layer = SparseLinear.from_linear(linear, pattern, dtype)
                assert (layer.pattern, layer.quantised) == (SIX_EIGHT, DType.FP8)
        assert SparseLinear.from_linear(linear, "6:8").quantised is DType.FP8

    def test_a_weight_that_was_quantised_elsewhere(self):
        first = made()
        weight = SparseWeight(first.weight, first.weight_scale.view(-1), SIX_EIGHT)
        for dtype in FLOATS:
            layer = SparseLinear(weight, None, dtype)
            x = checks.tokens(7, K, dtype=dtype)
            checks.assert_right(layer(x), layer, x)

    def test_what_it_says_of_itself(self):
        layer = made("6:8", "int8", bias=False)
        assert repr(layer) == (
            "SparseLinear(in_features=100, out_features=37, bias=False, pattern=6:8, dtype=int8, "
            "forms=dense)"
        )
        assert (layer.in_features, layer.out_features) == (K, N)
        assert layer.weight_bytes == N * K
        assert layer.describe(1) == layer.describe(65536) == "reference"
        assert isinstance(layer.plan, LayerPlan)
        assert (layer.plan.n, layer.plan.k, layer.plan.pattern) == (N, K, SIX_EIGHT)


@pytest.mark.parametrize("bias", [True, False])
def test_a_candidate_that_cannot_run_after_all_costs_a_warning(monkeypatch, caplog, bias):
    """Planned as if on a GPU, where a library that is there may still fail."""
    broken = Candidate("cublaslt", {"algo": "none"}, fields={"id": 66})

    def plan_layer(shape, device, memory_format):
        return plans.plan_of(shape, [(16, broken)])

    monkeypatch.setattr("slidesparse.layers.linear.plan_layer", plan_layer)
    layer = made(bias=bias)
    assert [r.getMessage() for r in caplog.records] == [
        "N=37 K=100 runs unplanned: not a cuBLASLt candidate: cublaslt id=66"
    ]
    assert plans.steps_of(layer.plan) == [(16, plans.REFERENCE)]
    x = checks.tokens(7, K)
    checks.assert_right(layer(x), layer, x)


class TestRefusals:
    def test_an_unpruned_weight(self):
        linear = checks.linear_of(N, K, "dense")
        with pytest.raises(PatternError) as raised:
            SparseLinear.from_linear(linear, "6:8")
        assert str(raised.value) == (
            "row 0, block 0 (columns 0 to 7) holds 8 non-zeros, pattern 6:8 allows 6; prune the "
            "weight first"
        )

    def test_the_first_row_and_block_that_break_the_pattern(self):
        linear = checks.linear_of(N, K, "2:4")
        with torch.no_grad():
            linear.weight[23, 56:60] = 1.0
        with pytest.raises(PatternError, match=r"row 23, block 14 \(columns 56 to 59\) holds 4"):
            SparseLinear.from_linear(linear, "2:4", "int8")

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            (
                {"prune": "wanda"},
                KernelError,
                "wanda needs calibration: prune with slidesparse.prune.prune_model first",
            ),
            (
                {"prune": Method.SPARSEGPT},
                KernelError,
                "sparsegpt needs calibration: prune with slidesparse.prune.prune_model first",
            ),
            ({"prune": "random"}, KernelError, "unknown prune 'random'; use magnitude, or None"),
            ({"dtype": "int4"}, ProblemError, "unknown dtype 'int4'; use fp8 or int8"),
            (
                {"dtype": DType.BF16},
                KernelError,
                "a weight of torch.bfloat16 (37, 100); float8_e4m3fn or int8 [N, K] is needed",
            ),
            (
                {"memory_format": "tiny"},
                KernelError,
                "memory_format 'tiny'; use fastest or smallest",
            ),
            (
                {"pattern": "3:8"},
                PatternError,
                "pattern 3:8 is not of the (2N-2):2N family; use dense, 2:4, 4:6, 6:8, 8:10 or "
                "another (2N-2):2N",
            ),
        ],
    )
    def test_options(self, options, error, message):
        linear = checks.linear_of(N, K, "6:8")
        with pytest.raises(error) as raised:
            SparseLinear.from_linear(linear, **{"pattern": "6:8", **options})
        assert str(raised.value) == message

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
    def test_a_linear_of_another_dtype(self, dtype):
        linear = checks.linear_of(N, K, "6:8").to(dtype)
        with pytest.raises(KernelError) as raised:
            SparseLinear.from_linear(linear, "6:8")
        assert str(raised.value) == (
            f"a weight of {dtype} (37, 100); bfloat16, float16 or float32 [N, K] is needed"
        )

    def test_a_weight_of_other_dimensions(self):
        convolution = nn.Conv1d(4, 4, 3)
        with pytest.raises(KernelError, match=r"a weight of torch.float32 \(4, 4, 3\); bfloat16"):
            SparseLinear.from_linear(convolution, "dense")

    @pytest.mark.parametrize("bias", [(N + 1,), (1, N), ()])
    def test_a_bias_that_does_not_fit(self, bias):
        with pytest.raises(KernelError) as raised:
            SparseLinear(_weight(), torch.zeros(bias))
        assert str(raised.value) == f"bias of shape {bias}; [37] is needed"

    def test_a_layer_of_another_dtype(self):
        with pytest.raises(KernelError) as raised:
            SparseLinear(_weight(), dtype=torch.float64)
        assert str(raised.value) == ("a layer of torch.float64; use bfloat16, float16 or float32")

    @pytest.mark.parametrize(
        "x",
        [
            torch.zeros(3, K, dtype=torch.float32),
            torch.zeros(3, K - 1, dtype=torch.bfloat16),
            torch.zeros(K, 1, dtype=torch.bfloat16),
            torch.zeros((), dtype=torch.bfloat16),
            torch.zeros(3, K, dtype=torch.int8),
        ],
        ids=lambda x: f"{x.dtype} {tuple(x.shape)}",
    )
    def test_an_input_that_does_not_fit(self, x):
        with pytest.raises(KernelError) as raised:
            made()(x)
        assert str(raised.value) == (
            f"x is {x.dtype} {tuple(x.shape)} and the layer takes torch.bfloat16 [..., 100]; "
            "convert x, or the layer with .to()"
        )

    def test_describing_no_tokens(self):
        with pytest.raises(ProblemError, match="M=0 is not a positive number of tokens"):
            made().describe(0)


def test_the_interpreter_is_off_here():
    """The fixture of this folder: otherwise most of these tests would take minutes."""
    from slidesparse.kernels.launch import runs_triton

    assert not runs_triton(torch.zeros(1))


def _weight() -> SparseWeight:
    linear = checks.linear_of(N, K, SIX_EIGHT)
    return SparseWeight.quantise(linear.weight, SIX_EIGHT, DType.FP8)
