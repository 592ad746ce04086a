"""What `slidesparse allocate` is asked for: options, targets, sensitivities of an earlier run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slidesparse.accuracy.allocate import Options
from slidesparse.accuracy.groups import Group
from slidesparse.accuracy.sensitivity import Effect, Sensitivity
from slidesparse.accuracy.speed import Batch, SpeedTable
from slidesparse.bench.allocation.record import read_json
from slidesparse.errors import UsageError
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method

REUSED = ("model", "method", "calibration", "sequences", "probe", "length", "precision", "seed")
"""Settings that sensitivities depend on."""

MOST_DRIFT = 1e-3
"""Nats per token that the dense loss of reused sensitivities may differ from that of today."""


@dataclass(frozen=True)
class AllocationOptions:
    """What is asked for; exactly one of `percent` and `target` is given.

    Args:
        model: directory, Hugging Face id, .gguf file or "smollm2".
        text: held-out text, as slidesparse.accuracy.text reads it.
        calibration: text for statistics and sensitivities; None for `text`.
        percent: by how much perplexity may increase over dense.
        target: speedup over dense to reach, or the uniform pattern whose speedup it is.
        batches: of the workload.
        patterns: to choose from, besides dense.
        method: that prunes.
        dtype: of the GEMMs whose times count, and of the recipe.
        keep: linears that stay as they are.
        sequences: of calibration text for the statistics.
        probe: sequences of it that sensitivities are means over, other ones.
        windows: of held-out text at most.
        length: tokens of each of these.
        precision: of the model: "auto" or the name of a torch dtype.
        seed: of the draw of sequences.
        search: measure GEMM times that the cache lacks.
        reuse: a result file whose sensitivities are taken.
        compare: measure uniform patterns too.
    """

    model: str
    text: str
    calibration: str | None
    percent: float | None
    target: float | Pattern | None
    batches: tuple[Batch, ...]
    patterns: tuple[Pattern, ...]
    method: Method
    dtype: DType
    keep: tuple[str, ...]
    sequences: int
    probe: int
    windows: int
    length: int
    precision: str
    seed: int
    search: bool
    reuse: Path | None
    compare: bool

    @property
    def sources(self) -> tuple[str, str]:
        """Held-out text and calibration text."""
        return self.text, self.calibration or self.text

    def settings(self) -> dict[str, Any]:
        """As the result file holds them."""
        return {
            "model": self.model,
            "text": self.text,
            "calibration": self.sources[1],
            "max_perplexity_increase_percent": self.percent,
            "target_speedup": str(self.target) if isinstance(self.target, Pattern) else self.target,
            "m": [str(batch) for batch in self.batches],
            "patterns": [str(pattern) for pattern in self.patterns],
            "method": str(self.method),
            "dtype": str(self.dtype),
            "keep": list(self.keep),
            "sequences": self.sequences if self.method.calibrated else 0,
            "probe": self.probe,
            "windows": self.windows,
            "length": self.length,
            "precision": self.precision,
            "seed": self.seed,
        }


def reused(
    path: Path, options: AllocationOptions, groups: tuple[Group, ...], dense_loss: float
) -> Sensitivity:
    """The sensitivities of an earlier run.

    Args:
        path: of its result file.
        options: of this run.
        groups: of the model.
        dense_loss: of the model on this run's probe text, nats per token.

    Raises:
        UsageError: it cannot be read, or is of another model, method or text.
    """
    record = read_json(path)
    settings = options.settings()
    for name in REUSED:
        if record.settings.get(name) != settings[name]:
            raise UsageError(
                f"{path} was made with {name} {record.settings.get(name)!r}, this run has "
                f"{settings[name]!r}; leave out --reuse or use the same"
            )
    if abs(record.dense_loss - dense_loss) > MOST_DRIFT:
        raise UsageError(
            f"{path} was made with another model or text: its dense loss is "
            f"{record.dense_loss:.4f}, here {dense_loss:.4f} nats per token; leave out --reuse"
        )
    held = {row.linears: row for row in record.groups}
    effects = {}
    for group in groups:
        for pattern in options.patterns:
            row, name = held.get(group.linears), str(pattern)
            if row is None or name not in row.kl or name not in row.increases:
                raise UsageError(f"{path} lacks {pattern} of {group}; leave out --reuse")
            effects[group, pattern] = Effect(row.kl[name], row.increases[name])
    return Sensitivity(record.dense_loss, effects, record.tokens)


def check_target(
    target: float | Pattern | None,
    groups: tuple[Group, ...],
    patterns: tuple[Pattern, ...],
    speeds: SpeedTable,
) -> None:
    """Refuse a target that no choice reaches, before anything slow is done.

    Raises:
        UsageError: it is out of reach, or a pattern that is not among those to choose from.
    """
    free = Effect(0.0, 0.0)
    nothing = Sensitivity(0.0, {(g, p): free for g in groups for p in patterns}, 1)
    choices = Options(groups, patterns, speeds, nothing)
    if isinstance(target, Pattern) and target not in patterns:
        raise UsageError(f"--target-speedup {target} is not one of --patterns; add it there")
    if target is not None:
        choices.least_loss_at(target_speedup(target, choices))


def target_speedup(target: float | Pattern | None, choices: Options) -> float:
    """The speedup over dense that a target stands for; at least 1."""
    if isinstance(target, Pattern):
        return max(1.0, choices.speedup(choices.uniform(target)))
    return target or 1.0
