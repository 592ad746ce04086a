"""What a SparseLinear keeps: its state, copies, files, and what .to() changes."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layer_checks as checks
import pytest
import torch
from torch import nn

from slidesparse.errors import KernelError
from slidesparse.layers import SparseLinear
from slidesparse.pattern import Pattern

N, K = 37, 100
BOTH = pytest.mark.parametrize("quantised", ["fp8", "int8"])
TORCH = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


def made(
    pattern: str = "6:8",
    quantised: str = "fp8",
    dtype: torch.dtype = torch.bfloat16,
    bias: bool = True,
    seed: int = 1,
    **options: Any,
) -> SparseLinear:
    linear = checks.linear_of(N, K, pattern, dtype, bias, seed)
    return SparseLinear.from_linear(linear, pattern, quantised, **options)


def same(first: SparseLinear, second: SparseLinear, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether they give the same, which is also right."""
    x = checks.tokens(7, K, dtype=dtype)
    out = first(x)
    checks.assert_right(out, first, x)
    return torch.equal(out, second(x))


def saved(value: object) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


class TestState:
    @BOTH
    @pytest.mark.parametrize("bias", [True, False])
    def test_it_holds_the_portable_form_under_compressed_tensors_names(self, quantised, bias):
        state = made(quantised=quantised, bias=bias).state_dict()
        assert list(state) == ["weight_scale", *(["bias"] if bias else []), "weight"]
        assert (state["weight"].dtype, state["weight"].shape) == (TORCH[quantised], (N, K))
        scale = state["weight_scale"]
        assert (scale.dtype, scale.shape) == (torch.float32, (N, 1))
        if bias:
            assert (state["bias"].dtype, state["bias"].shape) == (torch.bfloat16, (N,))

    @BOTH
    @pytest.mark.parametrize("pattern", ["dense", "2:4", "6:8"])
    def test_another_layer_takes_it(self, quantised, pattern):
        first, second = (made(pattern, quantised, seed=seed) for seed in (1, 2))
        assert not same(first, second)
        result = second.load_state_dict(first.state_dict())
        assert (result.missing_keys, result.unexpected_keys) == ([], [])
        assert same(second, first)
        assert second.plan == first.plan

    @BOTH
    def test_a_file_of_it_loads_without_pickled_code(self, quantised, tmp_path: Path):
        first, second = (made(quantised=quantised, seed=seed) for seed in (1, 2))
        torch.save(first.state_dict(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        second.load_state_dict(state)
        assert same(second, first)

    def test_a_model_takes_it_in_its_place(self):
        first, second = (
            nn.Sequential(nn.LayerNorm(K, dtype=torch.bfloat16), made(seed=seed)) for seed in (1, 2)
        )
        state = first.state_dict()
        assert list(state) == ["0.weight", "0.bias", "1.weight_scale", "1.bias", "1.weight"]
        second.load_state_dict(state)
        assert same(second[1], first[1])

    @pytest.mark.parametrize("assign", [True, False])
    def test_the_state_stays_the_callers_unless_it_is_assigned(self, assign):
        first, second = made(seed=1), made(seed=2)
        state = {name: value.clone() for name, value in first.state_dict().items()}
        second.load_state_dict(state, assign=assign)
        assert same(second, first)
        shared = second.weight.data_ptr() == state["weight"].data_ptr()
        assert shared is assign
        assert (second.weight_scale.data_ptr() == state["weight_scale"].data_ptr()) is assign
        if not assign:
            for value in state.values():
                value.view(torch.uint8).zero_()
            assert same(second, first)

    def test_the_forms_that_it_packs_are_no_part_of_it(self):
        layer = made()
        hidden = [name for name, _ in layer.named_buffers() if name.startswith("form_")]
        assert hidden == ["form_dense"]
        assert not set(hidden) & set(layer.state_dict())


class TestRefusals:
    """As everywhere in torch: RuntimeError with one line for each thing that does not fit."""

    def refused(self, layer: nn.Module, state: dict[str, Any], **options: Any) -> str:
        with pytest.raises(RuntimeError, match=r"^Error\(s\) in loading state_dict") as raised:
            layer.load_state_dict(state, **options)
        return str(raised.value)

    @pytest.mark.parametrize(
        ("held", "wanted"), [("dense", "6:8"), ("6:8", "2:4"), ("8:10", "6:8")]
    )
    @BOTH
    def test_a_weight_of_a_denser_pattern(self, held, wanted, quantised):
        """Also on the CPU, where nothing is packed: the layer may move to a GPU."""
        layer = made(wanted, quantised)
        reason = self.refused(layer, made(held, quantised).state_dict())
        assert "weight: row 0, block " in reason
        assert f"pattern {wanted} allows {Pattern.parse(wanted).nonzeros}; prune" in reason

    def test_a_weight_of_a_sparser_pattern_fits(self):
        """Six weights in a row hold at most four non-zeros of 2:4."""
        layer, other = made("4:6"), made("2:4")
        layer.load_state_dict(other.state_dict())
        assert same(layer, other)

    def test_the_layer_of_a_model_is_named(self):
        model = nn.Sequential(nn.Identity(), made("6:8"))
        other = nn.Sequential(nn.Identity(), made("dense"))
        assert "1.weight: row 0, block 0" in self.refused(model, other.state_dict())

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (
                lambda: made(quantised="int8").state_dict(),
                "weight is torch.int8 (37, 100); torch.float8_e4m3fn [37, 100] is needed",
            ),
            (
                lambda: checks.linear_of(N, K, "6:8").state_dict(),
                "weight is torch.bfloat16 (37, 100); torch.float8_e4m3fn [37, 100] is needed",
            ),
            (
                lambda: checks.linear_of(N, K, "6:8").state_dict(),
                'Missing key(s) in state_dict: "weight_scale".',
            ),
            (
                lambda: SparseLinear.from_linear(
                    checks.linear_of(N, K + 4, "6:8"), "6:8"
                ).state_dict(),
                "weight is torch.float8_e4m3fn (37, 104); torch.float8_e4m3fn [37, 100] is needed",
            ),
            (lambda: made(bias=False).state_dict(), 'Missing key(s) in state_dict: "bias".'),
            (
                lambda: made().state_dict() | {"weight_zero_point": torch.zeros(N)},
                'Unexpected key(s) in state_dict: "weight_zero_point".',
            ),
            (
                lambda: made().state_dict() | {"weight_scale": torch.ones(N)},
                "size mismatch for weight_scale",
            ),
        ],
        ids=["dtype", "linear", "no scale", "shape", "no bias", "unknown", "scale"],
    )
    def test_a_state_that_does_not_fit(self, other: Callable[[], dict[str, Any]], message):
        assert message in self.refused(made(), other())

    def test_a_bias_that_the_layer_has_not(self):
        reason = self.refused(made(bias=False), made().state_dict())
        assert 'Unexpected key(s) in state_dict: "bias".' in reason

    def test_without_a_weight(self):
        state = made(seed=2).state_dict()
        del state["weight"]
        layer, before = made(), made()
        assert 'Missing key(s) in state_dict: "weight".' in self.refused(layer, state)
        result = before.load_state_dict(state, strict=False)
        assert result.missing_keys == ["weight"]
        assert torch.equal(before.weight.float(), made().weight.float())
        assert torch.equal(before.weight_scale, state["weight_scale"])


class TestCopies:
    @BOTH
    @pytest.mark.parametrize("bias", [True, False])
    def test_a_deep_copy_shares_nothing(self, quantised, bias):
        layer = made(quantised=quantised, bias=bias)
        twin = copy.deepcopy(layer)
        assert same(twin, layer)
        kept = [value.data_ptr() for value in layer.buffers()]
        assert not set(kept) & {value.data_ptr() for value in twin.buffers()}
        assert repr(twin) == repr(layer)
        assert list(twin.state_dict()) == list(layer.state_dict())

    def test_a_shallow_copy_works(self):
        layer = made()
        assert same(copy.copy(layer), layer)
        assert same(layer, layer)

    @BOTH
    @pytest.mark.parametrize("memory_format", ["fastest", "smallest"])
    def test_a_file_of_the_module(self, quantised, memory_format):
        layer = made(quantised=quantised, memory_format=memory_format)
        back = torch.load(saved(layer), weights_only=False)
        assert same(back, layer)
        assert (back.memory_format, back.plan) == (memory_format, layer.plan)
        assert list(back.state_dict()) == list(layer.state_dict())
        again = torch.load(saved(back), weights_only=False)
        assert same(again, layer)

    def test_a_file_holds_the_weight_once(self):
        """Neither packed forms nor plans, which are of the machine that wrote it."""
        size = saved(SparseLinear.from_linear(checks.linear_of(512, 512, "dense"), "dense"))
        assert size.getbuffer().nbytes < 1.1 * 512 * 512

    def test_a_model_is_copied_with_what_it_shares(self):
        layer = made()
        twin = copy.deepcopy(nn.ModuleList([layer, layer]))
        assert twin[0] is twin[1]
        assert same(twin[0], layer)


class TestTo:
    @pytest.mark.parametrize(
        ("change", "dtype"),
        [
            (lambda layer: layer.half(), torch.float16),
            (lambda layer: layer.float(), torch.float32),
            (lambda layer: layer.to(torch.float16), torch.float16),
            (lambda layer: layer.to(torch.zeros(1)), torch.float32),
            (lambda layer: nn.Sequential(layer).to("cpu", torch.float16)[0], torch.float16),
            (lambda layer: layer.half().bfloat16(), torch.bfloat16),
        ],
    )
    @BOTH
    def test_a_dtype_is_that_of_the_activations(self, quantised, change, dtype):
        layer = made(quantised=quantised)
        before = layer.state_dict()
        changed = change(layer)
        assert changed is layer
        assert layer.dtype is dtype
        assert same(layer, layer, dtype)
        after = layer.state_dict()
        assert after["weight"].dtype is TORCH[quantised]
        assert after["weight_scale"].dtype is torch.float32
        assert after["bias"].dtype is dtype
        assert torch.equal(after["weight"].float(), before["weight"].float())
        assert torch.equal(after["weight_scale"], before["weight_scale"])

    def test_what_changes_nothing_keeps_every_tensor(self):
        layer = made()
        before = [value.data_ptr() for value in layer.buffers()]
        layer.to("cpu").bfloat16().to(torch.bfloat16).cpu().eval()
        assert [value.data_ptr() for value in layer.buffers()] == before

    @pytest.mark.parametrize(
        ("change", "dtype"),
        [
            (lambda layer: layer.double(), torch.float64),
            (lambda layer: layer.to(torch.float8_e4m3fn), torch.float8_e4m3fn),
            (lambda layer: layer.to(torch.complex64), torch.complex64),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Complex modules")
    def test_no_other_dtype(self, change, dtype):
        layer = made()
        with pytest.raises(KernelError) as raised:
            change(layer)
        assert str(raised.value) == f"a layer of {dtype}; use bfloat16, float16 or float32"
        assert same(layer, made())

    @BOTH
    def test_from_meta_with_a_state(self, quantised):
        """How large models are loaded: shapes first, values later."""
        first = made(quantised=quantised)
        layer = nn.Sequential(made(quantised=quantised, seed=2).to("meta"))
        assert layer[0].weight.is_meta
        assert layer(torch.empty(3, K, dtype=torch.bfloat16, device="meta")).shape == (3, N)
        state = {f"0.{name}": value for name, value in first.state_dict().items()}
        empty = layer.to_empty(device="cpu")
        assert empty[0].weight.device.type == "cpu"
        empty.load_state_dict(state)
        assert same(empty[0], first)

    def test_from_meta_by_assigning(self):
        first, layer = made(), made(seed=2).to("meta")
        layer.load_state_dict(first.state_dict(), assign=True)
        assert {value.device.type for value in layer.buffers()} == {"cpu"}
        assert same(layer, first)
