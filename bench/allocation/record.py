"""Result files of `slidesparse allocate`: every sensitivity and time, what was chosen, what it did.

One JSON form, versioned, written by the tool and never by hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from slidesparse import __version__
from slidesparse.bench.fields import (
    STRICT,
    Amount,
    Count,
    Duration,
    Machine,
    Name,
    Positive,
    Share,
    Text,
)
from slidesparse.bench.record_form import RecordForm, Stamped
from slidesparse.bench.result_file import FileKind

KIND = FileKind("slidesparse-allocation", 1, "slidesparse allocate")


@dataclass(frozen=True)
class GroupRow:
    """One group of linears.

    Args:
        block: index of the decoder block.
        name: "qkv", "o", "gate_up" or "down".
        linears: full names.
        n: output channels.
        k: input channels.
        us: time over the workload by pattern, "dense" included, in microseconds.
        kl: KL(dense || pruned) of pruning this group alone, by pattern, in nats per token.
        increases: loss that it adds on the probe text, likewise.
        chosen: its pattern.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    block: Count
    name: Name
    linears: tuple[Name, ...]
    n: Positive
    k: Positive
    us: dict[Name, Duration]
    kl: dict[Name, Amount]
    increases: dict[Name, float]
    chosen: Name


@dataclass(frozen=True)
class OutcomeRow:
    """A whole model that was pruned and measured.

    Args:
        name: "dense", "uniform 6:8", "round 1" or "chosen".
        us: time of all groups over the workload, in microseconds.
        speedup: dense time over it.
        zeros: fraction of the groups' weights.
        predicted: loss increase, the sum of the groups' divergences, nats per token.
        loss: measured on the held-out text, nats per token.
        increase: of the loss over dense.
        error: standard error of the increase, from the spread between windows.
        proved: whether the solver proved that nothing better was to be predicted.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Name
    us: Duration
    speedup: Duration
    zeros: Share
    predicted: float
    loss: float
    increase: float
    error: Amount
    proved: bool

    @property
    def perplexity(self) -> float:
        """Perplexity: e to the loss."""
        return math.exp(self.loss)


@dataclass(frozen=True)
class AllocationRecord(Stamped):
    """One allocation, as its result file holds it.

    Args:
        model: name as it was given.
        fingerprint: of the machine that the times are from.
        settings: the options of the command.
        seconds: wall time of each part by name.
        gemm: the kind of GEMM that was timed: "fp8_e4m3 -> bf16, scales rowcol".
        provenance: how many times are cached and how many bundled.
        dense_loss: of the sensitivities' text, nats per token.
        tokens: that the sensitivities are means over.
        groups: by block.
        left_out: linears that stay dense.
        outcomes: dense first, then uniform patterns, the rounds, and last what was chosen.
        verdicts: how the choice compares with each uniform pattern.
        commit: of the source, "unknown" outside a checkout.
        version: of the package.
        created: UTC time in ISO 8601.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: Name
    fingerprint: Machine
    settings: dict[Name, Any]
    seconds: dict[Name, float]
    gemm: Text
    provenance: dict[Name, Count]
    dense_loss: float
    tokens: Positive
    groups: tuple[GroupRow, ...]
    left_out: tuple[Name, ...]
    outcomes: Annotated[tuple[OutcomeRow, ...], Field(min_length=2)]
    verdicts: tuple[Text, ...]
    commit: Text = ""
    version: Text = __version__
    created: Text = ""

    @property
    def dense(self) -> OutcomeRow:
        """The dense model."""
        return self.outcomes[0]

    @property
    def chosen(self) -> OutcomeRow:
        """What was chosen."""
        return self.outcomes[-1]


FORM = RecordForm(KIND, AllocationRecord)
read_json, write_json = FORM.read, FORM.write
