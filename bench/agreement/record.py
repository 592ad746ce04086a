"""Result files of `slidesparse bench agreement`: what ours and stock vLLM said, and the verdict.

One JSON form, versioned, written by the tool and never by hand. The verdict is not stored: it
follows from what was measured and the limits beside it (see verdict).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from slidesparse import __version__
from slidesparse.bench.accuracy.record import TextSource
from slidesparse.bench.agreement.numbers import Compared, perplexity
from slidesparse.bench.agreement.requests import Sequences
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
from slidesparse.bench.sweep.job import Mode, System
from slidesparse.bench.sweep.runner import Kind

KIND = FileKind("slidesparse-agreement", 1, "slidesparse bench agreement")


@dataclass(frozen=True)
class Limits:
    """What the verdict goes by.

    Args:
        agreement: the least share of tokens for which ours and stock find the same one likeliest.
        perplexity: the most that ours may be off stock's, up or down; 0.005 is half a percent.
        load: the most that ours may take to load over what stock takes; None for any.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    agreement: Share = 0.99
    perplexity: Amount = 0.005
    load: Amount | None = None


@dataclass(frozen=True)
class MixedRequests:
    """What came of requests that ran together and of some of them alone.

    Args:
        count: that ran together.
        aborted: of those.
        broken: of those, how many did not do what was asked of them.
        reason: what the first of those did, "" where there is none.
        compared: that ran alone again.
        differing: first positions at which those differ that gave other tokens alone.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    count: Count
    aborted: Count
    broken: Count
    reason: Text
    compared: Count
    differing: tuple[Count, ...]

    def __post_init__(self) -> None:
        """Refuse counts that contradict each other."""
        if max(self.broken, self.aborted) > self.count:
            raise ValueError(f"{self.aborted} aborted and {self.broken} broken of {self.count}")
        if len(self.differing) > self.compared or self.compared > self.count:
            raise ValueError(
                f"{len(self.differing)} differing of {self.compared} compared of {self.count}"
            )

    @property
    def sequences(self) -> Sequences:
        """The comparison by itself."""
        return Sequences(self.compared, self.differing)


@dataclass(frozen=True)
class Served:
    """One vLLM: what it measured, or why it did not.

    Args:
        system: stock or ours.
        mode: eager or graphs.
        ran: what vLLM said that it runs, by name; empty where it did not start.
        load_s: seconds to make the model, read its weights and pack them; None where unknown.
        start_s: seconds until vLLM took requests; None where it did not start.
        tokens: that were scored.
        loss: mean negative log-likelihood of those, nats per token; None where none were.
        requests: None where none ran.
        failure: how it failed, None where all was measured.
        reason: why it failed, "" where all was measured.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    system: System
    mode: Mode
    ran: dict[Name, Text]
    load_s: Duration | None
    start_s: Duration | None
    tokens: Count
    loss: Amount | None
    requests: MixedRequests | None
    failure: Kind | None
    reason: Text

    def __post_init__(self) -> None:
        """Refuse a loss of nothing, and a failure without a reason."""
        if (self.loss is None) != (self.tokens == 0):
            raise ValueError(f"loss is {self.loss} over {self.tokens} tokens")
        if (self.failure is None) != (self.reason == ""):
            raise ValueError("a failure has a reason, and only a failure has one")

    @property
    def perplexity(self) -> float | None:
        """exp(loss), None where nothing was scored."""
        return None if self.loss is None else perplexity(self.loss)

    def __str__(self) -> str:
        """As tables name it: "ours, graphs"."""
        return f"{self.system}, {self.mode}"


@dataclass(frozen=True)
class Pair:
    """How far one vLLM is from another.

    Args:
        system: of the one in question.
        mode: of it.
        reference_system: of the one that it is compared with.
        reference_mode: of that.
        tokens: that both scored.
        agreement: share of them for which both find the same token likeliest.
        ties: of those that differ, how many are near ties of the reference.
        perplexity: over the reference's, less 1.
        difference: mean absolute difference of log probabilities, nats.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    system: System
    mode: Mode
    reference_system: System
    reference_mode: Mode
    tokens: Positive
    agreement: Share
    ties: Count
    perplexity: Annotated[float, Field(gt=-1)]
    difference: Amount

    def __post_init__(self) -> None:
        """Refuse more ties than tokens that differ."""
        if self.ties > round(self.tokens * (1 - self.agreement)):
            raise ValueError(f"{self.ties} ties of {self.tokens} tokens at {self.agreement}")

    @classmethod
    def of(cls, reference: Served, other: Served, found: Compared) -> Pair:
        """A comparison as a result file holds it."""
        return cls(
            system=other.system,
            mode=other.mode,
            reference_system=reference.system,
            reference_mode=reference.mode,
            tokens=found.tokens,
            agreement=found.agreement,
            ties=found.ties,
            perplexity=found.perplexity,
            difference=found.difference,
        )

    @property
    def across(self) -> bool:
        """Whether ours is compared with stock, not one of them with itself."""
        return self.system is not self.reference_system

    def __str__(self) -> str:
        """As tables name it: "ours against stock, graphs"."""
        if self.across:
            return f"{self.system} against {self.reference_system}, {self.mode}"
        return f"{self.system}, {self.mode} against {self.reference_mode}"


@dataclass(frozen=True)
class CheckpointAgreement:
    """One checkpoint.

    Args:
        name: of its folder.
        served: every vLLM that ran it, in order.
        pairs: every comparison.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Name
    served: tuple[Served, ...]
    pairs: tuple[Pair, ...]

    def one(self, system: System, mode: Mode) -> Served | None:
        """The vLLM of a system and mode, if it ran."""
        found = (it for it in self.served if (it.system, it.mode) == (system, mode))
        return next(found, None)

    def noise(self) -> Pair | None:
        """Stock compared with itself, if both modes ran."""
        found = (it for it in self.pairs if not it.across and it.system is System.STOCK)
        return next(found, None)


@dataclass(frozen=True)
class AgreementRecord(Stamped):
    """One run of `slidesparse bench agreement`.

    Args:
        fingerprint: of the machine.
        versions: of what the fingerprint does not name: slidesparse, vllm.
        settings: the options of the command.
        limits: that the verdict goes by.
        text: that was scored.
        checkpoints: in the order in which they ran.
        seconds: wall time.
        interrupted: whether it was stopped by hand.
        commit: of the source, "unknown" outside a checkout.
        version: of the package.
        created: UTC time in ISO 8601.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    fingerprint: Machine
    versions: dict[Name, Text]
    settings: dict[Name, Any]
    limits: Limits
    text: TextSource
    checkpoints: tuple[CheckpointAgreement, ...]
    seconds: Amount
    interrupted: bool
    commit: Text = ""
    version: Text = __version__
    created: Text = ""


FORM = RecordForm(KIND, AgreementRecord)
read_json, write_json = FORM.read, FORM.write
