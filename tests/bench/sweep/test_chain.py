"""A model's linears in a row: ours and torch's compute the same, in a model's order and sizes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from slidesparse.bench.sweep.chain import ATTENTION, MLP, Chain, Member, OurMember, parts_of
from slidesparse.bench.sweep.torch_model import TorchFunctions, TorchMember
from slidesparse.kernels.case import EPS
from slidesparse.models import LinearLayer, ModelSpec, load_model
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType

CPU = torch.device("cpu")
SIX = Pattern.parse("6:8")
SPEC = ModelSpec("tiny", "llama", 64, 3, 96, 4, 2, 16, 128, "here", qkv_bias=True)

MOST_OFF = {DType.FP8: 0.15, DType.INT8: 0.05}
"""Of |ours - theirs| / |theirs| after two layers: torch rounds to bf16 before it quantises, and
what that flips is a step of 1/8 in FP8. A wrong operand would give about 1."""


def chain(
    side: str,
    dtype: DType = DType.FP8,
    pattern: Pattern = DENSE,
    l2_bytes: int = 0,
    whole: bool = True,
    spec: ModelSpec = SPEC,
) -> Chain:
    make = partial(OurMember, pattern=pattern, dtype=dtype)
    if side == "torch":
        make = partial(TorchMember, functions=TorchFunctions(dtype, compiles=False))
    return Chain(spec, spec.linears(), pattern, make, CPU, 5, l2_bytes, whole)


class Noting(Member):
    """Notes what is called with how many rows; its outputs are of the right shape."""

    def __init__(self, w: torch.Tensor, bias: torch.Tensor | None, notes: list[str]) -> None:
        self._shape, self._notes = tuple(w.shape), notes
        self._w = w

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        self._notes.append(f"plain {self._shape} {len(x)}")
        return x.new_zeros(len(x), self._shape[0])

    def norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._notes.append(f"norm {self._shape} {len(x)}")
        return x.new_zeros(len(x), self._shape[0]), residual

    def silu(self, gate_up: torch.Tensor) -> torch.Tensor:
        self._notes.append(f"silu {self._shape} {len(gate_up)}")
        return gate_up.new_zeros(len(gate_up), self._shape[0])

    def describe(self, m: int) -> str:
        return "small" if m < 100 else "large"

    def pieces(self, m: int) -> int:
        return -(-m // 100)


def noting(spec: ModelSpec, **given) -> tuple[Chain, list[str]]:
    notes: list[str] = []
    make = partial(Noting, notes=notes)
    settings = {"l2_bytes": 0, "whole": True, **given}
    made = Chain(spec, spec.linears(), DENSE, make, CPU, 5, **settings)
    return made, notes


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
@pytest.mark.parametrize("pattern", [DENSE, SIX])
@pytest.mark.parametrize("m", [1, 17])
def test_ours_and_torchs_compute_the_same(dtype: DType, pattern: Pattern, m: int) -> None:
    two = replace(SPEC, layers=2 if m == 1 else 1)
    ours = chain("ours", dtype, pattern, spec=two).inputs(m)().float()
    theirs = chain("torch", dtype, pattern, spec=two).inputs(m)().float()
    assert ours.shape == (m, 64)
    off = float((ours - theirs).norm() / theirs.norm())
    assert 0 < off < MOST_OFF[dtype], off


def test_weights_and_activations_follow_from_the_seed() -> None:
    first, same = (chain("torch").inputs(3)() for _ in range(2))
    assert torch.equal(first, same)
    assert not torch.equal(first, chain("torch").inputs(4)()[:3])


def test_torchs_norm_and_silu_are_the_reference() -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    w, x, residual, weight, gate_up = draw(32, 64), draw(5, 64), draw(5, 64), draw(64), draw(5, 128)
    member = TorchMember(w, None, TorchFunctions(DType.INT8, compiles=False))
    y, kept = member.norm(x, residual, weight)
    hidden = (x.float() + residual.float()).to(torch.bfloat16)
    assert torch.equal(kept, hidden)
    rows = hidden.double()
    normed = rows * (rows.square().mean(dim=1, keepdim=True) + EPS).rsqrt() * weight.double()
    gate, up = gate_up.double().chunk(2, dim=1)
    for got, inputs in ((y, normed), (member.silu(gate_up), gate * gate.sigmoid() * up)):
        want = inputs @ w.double().t()
        assert float((got.double() - want).norm() / want.norm()) < 0.02


def test_layers_follow_each_other_as_in_a_model() -> None:
    made, notes = noting(SPEC)
    made.inputs(4)()
    layer = ["norm (128, 64) 4", "plain (64, 64) 4", "norm (192, 64) 4", "silu (64, 96) 4"]
    assert notes == layer * 3
    assert made.scale == 1
    assert [part.kind for part in made.parts] == [ATTENTION, MLP]


def test_rows_go_through_in_pieces_where_offsets_would_not_reach() -> None:
    made, notes = noting(SPEC)
    assert made.inputs(150)().shape == (150, 64)
    assert notes[:4] == [
        *("norm (128, 64) 75", "plain (64, 64) 75"),
        *("norm (128, 64) 75", "plain (64, 64) 75"),
    ]


def test_torchs_pieces_keep_every_tensor_below_2_to_the_31() -> None:
    functions = TorchFunctions(DType.FP8, compiles=False)
    member = TorchMember(torch.ones(96, 64, dtype=torch.bfloat16), None, functions)
    # SiLU * mul would read rows of 2 x 64.
    most = (2**31 - 1) // 128
    assert (member.pieces(most), member.pieces(most + 1)) == (1, 2)
    assert "rows in 2 pieces" in member.describe(most + 1)
    assert "pieces" not in member.describe(most)


def test_a_part_of_the_layers_keeps_their_proportions() -> None:
    made, notes = noting(SPEC, whole=False)
    made.inputs(4)()
    assert (made.scale, len(notes)) == (3, 4)
    hybrid = load_model("qwen3-next-80b-a3b")
    parts, left_out = parts_of(hybrid.linears())
    counts = {part.names: part.count for part in parts}
    assert counts[("qkv", "o")] == 12
    assert counts[("in_proj_qkvz", "in_proj_ba", "out_proj")] == 36
    assert counts[("shared_gate_up", "shared_down")] == 48
    assert {layer.name for layer in left_out} == {"expert_gate_up", "expert_down"}


def test_weights_are_held_as_often_as_the_cache_asks() -> None:
    one = sum(layer.n * layer.k for layer in SPEC.linears())
    assert noting(SPEC)[0].held == [1, 1]
    assert noting(SPEC, l2_bytes=1)[0].held == [2, 2]
    assert noting(SPEC, l2_bytes=one)[0].held == [3, 3]
    assert noting(SPEC, l2_bytes=100 * one)[0].held == [3, 3], "a model has no more"


def test_each_layer_has_weights_of_its_own() -> None:
    made = chain("ours", l2_bytes=2**20)
    first, second = (sets[0]._layer.weight for sets in made._members[0][:2])
    assert not torch.equal(first.view(torch.uint8), second.view(torch.uint8))


def test_the_largest_tensor_counts_outputs_inputs_and_weights() -> None:
    made = chain("torch")
    assert made.largest(1) == 192 * 64
    assert made.largest(1000) == 1000 * 192
    wide = load_model("qwen2.5-7b").linears()
    assert max(65536 * layer.n for layer in wide) > 2**31


def test_what_runs_is_told_by_m_where_it_differs() -> None:
    made, _ = noting(SPEC)
    assert made.describe((1, 64))["o"] == "small"
    assert made.describe((1, 64, 4096))["qkv"] == "small (M=1,64); large (M=4096)"
    assert list(made.describe((1,))) == ["qkv", "o", "gate_up", "down"]


def test_a_layer_that_no_part_knows_is_left_out() -> None:
    odd = LinearLayer("odd", 8, 8, 1)
    parts, left_out = parts_of((*SPEC.linears(), odd))
    assert len(parts) == 2
    assert left_out == (odd,)
