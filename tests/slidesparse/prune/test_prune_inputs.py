"""A model run block by block computes what the whole model does, whichever its kind."""

import pytest
import torch
from tiny_models import KINDS, tiny_model, tiny_tokens
from torch import nn

from slidesparse.errors import ModelError
from slidesparse.prune.inputs import blocks_of, first_inputs, run_block


def run_by_blocks(model, tokens):
    inputs = first_inputs(model, tokens)
    for block in blocks_of(model):
        inputs = inputs.after(run_block(block, inputs))
    return torch.cat(inputs.hidden)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_one_by_one_are_the_model(kind):
    model, tokens = tiny_model(kind), tiny_tokens()
    whole = model.model(tokens).last_hidden_state
    assert torch.equal(model.model.norm(run_by_blocks(model, tokens)), whole)


@torch.no_grad()
def test_blocks_get_the_mask_of_their_own_kind():
    """Gemma 3 mixes sliding and full attention: one block's call does not do for another."""
    model, tokens = tiny_model("Gemma3Text"), tiny_tokens()
    inputs = first_inputs(model, tokens)
    masks = [call.kwargs["attention_mask"] for call in inputs.calls[:2]]
    if all(mask is masks[0] for mask in masks):
        pytest.skip("this transformers release makes the mask inside the block")
    sliding = run_block(model.model.layers[0], inputs)[0]
    swapped = type(inputs)(inputs.hidden, (inputs.calls[1], *inputs.calls[1:]))
    full = run_block(model.model.layers[0], swapped)[0]
    assert not torch.equal(sliding[0, -1], full[0, -1])


@torch.no_grad()
def test_the_model_is_left_as_it_was():
    model, tokens = tiny_model(attention_dropout=0.9), tiny_tokens(1)
    before = model(tokens).logits
    model.train()
    once, again = run_by_blocks(model, tokens), run_by_blocks(model, tokens)
    assert torch.equal(once, again), "dropout was active"
    assert all(module.training for module in model.modules())
    assert not any("forward" in block.__dict__ for block in blocks_of(model))
    assert torch.equal(model.eval()(tokens).logits, before)


def test_a_forward_of_the_instance_comes_back():
    """As libraries that place layers on devices set it."""
    model = tiny_model()
    own = model.model.layers[1].forward
    model.model.layers[1].forward = own
    first_inputs(model, tiny_tokens(1))
    assert model.model.layers[1].__dict__["forward"] == own


def test_hidden_states_go_where_they_are_stored():
    model, tokens = tiny_model(), tiny_tokens(2)
    inputs = first_inputs(model, tokens, store="meta")
    assert [it.device.type for it in inputs.hidden] == ["meta", "meta"]
    inputs = first_inputs(model, tokens)
    assert [tuple(it.shape) for it in inputs.hidden] == [(1, 24, 48)] * 2
    assert (inputs.block, inputs.after([]).block, len(inputs.calls)) == (0, 1, 3)


def test_weights_of_the_blocks_are_not_used():
    model, tokens = tiny_model(), tiny_tokens(1)
    expected = first_inputs(model, tokens).hidden[0]
    for block in blocks_of(model):
        block.to("meta")
    assert torch.equal(first_inputs(model, tokens).hidden[0], expected)


class Stub(nn.Module):
    """A decoder as transformers before 4.54 wrote it: blocks take keywords and return tuples."""

    def __init__(self, blocks=2, reached=None, by_text=False):
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(StubBlock() for _ in range(blocks))
        self.embedding = nn.Embedding(97, 8)
        self.reached, self.by_text = reached, by_text

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, use_cache):
        assert use_cache is False
        hidden = self.embedding(input_ids)
        scale = input_ids.float() if self.by_text else torch.tensor(2.0)
        for block in self.model.layers[: self.reached]:
            hidden = block(hidden_states=hidden, position=(scale, [1, None]))[0]
        return hidden


class StubBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden_states, position):
        return (self.linear(hidden_states) * position[0].mean(), "attentions")


def test_blocks_that_return_tuples():
    torch.manual_seed(3)
    model, tokens = Stub(), tiny_tokens(2)
    torch.testing.assert_close(run_by_blocks(model, tokens), model(tokens, False))


def test_calls_that_depend_on_the_text_are_refused():
    with pytest.raises(ModelError, match="Stub passes its blocks more than hidden states that dep"):
        first_inputs(Stub(by_text=True), tiny_tokens(2))


def test_blocks_that_are_skipped_are_noticed():
    with pytest.raises(ModelError, match="Stub ran only 1 of 2 blocks"):
        first_inputs(Stub(reached=1), tiny_tokens(2))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), Stub(blocks=0)], ids=["linear", "no blocks"])
def test_models_without_known_blocks_are_refused(model):
    with pytest.raises(ModelError, match=r"has no decoder blocks in model\.layers; use a causal"):
        blocks_of(model)
