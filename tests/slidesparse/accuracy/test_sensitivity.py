"""Sensitivities: each against a whole copy of the model in which one group was pruned by hand."""

from __future__ import annotations

import copy
import math
from contextlib import suppress

import pytest
import tiny_models
import torch
from torch import nn
from torch.nn import functional

from slidesparse.accuracy import partial as partial_module
from slidesparse.accuracy.groups import Group, group_linears
from slidesparse.accuracy.sensitivity import Effect, Sensitivity, measure_sensitivity, replaced_rows
from slidesparse.errors import CalibrationError
from slidesparse.pattern import DENSE, Pattern, parse_patterns
from slidesparse.prune.methods import prune_weight
from slidesparse.prune.model import linears_of
from slidesparse.prune.statistics import InputStatistics
from slidesparse.recipe import Method, Recipe

PATTERNS = parse_patterns("2:4,6:8")
CALIBRATION = tiny_models.tiny_tokens(6, 20, seed=31)
PROBE = tiny_models.tiny_tokens(3, 15, seed=32)


def groups_of(model: nn.Module) -> tuple[Group, ...]:
    return group_linears(linears_of(model), Recipe(keep=())).groups


def measure(model: nn.Module, method: Method, groups: tuple[Group, ...], **changes: object):
    given = {"calibration": CALIBRATION, "probe": PROBE, "patterns": PATTERNS} | changes
    return measure_sensitivity(model, linears_of(model), groups, method, **given)


def dense_inputs(model: nn.Module, name: str) -> torch.Tensor:
    """What a linear is given by the dense model on the calibration text, [tokens, K]."""
    seen = []
    hook = linears_of(model)[name].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=CALIBRATION, use_cache=False)
    hook.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])


def by_hand(model: nn.Module, group: Group, pattern: Pattern, method: Method) -> Effect:
    """The same by pruning each linear of a copy and running all of it, in float64 at the end."""
    pruned = copy.deepcopy(model)
    for name in group.linears:
        statistics = InputStatistics(group.k, gram=True)
        statistics.update(dense_inputs(model, name))
        linear = linears_of(pruned)[name]
        linear.weight.data = prune_weight(linear.weight, pattern, method, statistics)
    with torch.no_grad():
        p, q = (
            each(input_ids=PROBE, use_cache=False).logits[:, :-1].double().log_softmax(-1)
            for each in (model, pruned)
        )
    kl = functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean()
    targets = PROBE[:, 1:, None]
    return Effect(float(kl), float((p - q).gather(2, targets).mean()))


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text"])
def test_every_effect_is_that_of_the_whole_model(method: Method, kind: str) -> None:
    model = tiny_models.tiny_model(kind)
    groups = groups_of(model)
    found = measure(model, method, groups)
    assert found.effects.keys() == {(g, p) for g in groups for p in PATTERNS}
    assert found.tokens == 3 * 14
    for group in groups[:6] + groups[-1:]:
        for pattern in PATTERNS:
            expected = by_hand(model, group, pattern, method)
            effect = found.effects[group, pattern]
            assert effect.kl == pytest.approx(expected.kl, rel=2e-2, abs=2e-6)
            assert effect.increase == pytest.approx(expected.increase, rel=2e-2, abs=2e-5)
            assert effect.kl > 1e-6, "a test that sees nothing proves nothing"


def test_the_dense_loss() -> None:
    model = tiny_models.tiny_model()
    with torch.no_grad():
        logits = model(input_ids=PROBE, use_cache=False).logits
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), PROBE[:, 1:].flatten())
    assert measure(model, Method.MAGNITUDE, groups_of(model)[:1]).dense == pytest.approx(
        float(expected), rel=1e-5
    )


def test_the_model_ends_as_it_began() -> None:
    model = tiny_models.tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, Method.SPARSEGPT, groups_of(model))
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.tiny_model()
    groups = groups_of(model)[3:6]
    whole = measure(model, Method.WANDA, groups)
    monkeypatch.setitem(partial_module.LOGIT_BYTES, "cpu", 1)
    single = measure(model, Method.WANDA, groups)
    for key, effect in whole.effects.items():
        assert single.effects[key].kl == pytest.approx(effect.kl, rel=1e-3, abs=1e-7)


def test_groups_of_some_blocks_only_and_patterns_once() -> None:
    model = tiny_models.tiny_model()
    groups = groups_of(model)
    some = (groups[9], groups[2])
    seen: list[Group] = []
    found = measure(
        model, Method.WANDA, some, patterns=(DENSE, *PATTERNS, *PATTERNS), progress=seen.append
    )
    assert found.effects.keys() == {(g, p) for g in some for p in PATTERNS}
    # By block, and each as often as it has patterns.
    assert seen == [groups[2]] * 2 + [groups[9]] * 2
    whole = measure(model, Method.WANDA, groups)
    for key, effect in found.effects.items():
        assert effect.kl == pytest.approx(whole.effects[key].kl, rel=1e-3, abs=1e-7)


def test_magnitude_needs_no_calibration() -> None:
    model = tiny_models.tiny_model()
    groups = groups_of(model)[:1]
    empty = torch.zeros((0, 20), dtype=torch.int64)
    assert measure(model, Method.MAGNITUDE, groups, calibration=empty) == measure(
        model, Method.MAGNITUDE, groups
    )


def test_sparser_patterns_cost_more_over_all() -> None:
    model = tiny_models.tiny_model()
    groups = groups_of(model)
    found = measure(model, Method.SPARSEGPT, groups)
    two, six = (sum(found.cost(g, p) for g in groups) for p in PATTERNS)
    assert two > 1.5 * six > 0
    assert found.cost(groups[0], DENSE) == 0


def test_the_cost_is_the_divergence_and_not_luck_with_the_text() -> None:
    group = Group(0, "o", ("a",), 4, 4)
    found = Sensitivity(1.0, {(group, PATTERNS[0]): Effect(0.25, -3.0)}, 10)
    assert found.cost(group, PATTERNS[0]) == 0.25


def test_inputs_that_are_no_numbers_name_the_linear() -> None:
    model = tiny_models.tiny_model()
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[3] = math.inf
    groups = groups_of(model)
    with pytest.raises(CalibrationError, match=r"layers\.1\.mlp\.gate_proj|loss of the model"):
        measure(model, Method.WANDA, groups)


def test_answers_that_are_no_numbers_name_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.tiny_model()
    groups = groups_of(model)
    monkeypatch.setattr(
        "slidesparse.accuracy.sensitivity.prune_weight",
        lambda w, *_: torch.full_like(w, math.nan),
    )
    before = model.model.layers[0].mlp.down_proj.weight.clone()
    with pytest.raises(CalibrationError, match=r"^block 0 down pruned to 2:4: the loss over 42 "):
        measure(model, Method.WANDA, groups[3:4])
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, before)


def test_no_calibration_for_a_method_that_needs_it() -> None:
    model = tiny_models.tiny_model()
    empty = torch.zeros((0, 20), dtype=torch.int64)
    with pytest.raises(CalibrationError, match="no calibration token reached model"):
        measure(model, Method.WANDA, groups_of(model)[:1], calibration=empty)


def test_rows_are_replaced_in_order_and_put_back() -> None:
    first, second = nn.Linear(3, 2), nn.Linear(3, 4)
    before = [first.weight.clone(), second.weight.clone()]
    made = torch.arange(18.0).view(6, 3)
    with replaced_rows([first, second], made):
        assert torch.equal(first.weight, made[:2])
        assert torch.equal(second.weight, made[2:])
    assert torch.equal(first.weight, before[0])
    with suppress(ZeroDivisionError), replaced_rows([first, second], made):
        raise ZeroDivisionError
    assert torch.equal(first.weight, before[0])
    assert torch.equal(second.weight, before[1])
