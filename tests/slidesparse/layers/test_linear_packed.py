"""A layer that holds a packed form only: its weight, state and copies are made from that.

Packing runs on the CPU too, so that nothing here needs the kernel that reads the form.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator

import layer_checks as checks
import layer_plans as plans
import pytest
import torch
from layer_plans import NATIVE

from slidesparse.layers import LayerPlan, SparseLinear
from slidesparse.layers.planning import LayerShape
from slidesparse.layers.weight import to_format
from slidesparse.pattern import Pattern

N, K = 72, 100
PATTERNS = ["2:4", "6:8", "8:10"]
QUANTISED = ["fp8", "int8"]


@pytest.fixture
def packed() -> Iterator[pytest.MonkeyPatch]:
    """Plan for the native kernel alone; undo it to plan as the CPU does."""

    def plan_layer(shape: LayerShape, device: torch.device, memory_format: str) -> LayerPlan:
        return plans.plan_of(shape, [(16, NATIVE)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slidesparse.layers.linear.plan_layer", plan_layer)
        patch.setattr("slidesparse.layers.linear.prepared", lambda *plan: None)
        yield patch


def made(pattern: str = "6:8", quantised: str = "fp8", seed: int = 1) -> SparseLinear:
    linear = checks.linear_of(N, K, pattern, seed=seed)
    return SparseLinear.from_linear(linear, pattern, quantised)


def names(layer: SparseLinear) -> list[str]:
    return [name for name, _ in layer.named_buffers()]


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether quantised weights are equal; a zero may lose its sign in packing."""
    return first.dtype is second.dtype and torch.equal(first.float(), second.float())


@pytest.mark.parametrize("quantised", QUANTISED)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_only_the_packed_form_is_kept(pattern, quantised, packed):
    layer = made(pattern, quantised)
    assert names(layer) == ["weight_scale", "bias", "form_native"]
    assert "forms=native" in repr(layer)
    form = layer.get_buffer("form_native")
    assert layer.weight_bytes == form.numel()
    assert torch.equal(form, to_format(layer.weight, Pattern.parse(pattern), "native"))


@pytest.mark.parametrize("quantised", QUANTISED)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_state_is_that_of_an_unpacked_layer(pattern, quantised, packed):
    layer = made(pattern, quantised)
    state = layer.state_dict()
    packed.undo()
    plain = made(pattern, quantised)
    wanted = plain.state_dict()
    assert list(state) == list(wanted) == ["weight_scale", "bias", "weight"]
    assert same(state["weight"], wanted["weight"])
    assert torch.equal(state["weight_scale"], wanted["weight_scale"])
    assert torch.equal(state["bias"], wanted["bias"])
    plain.load_state_dict(state)
    x = checks.tokens(7, K)
    checks.assert_right(plain(x), plain, x)


@pytest.mark.parametrize("quantised", QUANTISED)
def test_a_loaded_state_is_packed(quantised, packed):
    first, second = (made(quantised=quantised, seed=seed) for seed in (1, 2))
    assert not same(first.weight, second.weight)
    second.load_state_dict(first.state_dict())
    assert names(second) == names(first)
    assert torch.equal(second.get_buffer("form_native"), first.get_buffer("form_native"))


def test_a_state_that_breaks_the_pattern_changes_nothing_packed(packed):
    layer, other = made("6:8"), made("8:10")
    before = layer.get_buffer("form_native").clone()
    with pytest.raises(RuntimeError, match=r"weight: row 0, block \d+ .* pattern 6:8 allows 6"):
        layer.load_state_dict(other.state_dict())
    assert torch.equal(layer.get_buffer("form_native"), before)


@pytest.mark.parametrize("quantised", QUANTISED)
def test_copies_and_files_hold_the_portable_form(quantised, packed):
    layer = made(quantised=quantised)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), copy.copy(layer), torch.load(file, weights_only=False)):
        assert names(twin) == names(layer)
        assert torch.equal(twin.get_buffer("form_native"), layer.get_buffer("form_native"))
        assert twin.plan == layer.plan
    packed.undo()
    file.seek(0)
    elsewhere = torch.load(file, weights_only=False)
    assert names(elsewhere) == ["weight_scale", "bias", "form_dense"]
    assert same(elsewhere.weight, layer.weight)
    x = checks.tokens(7, K)
    checks.assert_right(elsewhere(x), elsewhere, x)


@pytest.mark.parametrize("quantised", QUANTISED)
def test_where_another_plan_holds_other_forms_replace_it(quantised, packed):
    """As when a layer moves from a GPU to the CPU and back."""
    layer = made(quantised=quantised)
    weight = layer.weight
    packed.undo()
    layer.half()
    assert sorted(names(layer)) == ["bias", "form_dense", "weight_scale"]
    assert same(layer.weight, weight)
    x = checks.tokens(7, K, dtype=torch.float16)
    checks.assert_right(layer(x), layer, x)


def test_what_changes_nothing_packs_nothing(packed):
    layer = made()

    def fail(*arguments: object) -> None:
        raise AssertionError("planned anew")

    packed.setattr("slidesparse.layers.linear.plan_layer", fail)
    layer.to("cpu").bfloat16().to(torch.bfloat16).cpu().eval()
    assert names(layer) == ["weight_scale", "bias", "form_native"]
