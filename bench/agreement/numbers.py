"""What two engines say of the same tokens, compared: likeliest tokens, perplexity, near ties."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slidesparse.errors import SlideSparseError

TOP = 2
"""Likeliest tokens to ask for at each position: the first is compared, the second tells a tie."""

TIE = 0.125
"""Nats that the two likeliest tokens of a near tie are apart at most: one step of BF16 at a logit
between 16 and 32, where those of language models are. Rounding decides which of them is first."""


class AgreementError(SlideSparseError):
    """An engine that gave something else than what was asked for; says what."""


@dataclass(frozen=True)
class Scores:
    """What an engine says of scored tokens; one entry per token, in the order of the text.

    Args:
        logprobs: of the tokens that came, in nats.
        first: the tokens that the engine found likeliest.
        gap: nats between the likeliest token and the next one.
    """

    logprobs: tuple[float, ...] = ()
    first: tuple[int, ...] = ()
    gap: tuple[float, ...] = ()

    def __len__(self) -> int:
        """How many tokens."""
        return len(self.logprobs)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, nats per token."""
        return -math.fsum(self.logprobs) / len(self)

    @classmethod
    def joined(cls, parts: Iterable[Scores]) -> Scores:
        """The scores of several windows as those of one."""
        parts = list(parts)
        return cls(
            logprobs=tuple(value for part in parts for value in part.logprobs),
            first=tuple(token for part in parts for token in part.first),
            gap=tuple(value for part in parts for value in part.gap),
        )


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that is more than a float holds."""
    return math.exp(loss) if loss < 700 else math.inf


def read_scores(
    positions: Sequence[Mapping[int, Any] | None] | None, tokens: Sequence[int], scored: int
) -> Scores:
    """The scores in vLLM's `prompt_logprobs`.

    Args:
        positions: one mapping per token of the prompt, None for the first. It holds the token that
            came and the TOP likeliest ones, each with `logprob` in nats and `rank`, from 1.
        tokens: of the prompt.
        scored: how many of the last tokens count.

    Raises:
        AgreementError: there are not as many positions as tokens, a token is not there, or a log
            probability is no number.
    """
    found = 0 if positions is None else len(positions)
    if positions is None or found != len(tokens):
        raise AgreementError(f"vLLM scored {found} positions of a prompt of {len(tokens)} tokens")
    logprobs, first, gaps = [], [], []
    for index in range(len(tokens) - scored, len(tokens)):
        said = positions[index] or {}
        ranked = {entry.rank: (token, entry.logprob) for token, entry in said.items()}
        if tokens[index] not in said or not {1, TOP} <= ranked.keys():
            raise AgreementError(
                f"vLLM gave no log probability of token {index} of {len(tokens)}, or not of the "
                f"{TOP} likeliest ones"
            )
        (best, high), (_, low) = ranked[1], ranked[TOP]
        logprob = said[tokens[index]].logprob
        if not all(map(math.isfinite, (logprob, high, low))):
            raise AgreementError(
                f"the log probability of token {index} of {len(tokens)} is {logprob}, those of the "
                f"likeliest are {high} and {low}: the model gives NaN or infinity"
            )
        logprobs.append(logprob)
        first.append(best)
        gaps.append(high - low)
    return Scores(tuple(logprobs), tuple(first), tuple(gaps))


@dataclass(frozen=True)
class Compared:
    """How far one engine is from another on the same tokens.

    Args:
        tokens: that were scored.
        agreement: share of them for which both find the same next token likeliest; 1 is all.
        ties: of those that differ, how many are near ties of the reference (see TIE).
        perplexity: the other's over the reference's, less 1: 0.001 is a tenth of a percent more.
        difference: mean absolute difference of the log probabilities of what came, in nats.
    """

    tokens: int
    agreement: float
    ties: int
    perplexity: float
    difference: float


def compare(reference: Scores, other: Scores) -> Compared:
    """Compare an engine's scores with those of a reference.

    Raises:
        AgreementError: they are not of the same number of tokens, or of none.
    """
    tokens = len(reference)
    if tokens != len(other) or not tokens:
        raise AgreementError(f"{tokens} and {len(other)} scored tokens cannot be compared")
    differing = [i for i in range(tokens) if reference.first[i] != other.first[i]]
    apart = math.fsum(abs(a - b) for a, b in zip(reference.logprobs, other.logprobs, strict=True))
    return Compared(
        tokens=tokens,
        agreement=(tokens - len(differing)) / tokens,
        ties=sum(reference.gap[i] <= TIE for i in differing),
        perplexity=math.expm1(min(other.loss - reference.loss, 700.0)),
        difference=apart / tokens,
    )
