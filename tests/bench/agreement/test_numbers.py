"""Scores of text and their comparison, against direct computation from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slidesparse.bench.agreement.numbers import (
    TIE,
    TOP,
    AgreementError,
    Scores,
    compare,
    perplexity,
    read_scores,
)

VOCAB = 50


@dataclass
class Entry:
    """What vLLM's Logprob holds."""

    logprob: float
    rank: int | None


def said_of(logits: torch.Tensor, tokens: list[int]) -> list[dict[int, Entry] | None]:
    """vLLM's form of what logits [T - 1, V] say of tokens [T]: the token that came goes first."""
    made: list[dict[int, Entry] | None] = [None]
    for row, came in zip(logits.log_softmax(-1), tokens[1:], strict=True):
        values, best = row.topk(TOP)
        entry = {came: Entry(float(row[came]), int((row >= row[came]).sum()))}
        for rank, (value, token) in enumerate(zip(values, best, strict=True), start=1):
            entry[int(token)] = Entry(float(value), rank)
        made.append(entry)
    return made


def scores_of(logits: torch.Tensor, tokens: list[int], scored: int) -> Scores:
    return read_scores(said_of(logits, tokens), tokens, scored)


@pytest.fixture
def case(seed: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Logits of two models that differ a little, and the tokens."""
    logits = 2 * torch.randn(40, VOCAB)
    other = logits + 0.3 * torch.randn(40, VOCAB)
    return logits, other, torch.randint(0, VOCAB, (41,)).tolist()


def test_scores_are_those_of_the_logits(case: tuple[torch.Tensor, torch.Tensor, list[int]]) -> None:
    logits, _, tokens = case
    scores = scores_of(logits, tokens, 40)
    expected = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(tokens[1:]))
    assert scores.loss == pytest.approx(float(expected), abs=1e-5)
    assert scores.first == tuple(logits.argmax(-1).tolist())
    top = logits.topk(2).values
    assert scores.gap == pytest.approx((top[:, 0] - top[:, 1]).tolist(), abs=1e-5)


def test_only_the_last_tokens_count(case: tuple[torch.Tensor, torch.Tensor, list[int]]) -> None:
    logits, _, tokens = case
    whole, part = scores_of(logits, tokens, 40), scores_of(logits, tokens, 7)
    assert len(part) == 7
    assert (part.logprobs, part.first) == (whole.logprobs[-7:], whole.first[-7:])
    assert Scores.joined([scores_of(logits[:33], tokens[:34], 33), part]) == whole


def test_the_comparison_is_that_of_the_logits(
    case: tuple[torch.Tensor, torch.Tensor, list[int]],
) -> None:
    logits, other, tokens = case
    found = compare(scores_of(logits, tokens, 40), scores_of(other, tokens, 40))
    differing = logits.argmax(-1) != other.argmax(-1)
    assert 0 < int(differing.sum()) < 40
    assert found.tokens == 40
    assert found.agreement == pytest.approx(1 - float(differing.double().mean()))
    top = logits.topk(2).values
    assert found.ties == int((differing & (top[:, 0] - top[:, 1] <= TIE)).sum())
    came = torch.tensor(tokens[1:])
    losses = [torch.nn.functional.cross_entropy(it.double(), came) for it in (logits, other)]
    assert found.perplexity == pytest.approx(float(losses[1].exp() / losses[0].exp() - 1), abs=1e-4)
    apart = [it.log_softmax(-1).gather(1, came[:, None]) for it in (logits, other)]
    assert found.difference == pytest.approx(float((apart[0] - apart[1]).abs().mean()), abs=1e-5)


def test_an_engine_agrees_with_itself(case: tuple[torch.Tensor, torch.Tensor, list[int]]) -> None:
    logits, _, tokens = case
    scores = scores_of(logits, tokens, 40)
    found = compare(scores, scores)
    assert (found.agreement, found.ties, found.perplexity, found.difference) == (1.0, 0, 0.0, 0.0)


def test_a_tie_has_one_first_token() -> None:
    """Three tokens alike: two of them are ranked, the one that came counts all three."""
    logits = torch.zeros(1, VOCAB)
    logits[0, [3, 7, 9]] = 5.0
    _, best = logits.topk(2)
    came = next(token for token in (3, 7, 9) if token not in best[0].tolist())
    scores = scores_of(logits, [0, came], 1)
    assert scores.first == (int(best[0, 0]),)
    assert scores.gap == (0.0,)
    assert scores.logprobs[0] == pytest.approx(float(logits.log_softmax(-1)[0, came]))


def test_near_ties_of_the_reference_are_told_apart() -> None:
    reference = Scores((-1.0,) * 4, (1, 2, 3, 4), (TIE, 2 * TIE, 0.0, 5.0))
    other = Scores((-1.0,) * 4, (9, 9, 9, 4), (5.0, 0.0, 5.0, 0.0))
    found = compare(reference, other)
    assert found.agreement == 0.25
    assert found.ties == 2


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_perplexity_is_compared_as_a_ratio(a: float, b: float) -> None:
    one, other = Scores((a - 4,), (1,), (1.0,)), Scores((b - 4,), (1,), (1.0,))
    ratio = perplexity(other.loss) / perplexity(one.loss)
    assert compare(one, other).perplexity == pytest.approx(ratio - 1, rel=1e-6, abs=1e-9)


def test_a_hopeless_loss_is_infinite_perplexity() -> None:
    assert perplexity(1000.0) == math.inf
    hopeless = Scores((-5000.0,), (1,), (1.0,))
    assert math.isfinite(compare(Scores((-1.0,), (1,), (1.0,)), hopeless).perplexity)


GOOD: list[Any] = [None, {5: Entry(-1.0, 1), 6: Entry(-2.0, 2)}]


@pytest.mark.parametrize(
    ("positions", "tokens", "text"),
    [
        (None, [4, 5], "scored 0 positions of a prompt of 2 tokens"),
        (GOOD, [4, 5, 6], "scored 2 positions of a prompt of 3 tokens"),
        ([None, None], [4, 5], "no log probability of token 1 of 2"),
        (GOOD, [4, 7], "no log probability of token 1 of 2"),
        ([None, {5: Entry(-1.0, 1)}], [4, 5], "or not of the 2 likeliest ones"),
        ([None, {5: Entry(-1.0, None), 6: Entry(-2.0, 2)}], [4, 5], "the 2 likeliest"),
        ([None, {5: Entry(math.nan, 1), 6: Entry(-2.0, 2)}], [4, 5], "gives NaN or infinity"),
        ([None, {5: Entry(-1.0, 1), 6: Entry(-math.inf, 2)}], [4, 5], "gives NaN or infinity"),
    ],
)
def test_what_cannot_be_read_is_named(positions: Any, tokens: list[int], text: str) -> None:
    with pytest.raises(AgreementError, match=text):
        read_scores(positions, tokens, 1)


def test_other_numbers_of_tokens_are_not_compared() -> None:
    one = Scores((-1.0,), (1,), (1.0,))
    for other in (Scores(), Scores.joined([one, one])):
        with pytest.raises(AgreementError, match="cannot be compared"):
            compare(one, other)
    with pytest.raises(AgreementError, match="0 and 0 scored tokens"):
        compare(Scores(), Scores())
