"""Result files of `slidesparse eval`: what pruning and quantising cost, and on which text.

One JSON form, versioned, written by the tool and never by hand.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, StringConstraints

from slidesparse import __version__
from slidesparse.bench.fields import STRICT, Amount, Count, Machine, Positive, Share, Text, Zeros
from slidesparse.bench.record_form import RecordForm, Stamped
from slidesparse.bench.result_file import FileKind
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method

if TYPE_CHECKING:
    from slidesparse.accuracy.evaluate import Outcome

KIND = FileKind("slidesparse-accuracy", 1, "slidesparse eval")

Name = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


@dataclass(frozen=True)
class TextSource:
    """Which text was used.

    Args:
        name: of the file, or "dataset:..." as it was given.
        sha256: of the file; "" for a data set.
        tokens: that were used of it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Name
    sha256: Text
    tokens: Count


@dataclass(frozen=True)
class AccuracyRow:
    """One variant as it was measured.

    Args:
        pattern: of its linears; of those that no layer of the recipe names.
        method: how weights were chosen, None where nothing was pruned.
        dtype: W8A8 in this dtype, None for pruned only.
        recipe: whether a recipe gave single layers patterns of their own.
        zeros: share of zeros in the weights of the linears that were not kept.
        tokens: that were scored.
        loss: mean negative log-likelihood, nats per token.
        perplexity: exp(loss); None where that is more than a float holds.
        increase: of the loss over the dense model's.
        error: standard error of `increase`.
        agreement: share of tokens whose most likely successor is the dense model's.
        kl: mean KL(dense || this), nats per token.
        pruning_s: seconds; 0 where the pruned weights were there already.
        measuring_s: seconds.
        tasks: results of lm-evaluation-harness.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    pattern: Zeros
    method: Method | None
    dtype: DType | None
    recipe: bool
    zeros: Share
    tokens: Positive
    loss: Amount
    perplexity: Amount | None
    increase: float
    error: Amount
    agreement: Share
    kl: Amount
    pruning_s: Amount
    measuring_s: Amount
    tasks: dict[Name, Any]

    @classmethod
    def of(cls, outcome: Outcome) -> AccuracyRow:
        """An outcome as a result file holds it."""
        variant, found = outcome.variant, outcome.metrics
        return cls(
            pattern=variant.pattern,
            method=None if variant.dense else variant.method,
            dtype=variant.dtype,
            recipe=bool(variant.layers),
            zeros=outcome.zeros,
            tokens=found.tokens,
            loss=found.loss,
            perplexity=found.perplexity if math.isfinite(found.perplexity) else None,
            increase=found.increase,
            error=found.error,
            agreement=found.agreement,
            kl=found.kl,
            pruning_s=outcome.pruning_s,
            measuring_s=outcome.measuring_s,
            tasks=dict(outcome.tasks),
        )


@dataclass(frozen=True)
class AccuracyRecord(Stamped):
    """One run of `slidesparse eval`.

    Args:
        model: its name.
        fingerprint: of the machine.
        settings: the options of the command.
        evaluation: the text that was scored.
        calibration: the text that pruning looked at, None without.
        seconds: wall time.
        interrupted: whether it was stopped by hand.
        rows: in the order in which they were measured.
        commit: of the source, "unknown" outside a checkout.
        version: of the package.
        created: UTC time in ISO 8601.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: Name
    fingerprint: Machine
    settings: dict[Name, Any]
    evaluation: TextSource
    calibration: TextSource | None
    seconds: Amount
    interrupted: bool
    rows: tuple[AccuracyRow, ...]
    commit: Text = ""
    version: Text = __version__
    created: Text = ""

    def row(
        self, pattern: Pattern, method: Method | None, dtype: DType | None
    ) -> AccuracyRow | None:
        """The row of a variant, if it was measured; recipes have none."""
        wanted = (pattern, None if pattern.dense else method, dtype, False)
        rows = (it for it in self.rows if (it.pattern, it.method, it.dtype, it.recipe) == wanted)
        return next(rows, None)


FORM = RecordForm(KIND, AccuracyRecord)
read_json, write_json = FORM.read, FORM.write


def text_source(name: str, tokens: int) -> TextSource:
    """A text as the record names it: the file's own name and the checksum of its content.

    Args:
        name: a path, or "dataset:...".
        tokens: that were used of it.
    """
    path = Path(name)
    if not path.is_file():
        return TextSource(name, "", tokens)
    return TextSource(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), tokens)
