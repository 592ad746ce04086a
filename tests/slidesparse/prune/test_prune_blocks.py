"""A block is pruned by the inputs it got, and the next one gets what the pruned block makes."""

import copy

import pytest
import torch
from tiny_models import tiny_model, tiny_tokens
from torch import nn

from slidesparse.errors import CalibrationError, CheckpointError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.prune.blocks import (
    advance,
    linears_in,
    prune_block,
    prune_linears,
    prune_plainly,
)
from slidesparse.prune.inputs import BlockCall, BlockInputs, first_inputs, run_block
from slidesparse.prune.methods import prune_weight
from slidesparse.prune.quantised import rounded
from slidesparse.prune.statistics import InputStatistics
from slidesparse.recipe import Method, Recipe
from slidesparse.slide import prune_magnitude

SIX = Pattern(6, 8)
PREFIX = "model.layers.0"
SUFFIXES = [f"self_attn.{it}_proj" for it in "qkvo"] + [
    f"mlp.{it}_proj" for it in ("gate", "up", "down")
]


@pytest.fixture
def first_block():
    model = tiny_model()
    return model.model.layers[0], first_inputs(model, tiny_tokens())


def inputs_of(block, inputs):
    """What each linear is given, by hooks of the test's own."""
    seen, handles = {name: [] for name in SUFFIXES}, []
    for name in SUFFIXES:

        def hook(_module, args, keep=seen[name]):
            keep.append(args[0])

        handles.append(block.get_submodule(name).register_forward_pre_hook(hook))
    outputs = run_block(block, inputs)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}, outputs


@pytest.mark.parametrize("method", list(Method))
def test_weights_are_pruned_by_the_inputs_of_the_unpruned_block(first_block, method):
    block, inputs = first_block
    before, (seen, _) = copy.deepcopy(block), inputs_of(block, inputs)
    reports = {}
    after = prune_block(
        block, PREFIX, inputs, Recipe(SIX, method), report=lambda it: reports.update({it.name: it})
    )
    for name in SUFFIXES:
        weight = before.get_submodule(name).weight
        statistics = InputStatistics(weight.shape[1], gram=True)
        for sequence in seen[name]:
            statistics.update(sequence)
        expected = prune_weight(weight, SIX, method, statistics)
        made = block.get_submodule(name).weight
        assert torch.equal(made, expected), name
        assert reports[f"{PREFIX}.{name}"].zeros == pytest.approx(0.25)
    assert list(reports) == [f"{PREFIX}.{name}" for name in SUFFIXES]
    assert after.block == 1
    assert torch.equal(torch.cat(after.hidden), torch.cat(run_block(block, inputs)))
    assert not torch.equal(torch.cat(after.hidden), torch.cat(run_block(before, inputs)))


@pytest.mark.parametrize("method", list(Method))
def test_reports_carry_the_error_of_what_is_known(first_block, method):
    block, inputs = first_block
    before, (seen, _) = copy.deepcopy(block), inputs_of(block, inputs)
    reports = []
    prune_block(block, PREFIX, inputs, Recipe(SIX, method), report=reports.append)
    for report in reports:
        suffix = report.name.removeprefix(f"{PREFIX}.")
        w = before.get_submodule(suffix).weight.detach().double()
        change = block.get_submodule(suffix).weight.detach().double() - w
        x = seen[suffix].reshape(-1, w.shape[1]).double()
        measured = {
            "weight": change.norm() / w.norm(),
            "scaled weight": (change * x.norm(dim=0)).norm() / (w * x.norm(dim=0)).norm(),
            "output": (change @ x.t()).norm() / (w @ x.t()).norm(),
        }
        assert report.measure == ["weight", "scaled weight", "output"][list(Method).index(method)]
        assert report.error == pytest.approx(float(measured[report.measure]), rel=2e-3)
        assert report.pattern == SIX


@pytest.mark.parametrize("method", list(Method))
def test_the_recipe_decides_per_linear(first_block, method):
    block, inputs = first_block
    before = copy.deepcopy(block.state_dict())
    layers = {
        f"{PREFIX}.mlp.up_proj": Pattern(2, 4),
        f"{PREFIX}.mlp.gate_proj": Pattern(4, 6),
        f"{PREFIX}.self_attn.q_proj": DENSE,
    }
    reports = []
    recipe = Recipe(SIX, method, keep=("o_proj", "*.layers.0.mlp.down*"), layers=layers)
    prune_block(block, PREFIX, inputs, recipe, report=reports.append)
    changed = {name for name, w in block.state_dict().items() if not torch.equal(w, before[name])}
    names = ["self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"]
    assert changed == {f"{name}.weight" for name in names}
    assert {it.name: str(it.pattern) for it in reports} == {
        f"{PREFIX}.self_attn.k_proj": "6:8",
        f"{PREFIX}.self_attn.v_proj": "6:8",
        f"{PREFIX}.mlp.gate_proj": "4:6",
        f"{PREFIX}.mlp.up_proj": "2:4",
    }
    half = (block.mlp.up_proj.weight == 0).float().mean()
    assert half == 0.5


def test_nothing_to_prune_only_runs(first_block):
    block, inputs = first_block
    before = run_block(block, inputs)
    after = prune_block(block, PREFIX, inputs, Recipe(DENSE, Method.SPARSEGPT))
    assert torch.equal(torch.cat(after.hidden), torch.cat(before))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
def test_outputs_can_be_those_of_the_quantised_block(first_block, dtype):
    block, inputs = first_block
    twin = copy.deepcopy(block)
    recipe = Recipe(SIX, Method.WANDA, dtype=dtype, keep=("down_proj",))
    plain = prune_block(twin, PREFIX, inputs, recipe)
    made = prune_block(block, PREFIX, inputs, recipe, quantise=True)
    # The weights are those of pruning alone; only what the next block gets differs.
    for name, w in block.state_dict().items():
        assert torch.equal(w, twin.state_dict()[name])
    for name in SUFFIXES:
        if "down" not in name:
            linear = twin.get_submodule(name)
            linear.weight.copy_(rounded(linear.weight, dtype))
            linear.register_forward_pre_hook(lambda _m, a: (rounded(a[0], dtype),))
    assert torch.equal(torch.cat(made.hidden), torch.cat(run_block(twin, inputs)))
    assert not torch.equal(torch.cat(made.hidden), torch.cat(plain.hidden))


@torch.no_grad()
def test_a_block_that_was_quantised_before_goes_on_the_same(first_block):
    """As when a conversion resumes: weights read back from W8A8 are rounded already."""
    block, inputs = first_block
    recipe = Recipe(SIX, Method.WANDA, dtype=DType.INT8)
    made = prune_block(block, PREFIX, inputs, recipe, quantise=True)
    for name in SUFFIXES:
        linear = block.get_submodule(name)
        linear.weight.copy_(rounded(linear.weight, DType.INT8))
    resumed = advance(block, PREFIX, inputs, recipe, quantise=True, rounded_weights=True)
    assert torch.equal(torch.cat(resumed.hidden), torch.cat(made.hidden))
    assert resumed.block == made.block == 1


def test_quantise_without_a_dtype_changes_nothing(first_block):
    block, inputs = first_block
    recipe = Recipe(SIX, Method.WANDA, dtype=None)
    made = prune_block(block, PREFIX, inputs, recipe, quantise=True)
    assert torch.equal(torch.cat(made.hidden), torch.cat(run_block(block, inputs)))


def test_plain_pruning_runs_nothing(first_block):
    block, _ = first_block
    before = copy.deepcopy(block)
    block.forward = None
    prune_plainly(block, PREFIX, Recipe(SIX, Method.MAGNITUDE))
    for name in SUFFIXES:
        expected = prune_magnitude(before.get_submodule(name).weight.detach(), SIX)
        assert torch.equal(block.get_submodule(name).weight, expected)


@pytest.mark.parametrize("method", [Method.WANDA, Method.SPARSEGPT])
def test_inputs_that_are_not_finite_name_the_layer(first_block, method):
    block, inputs = first_block
    inputs.hidden[1][0, 3, 0] = float("nan")
    with pytest.raises(
        CalibrationError, match=r"model\.layers\.0\.self_attn\.q_proj got NaN or Inf in 48 of 48"
    ):
        prune_block(block, PREFIX, inputs, Recipe(SIX, method))


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_name_the_layer(first_block, method, bad):
    block, inputs = first_block
    block.mlp.down_proj.weight.data[2, 3:5] = bad
    with pytest.raises(
        CheckpointError, match=r"model\.layers\.0\.mlp\.down_proj\.weight holds 2 values that are N"
    ):
        prune_block(block, PREFIX, inputs, Recipe(SIX, method))


def test_plain_pruning_with_a_calibrated_method_is_refused(first_block):
    with pytest.raises(CalibrationError, match="wanda needs the statistics of the layer's inputs"):
        prune_plainly(first_block[0], PREFIX, Recipe(SIX, Method.WANDA))


class Experts(nn.Module):
    """A mixture whose router sends no token to the last expert."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.shared_expert_gate = nn.Linear(8, 1)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        chosen = self.gate(x).argmax(dim=-1) % 2
        gate = self.shared_expert_gate(x).sigmoid()
        made = torch.zeros_like(x)
        for index in (0, 1):
            made[chosen == index] = self.experts[index](x[chosen == index])
        return made * gate


def test_routers_are_left_alone_and_unused_experts_named(seed):
    block = Experts()
    gate = block.gate.weight.clone()
    inputs = BlockInputs([torch.randn(1, 20, 8)], (BlockCall((), {}),))
    assert list(linears_in(block, "mlp")) == [f"mlp.experts.{index}" for index in range(3)]
    with pytest.raises(
        CalibrationError, match=r"no calibration token reached mlp\.experts\.2; use"
    ):
        prune_block(block, "mlp", inputs, Recipe(SIX, Method.WANDA))
    recipe = Recipe(SIX, Method.WANDA, keep=("mlp.experts.2",))
    prune_block(block, "mlp", inputs, recipe)
    assert (block.experts[0].weight == 0).sum() == (block.experts[1].weight == 0).sum() == 16
    assert torch.equal(block.gate.weight, gate)


def test_bfloat16_stays_bfloat16(first_block):
    linear = nn.Linear(16, 4, dtype=torch.bfloat16)
    prune_linears({"it": linear}, Recipe(SIX, Method.MAGNITUDE), {})
    assert linear.weight.dtype is torch.bfloat16
    assert (linear.weight == 0).sum() == 16


def test_a_weight_that_is_all_zero_has_no_error():
    linear, reports = nn.Linear(16, 4), []
    linear.weight.data.zero_()
    prune_linears({"it": linear}, Recipe(SIX, Method.MAGNITUDE), {}, reports.append)
    assert (reports[0].zeros, reports[0].error) == (1.0, 0.0)
