"""Perplexity, agreement and divergence against the same from all logits at once in float64."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_models import KINDS, VOCABULARY, tiny_model
from torch import nn

from slidesparse.accuracy import metrics
from slidesparse.accuracy.metrics import Comparison, Reference, hidden_states, logits_of
from slidesparse.accuracy.text import TokenStream, Window, evaluation_windows
from slidesparse.errors import CalibrationError, ModelError


def changed(model: Any) -> Any:
    made = deepcopy(model)
    with torch.no_grad():
        for block in made.model.layers:
            block.mlp.down_proj.weight.mul_(1.5)
    return made


def ids(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


def expected(dense: Any, other: Any, windows: list[Window]) -> dict[str, float]:
    """From whole logits in float64, one window after the other."""
    losses, base, agreed, kl = [], [], [], []
    for window in windows:
        with torch.no_grad():
            p = dense(input_ids=window.tokens[None]).logits[0].double().log_softmax(-1)
            q = other(input_ids=window.tokens[None]).logits[0].double().log_softmax(-1)
        for place in range(window.tokens.numel() - window.scored, window.tokens.numel()):
            target = int(window.tokens[place])
            losses.append(-float(q[place - 1, target]))
            base.append(-float(p[place - 1, target]))
            agreed.append(float(p[place - 1].argmax() == q[place - 1].argmax()))
            kl.append(
                float(
                    nn.functional.kl_div(
                        q[place - 1], p[place - 1], log_target=True, reduction="sum"
                    )
                )
            )
    count = len(losses)
    return {
        "tokens": count,
        "loss": sum(losses) / count,
        "increase": (sum(losses) - sum(base)) / count,
        "agreement": sum(agreed) / count,
        "kl": sum(kl) / count,
    }


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize(("length", "stride", "batch"), [(24, None, 1), (24, 24, 4), (25, 9, 3)])
def test_all_figures(
    length: int,
    stride: int | None,
    batch: int,
    bos: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "CHUNK", 7)
    dense = tiny_model()
    other = changed(dense)
    windows = evaluation_windows(TokenStream(ids(101), bos), length, stride)
    found = Reference(dense, windows, batch).compare(other)
    wanted = expected(dense, other, windows)
    assert found.tokens == wanted["tokens"]
    assert 0 < found.agreement < 1, "an even comparison would show nothing"
    for name in ("loss", "increase", "agreement", "kl"):
        assert getattr(found, name) == pytest.approx(wanted[name], abs=2e-6, rel=1e-5), name
    assert found.perplexity == pytest.approx(math.exp(wanted["loss"]), rel=1e-5)


def test_the_dense_model_is_exactly_itself() -> None:
    dense = tiny_model()
    found = Reference(dense, evaluation_windows(ids(90), 30), 2).compare()
    assert (found.agreement, found.kl, found.increase, found.error) == (1.0, 0.0, 0.0, 0.0)


def test_weights_may_change_under_the_reference() -> None:
    """The answers are kept, so the same object can become the other model."""
    model = tiny_model()
    windows = evaluation_windows(ids(90), 30)
    other = changed(model)
    wanted = Reference(model, windows).compare(other)
    reference = Reference(model, windows)
    model.load_state_dict(other.state_dict())
    assert reference.compare() == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_does_behind_its_head_is_done(kind: str) -> None:
    """Gemma 2 caps its logits."""
    model = tiny_model(kind)
    window = Window(ids(20), 19)
    with torch.no_grad():
        whole = model(input_ids=window.tokens[None]).logits[0]
    (hidden,) = hidden_states(model, [window])
    assert torch.equal(logits_of(model, hidden), whole)
    assert torch.allclose(logits_of(model, hidden[5:9]), whole[5:9], atol=1e-6)
    with torch.no_grad():
        assert torch.equal(model(input_ids=window.tokens[None]).logits[0], whole), "as it was"


def test_the_error_is_that_of_windows() -> None:
    """Ratio estimator: tokens of one window are not independent, windows are."""
    found = Comparison()
    dense = torch.zeros(4, 3)
    increases = []
    for strength, count in ((1.0, 4), (2.0, 4), (-0.5, 2)):
        found.begin_window()
        other = torch.zeros(count, 3)
        other[:, 0] = -strength
        found.update(dense[:count], other, torch.zeros(count, dtype=torch.int64))
        own = math.log(math.exp(-strength) + 2) + strength - math.log(3)
        increases.append((own * count, count))
    result = found.result()
    mean = sum(total for total, _ in increases) / 10
    residual = sum((total - mean * count) ** 2 for total, count in increases)
    assert result.increase == pytest.approx(mean, rel=1e-6)
    assert result.error == pytest.approx(math.sqrt(residual * 3 / 2) / 10, rel=1e-6)


def test_a_hopeless_token_of_the_dense_model_adds_no_divergence() -> None:
    found = Comparison()
    dense = torch.tensor([[0.0, 0.0, -math.inf]])
    found.update(dense, torch.zeros(1, 3), torch.tensor([0]))
    assert found.result().kl == pytest.approx(math.log(3 / 2), rel=1e-6)


def test_no_figure_is_made_of_nothing_or_of_nan() -> None:
    with pytest.raises(CalibrationError, match="no token was scored"):
        Comparison().result()
    model = tiny_model()
    windows = evaluation_windows(ids(60), 30)
    reference = Reference(model, windows)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(CalibrationError, match="the loss over 58 tokens is nan"):
        reference.compare()


def test_a_perplexity_past_all_floats() -> None:
    found = Comparison()
    found.update(torch.zeros(1, 2), torch.tensor([[-5000.0, 5000.0]]), torch.tensor([0]))
    assert found.result().perplexity == math.inf


def test_a_module_without_a_head_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear is no causal LM with an output head"):
        hidden_states(nn.Linear(2, 2), [Window(torch.tensor([0, 1]), 1)])


def test_progress_counts_windows() -> None:
    seen: list[int] = []
    reference = Reference(tiny_model(), evaluation_windows(ids(111), 20), 3, seen.append)
    assert seen == [3, 2, 1], "a short window runs by itself"
    seen.clear()
    reference.compare(progress=seen.append)
    assert sum(seen) == 6
