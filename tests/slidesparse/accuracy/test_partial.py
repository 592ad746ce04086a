"""A model that runs from one of its blocks on says what the whole model says."""

from __future__ import annotations

import copy
import math

import pytest
import tiny_models
import torch
from torch.nn import functional

from slidesparse.accuracy import partial as module
from slidesparse.accuracy.metrics import Reference
from slidesparse.accuracy.partial import PartialModel
from slidesparse.accuracy.text import Window
from slidesparse.errors import CalibrationError, ModelError

KINDS = list(tiny_models.KINDS)


def hidden_before(model: torch.nn.Module, tokens: torch.Tensor, block: int) -> torch.Tensor:
    """What transformers itself says that a block is given."""
    with torch.no_grad():
        states = model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
    return states[block]


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_the_whole_model(kind: str) -> None:
    model = tiny_models.tiny_model(kind)
    tokens = tiny_models.tiny_tokens(3, 17)
    partial = PartialModel(model)
    hidden = partial.before_blocks(tokens)
    for block in range(len(partial.blocks) - 1):
        torch.testing.assert_close(hidden, hidden_before(model, tokens, block))
        hidden = partial.through(tokens, block, hidden)
    torch.testing.assert_close(hidden, hidden_before(model, tokens, len(partial.blocks) - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_whole_model_from_any_block_on(kind: str) -> None:
    model = tiny_models.tiny_model(kind)
    tokens = tiny_models.tiny_tokens(2, 19)
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
    partial = PartialModel(model)
    hidden = partial.before_blocks(tokens)
    for block in range(len(partial.blocks)):
        # A fresh one does not know yet what blocks return.
        for each in (partial, PartialModel(model)):
            torch.testing.assert_close(each.logits_from(tokens, block, hidden), expected)
        hidden = partial.through(tokens, block, hidden)
    torch.testing.assert_close(partial.logits_from(tokens, len(partial.blocks), hidden), expected)


def test_only_the_blocks_behind_see_a_change() -> None:
    model = tiny_models.tiny_model()
    tokens = tiny_models.tiny_tokens(2, 9)
    partial = PartialModel(model)
    first = partial.before_blocks(tokens)
    second = partial.through(tokens, 0, first)
    before = partial.logits_from(tokens, 1, second)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
    assert torch.equal(partial.logits_from(tokens, 1, second), before)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
    assert not torch.allclose(partial.logits_from(tokens, 1, second), before)


def test_blocks_that_return_tuples() -> None:
    model = tiny_models.tiny_model()
    tokens = tiny_models.tiny_tokens(2, 9)
    partial = PartialModel(model)
    hidden = partial.through(tokens, 0, partial.before_blocks(tokens))
    expected = partial.logits_from(tokens, 1, hidden)

    class Old(torch.nn.Module):
        """A block of an earlier release of transformers."""

        def __init__(self, block: torch.nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, hidden: object, *args: object, **kwargs: object) -> tuple[object, ...]:
            # The model of this release takes tensors, that one unpacked.
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            return (self.block(hidden, *args, **kwargs),)

    class OldNorm(torch.nn.Module):
        def __init__(self, norm: torch.nn.Module) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, hidden: object) -> object:
            assert isinstance(hidden, tuple), "a block that was skipped has to look like one"
            return self.norm(hidden[0])

    old = copy.deepcopy(model)
    old.model.layers = torch.nn.ModuleList(Old(block) for block in old.model.layers)
    old.model.norm = OldNorm(old.model.norm)
    for each in (PartialModel(old), PartialModel(old)):
        torch.testing.assert_close(each.through(tokens, 0, each.before_blocks(tokens)), hidden)
        torch.testing.assert_close(each.logits_from(tokens, 1, hidden), expected)
    fresh = PartialModel(old)
    last = fresh.through(tokens, 2, fresh.through(tokens, 1, hidden))
    torch.testing.assert_close(PartialModel(old).logits_from(tokens, 3, last), expected)


def test_losses_are_those_of_plain_torch() -> None:
    model = tiny_models.tiny_model()
    tokens = tiny_models.tiny_tokens(5, 13)
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits.double()
    expected = [
        float(functional.cross_entropy(logits[i, :-1], tokens[i, 1:])) for i in range(len(tokens))
    ]
    assert PartialModel(model).losses(tokens) == pytest.approx(expected, rel=1e-5)


def test_losses_are_those_of_eval() -> None:
    model = tiny_models.tiny_model()
    tokens = tiny_models.tiny_tokens(4, 21)
    windows = [Window(row, len(row) - 1) for row in tokens]
    found = Reference(model, windows).compare()
    mean = sum(PartialModel(model).losses(tokens)) / 4
    assert mean == pytest.approx(found.loss, rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, 10**9])
def test_batches_hold_what_was_allowed_and_change_nothing(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models.tiny_model()
    tokens = tiny_models.tiny_tokens(7, 11)
    expected = PartialModel(model).losses(tokens)
    monkeypatch.setitem(module.LOGIT_BYTES, "cpu", size * 11 * tiny_models.VOCABULARY * 4)
    monkeypatch.setattr(module, "ROWS", 4)
    partial = PartialModel(model)
    assert len(partial.batches(tokens)[0]) == min(size, 7)
    assert partial.losses(tokens) == pytest.approx(expected, rel=1e-5)


def test_a_batch_is_never_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.LOGIT_BYTES, "cpu", 1)
    assert len(PartialModel(tiny_models.tiny_model()).batches(tiny_models.tiny_tokens(3, 5))) == 3


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_models.tiny_model()
    model.train()
    tokens = tiny_models.tiny_tokens(2, 7)
    partial = PartialModel(model)
    hidden = partial.through(tokens, 0, partial.before_blocks(tokens))
    partial.logits_from(tokens, 2, hidden)
    partial.logits_from(tokens, 0, hidden)
    assert model.training
    for block in model.model.layers:
        assert "forward" not in block.__dict__
        assert not block._forward_hooks
        assert not block._forward_pre_hooks


def test_an_error_inside_leaves_no_trace() -> None:
    model = tiny_models.tiny_model()
    tokens = tiny_models.tiny_tokens(2, 7)
    partial = PartialModel(model)
    hidden = partial.before_blocks(tokens)
    with pytest.raises(RuntimeError):
        partial.logits_from(tokens, 1, hidden[..., :5])
    assert "forward" not in model.model.layers[0].__dict__
    assert len(partial.losses(tokens)) == 2


@pytest.mark.parametrize("shape", [(0, 5), (3, 1)])
def test_text_without_a_token_to_predict(shape: tuple[int, int]) -> None:
    tokens = torch.ones(shape, dtype=torch.int64)
    with pytest.raises(CalibrationError) as caught:
        module._means_of([torch.zeros(shape[0], dtype=torch.float64)], tokens)
    assert str(caught.value) == (
        f"{shape[0]} windows of {shape[1]} tokens leave no token to predict; use windows of two or "
        "more"
    )


def test_a_loss_that_is_no_number() -> None:
    model = tiny_models.tiny_model()
    with torch.no_grad():
        model.lm_head.weight[3].fill_(math.nan)
    with pytest.raises(CalibrationError, match="the loss of the model is nan on this text; run it"):
        PartialModel(model).losses(tiny_models.tiny_tokens(2, 5))


def test_a_model_without_blocks() -> None:
    with pytest.raises(ModelError, match="Linear has no decoder blocks in model"):
        PartialModel(torch.nn.Linear(2, 2))
