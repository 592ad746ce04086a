"""How far a model is from its dense self: perplexity, agreement and divergence, streamed.

No more logits are in memory than those of CHUNK tokens of both models. The dense model runs once:
of each window only the hidden states before its output head are kept, and the head runs again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slidesparse.accuracy.text import Window
from slidesparse.errors import CalibrationError, ModelError

CHUNK = 512
"""Tokens whose logits are looked at together: 100 MB in float32 for a vocabulary of 50,000."""


@dataclass(frozen=True)
class Metrics:
    """What was seen over all scored tokens.

    Args:
        tokens: how many were scored.
        loss: mean negative log-likelihood, nats per token.
        increase: of the loss over the dense model's, nats per token.
        error: standard error of `increase` from the spread between windows; 0 for a single one.
        agreement: the share of tokens where both models find the same next token most likely.
        kl: mean KL(dense || this), nats per token.
    """

    tokens: int
    loss: float
    increase: float
    error: float
    agreement: float
    kl: float

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is more than a float holds."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


class Comparison:
    """Adds up what two models say of the same tokens, in float64 on the device of the logits."""

    def __init__(self) -> None:
        """Start with no token."""
        self._windows: list[torch.Tensor] = []
        self._sums: torch.Tensor | None = None
        self._tokens: list[int] = []

    def begin_window(self) -> None:
        """Count what follows to a window of its own."""
        self._close()
        self._tokens.append(0)

    def update(self, dense: torch.Tensor, other: torch.Tensor, targets: torch.Tensor) -> None:
        """Add tokens.

        Args:
            dense: logits [T, V] of the reference.
            other: logits [T, V] of the model in question.
            targets: [T] int64, the tokens that came.
        """
        p, q = dense.float().log_softmax(-1), other.float().log_softmax(-1)
        at = targets[:, None]
        p_loss, q_loss = -p.gather(1, at).double(), -q.gather(1, at).double()
        agreed = (p.argmax(-1) == q.argmax(-1)).double()
        # A token that the dense model gives no chance adds nothing, whatever the other says.
        kl = torch.where(p == -math.inf, 0.0, p.exp() * (p - q)).sum(-1, dtype=torch.float64)
        found = torch.stack([q_loss.sum(), (q_loss - p_loss).sum(), agreed.sum(), kl.sum()])
        self._sums = found if self._sums is None else self._sums + found
        if not self._tokens:
            self._tokens.append(0)
        self._tokens[-1] += targets.numel()

    def result(self) -> Metrics:
        """The means over all tokens.

        Raises:
            CalibrationError: nothing was added, or the loss is no number.
        """
        self._close()
        total = sum(self._tokens)
        if not total:
            raise CalibrationError("no token was scored; use windows of two tokens or more")
        windows = torch.stack(self._windows).cpu()
        loss, increase, agreement, kl = (float(value) / total for value in windows.sum(0))
        if not math.isfinite(loss):
            raise CalibrationError(
                f"the loss over {total:,} tokens is {loss}: the model gives NaN or infinity; "
                "run it in float32 or bfloat16"
            )
        counts = torch.tensor([n for n in self._tokens if n], dtype=torch.float64)
        error = _spread(windows[:, 1], counts, increase)
        return Metrics(total, loss, increase, error, agreement, max(0.0, kl))

    def _close(self) -> None:
        if self._sums is not None:
            self._windows.append(self._sums)
            self._sums = None


def _spread(sums: torch.Tensor, counts: torch.Tensor, mean: float) -> float:
    """Standard error of a mean over tokens that hang together by windows (ratio estimator)."""
    n = counts.numel()
    if n < 2:
        return 0.0
    residual = (sums - mean * counts).square().sum()
    return float((residual * n / (n - 1)).sqrt() / counts.sum())


class Reference:
    """The dense model's answers to some windows, kept as hidden states [L, H] on the CPU.

    Args:
        model: a transformers causal LM. Its output head has to stay as it is.
        windows: to answer.
        batch: windows of one length that run together.
        progress: called after every batch with how many windows it had.

    Raises:
        ModelError: the model is not built of a base model and a head.
    """

    def __init__(
        self,
        model: nn.Module,
        windows: Sequence[Window],
        batch: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Run the dense model over all windows."""
        self.model, self.windows, self.batch = model, windows, batch
        self._hidden: list[torch.Tensor] = []
        for part in _batches(windows, batch):
            self._hidden.extend(hidden_states(model, part).cpu())
            if progress is not None:
                progress(len(part))

    def compare(
        self, other: nn.Module | None = None, progress: Callable[[int], None] | None = None
    ) -> Metrics:
        """Measure a model against the answers that were kept.

        Args:
            other: the model as it is now; None for the reference's own, whose weights may have
                changed since, all but the head's.
            progress: called after every batch with how many windows it had.

        Raises:
            CalibrationError: the model's answers are no numbers.
        """
        other = self.model if other is None else other
        found = Comparison()
        kept = iter(self._hidden)
        for part in _batches(self.windows, self.batch):
            for window, hidden in zip(part, hidden_states(other, part), strict=True):
                found.begin_window()
                self._add(found, window, next(kept).to(hidden.device), other, hidden)
            if progress is not None:
                progress(len(part))
        return found.result()

    def _add(
        self,
        found: Comparison,
        window: Window,
        dense: torch.Tensor,
        other: nn.Module,
        hidden: torch.Tensor,
    ) -> None:
        first = window.tokens.numel() - window.scored
        targets = window.tokens[first:].to(hidden.device)
        # What predicts a token is the state of the one before it.
        rows = slice(first - 1, window.tokens.numel() - 1)
        parts = (torch.split(it, CHUNK) for it in (dense[rows], hidden[rows], targets))
        for ours, theirs, wanted in zip(*parts, strict=True):
            found.update(logits_of(self.model, ours), logits_of(other, theirs), wanted)


@torch.no_grad()
def hidden_states(model: nn.Module, windows: Sequence[Window]) -> torch.Tensor:
    """What the output head sees: [B, L, H] of B windows of one length L, on the model's device.

    Raises:
        ModelError: the model is not built of a base model and a head.
    """
    tokens = torch.stack([window.tokens for window in windows])
    base = _base(model)
    return base(  # type: ignore[no-any-return]
        input_ids=tokens.to(next(model.parameters()).device), use_cache=False
    ).last_hidden_state


@torch.no_grad()
def logits_of(model: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Logits [T, V] of hidden states [T, H], with all that the model does behind its head.

    Some models scale or cap their logits in `forward`, so that is what runs, its base model
    replaced by one that answers `hidden`.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPast

    answer = BaseModelOutputWithPast(last_hidden_state=hidden[None])
    with _answering(_base(model), answer):
        ids = torch.zeros((1, hidden.shape[0]), dtype=torch.int64, device=hidden.device)
        return model(input_ids=ids, use_cache=False).logits[0]  # type: ignore[no-any-return]


@contextmanager
def _answering(base: nn.Module, answer: Any) -> Iterator[None]:
    base.__dict__["forward"] = lambda *_, **__: answer
    try:
        yield
    finally:
        del base.__dict__["forward"]


def _base(model: nn.Module) -> nn.Module:
    base = getattr(model, "base_model", model)
    if base is model or not isinstance(base, nn.Module):
        raise ModelError(f"{type(model).__name__} is no causal LM with an output head; use one")
    return base


def _batches(windows: Sequence[Window], size: int) -> Iterator[list[Window]]:
    """Neighbouring windows of one length, at most `size` together."""
    part: list[Window] = []
    for window in windows:
        if part and (len(part) == size or part[0].tokens.numel() != window.tokens.numel()):
            yield part
            part = []
        part.append(window)
    if part:
        yield part
