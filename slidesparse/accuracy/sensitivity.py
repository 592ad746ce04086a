"""What each group of linears costs under each pattern, measured one at a time.

One group of one block is pruned, the model runs from that block on with inputs that were computed
once, and the group is restored. So every figure is of the true model with one group pruned; that
the figures of several groups add up is an assumption, which `allocate` checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import nn

from slidesparse.accuracy.groups import Group
from slidesparse.accuracy.metrics import Comparison
from slidesparse.accuracy.partial import PartialModel
from slidesparse.errors import CalibrationError
from slidesparse.pattern import Pattern
from slidesparse.prune.methods import needs_gram, prune_weight
from slidesparse.prune.statistics import InputStatistics
from slidesparse.recipe import Method

Progress = Callable[[Group], None]
"""Called after every evaluation."""


@dataclass(frozen=True)
class Effect:
    """What pruning one group to one pattern does to the model.

    Args:
        kl: mean KL(dense || pruned) of the next token, nats per token: what the loss would grow by
            on text that the dense model wrote.
        increase: of the loss on the probe text itself, nats per token. Its mean is about `kl`, but
            luck with the text adds noise of sqrt(2 kl / tokens), which exceeds small effects.
    """

    kl: float
    increase: float


@dataclass(frozen=True)
class Sensitivity:
    """Effects on a model of pruning one group.

    Args:
        dense: mean negative log-likelihood of the dense model in nats per token.
        effects: by group and pattern.
        tokens: that the means are over.
    """

    dense: float
    effects: Mapping[tuple[Group, Pattern], Effect]
    tokens: int

    def cost(self, group: Group, pattern: Pattern) -> float:
        """What counts in a choice: the KL divergence, whose noise is small; dense costs nothing."""
        return 0.0 if pattern.dense else self.effects[group, pattern].kl


@torch.no_grad()
def measure_sensitivity(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    groups: Sequence[Group],
    method: Method,
    calibration: torch.Tensor,
    probe: torch.Tensor,
    patterns: Sequence[Pattern],
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure every group with every pattern.

    Statistics of inputs are those of the dense model. The rows of a group are pruned as one weight,
    which is what pruning each linear does: no method looks across rows.

    Args:
        model: a transformers causal LM on one device; ends as it began.
        linears: of the model, by full name.
        groups: to measure, by block.
        method: that prunes.
        calibration: [S, L] int64, text for the statistics; not looked at for magnitude.
        probe: [P, L] int64, text that losses are means over.
        patterns: to measure; dense is passed over.
        progress: called after every evaluation.

    Raises:
        CalibrationError: an input or a loss is NaN or infinite, or there is no token to predict.
        ModelError: the model's decoder blocks cannot be found.
    """
    partial = PartialModel(model)
    probes = _Probes(partial, probe)
    texts = _Stream(partial, calibration) if method.calibrated else None
    dense = fmean(partial.losses(probe))
    effects: dict[tuple[Group, Pattern], Effect] = {}
    for block in range(1 + max(group.block for group in groups)):
        some = [group for group in groups if group.block == block]
        with _statistics(some, linears, method) as statistics:
            if texts is not None:
                texts.advance()
        for group in some:
            members = [linears[name] for name in group.linears]
            weight = torch.cat([linear.weight for linear in members])
            for pattern in (p for p in dict.fromkeys(patterns) if not p.dense):
                pruned = prune_weight(weight, pattern, method, statistics.get(group))
                with replaced_rows(members, pruned):
                    effects[group, pattern] = probes.effect(f"{group} pruned to {pattern}")
                if progress is not None:
                    progress(group)
        probes.advance()
    return Sensitivity(dense, effects, probe.shape[0] * (probe.shape[1] - 1))


class _Stream:
    """Windows of text on their way through the dense model: the inputs of one block after another.

    Args:
        partial: the model.
        windows: [S, L] int64.
    """

    def __init__(self, partial: PartialModel, windows: torch.Tensor) -> None:
        self._partial = partial
        self._batches = partial.batches(windows)
        self._inputs = [partial.before_blocks(batch) for batch in self._batches]
        self._block = 0

    def advance(self) -> None:
        """Run the block in hand."""
        self._inputs = [
            self._partial.through(batch, self._block, hidden)
            for batch, hidden in zip(self._batches, self._inputs, strict=True)
        ]
        self._block += 1


class _Probes(_Stream):
    """The same, with the dense model's answers kept as the outputs of its last block."""

    def __init__(self, partial: PartialModel, windows: torch.Tensor) -> None:
        super().__init__(partial, windows)
        self._answers = self._inputs
        for block in range(len(partial.blocks)):
            self._answers = [
                partial.through(batch, block, hidden)
                for batch, hidden in zip(self._batches, self._answers, strict=True)
            ]

    def effect(self, what: str) -> Effect:
        """Compare the model as it is, run from the block in hand on, with the dense one."""
        found = Comparison()
        streams = zip(self._batches, self._inputs, self._answers, strict=True)
        for batch, hidden, answer in streams:
            dense = self._partial.logits_from(batch, len(self._partial.blocks), answer)
            pruned = self._partial.logits_from(batch, self._block, hidden)
            for row in range(batch.shape[0]):
                found.update(dense[row, :-1], pruned[row, :-1], batch[row, 1:])
        try:
            metrics = found.result()
        except CalibrationError as error:
            raise CalibrationError(f"{what}: {error}") from error
        return Effect(metrics.kl, metrics.increase)


@contextmanager
def replaced_rows(linears: Sequence[nn.Linear], weight: torch.Tensor) -> Iterator[None]:
    """Inside, the weights of some linears are the rows of `weight` [N, K], stacked in order."""
    before = [linear.weight.detach().clone() for linear in linears]
    try:
        rows = torch.split(weight, [linear.out_features for linear in linears])
        for linear, part in zip(linears, rows, strict=True):
            linear.weight.data.copy_(part)
        yield
    finally:
        for linear, part in zip(linears, before, strict=True):
            linear.weight.data.copy_(part)


@contextmanager
def _statistics(
    groups: Sequence[Group], linears: Mapping[str, nn.Linear], method: Method
) -> Iterator[dict[Group, InputStatistics]]:
    """Inside, the inputs of each group are summed up, if the method looks at them."""
    found: dict[Group, InputStatistics] = {}
    hooks = []
    for group in groups if method.calibrated else ():
        # All linears of a group have the same input.
        first = linears[group.linears[0]]
        statistics = InputStatistics(
            group.k, needs_gram(method), first.weight.device, group.linears[0]
        )

        def add(_: nn.Module, args: tuple[Any, ...], to: InputStatistics = statistics) -> None:
            to.update(args[0])

        found[group] = statistics
        hooks.append(first.register_forward_pre_hook(add))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
