"""Prune and quantise one model in many ways and measure each against the dense model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from slidesparse.accuracy.metrics import Metrics, Reference
from slidesparse.accuracy.simulate import simulated
from slidesparse.accuracy.text import Window, check_vocabulary
from slidesparse.errors import CalibrationError, CheckpointError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.prune.model import linears_of, prune_model
from slidesparse.recipe import Method, Recipe

KEEP = ("lm_head",)
"""Neither pruned nor quantised; the reference's logits are made with the same head."""


@dataclass(frozen=True)
class Variant:
    """One way to make a model smaller.

    Args:
        pattern: of every linear that `layers` does not name.
        method: how weights are chosen; None for a model that stays dense.
        dtype: FP8 or INT8, or None to prune only.
        layers: patterns by full name, of a recipe.
    """

    pattern: Pattern = DENSE
    method: Method | None = None
    dtype: DType | None = None
    layers: Mapping[str, Pattern] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe) -> Variant:
        """What a recipe asks for."""
        return cls(recipe.pattern, recipe.method, recipe.dtype, dict(recipe.layers))

    def recipe(self, keep: tuple[str, ...] = KEEP) -> Recipe:
        """As pruning takes it."""
        return Recipe(self.pattern, self.method or Method.MAGNITUDE, self.dtype, keep, self.layers)

    @property
    def dense(self) -> bool:
        """Whether nothing is pruned."""
        return self.pattern.dense and all(pattern.dense for pattern in self.layers.values())

    @property
    def calibrated(self) -> bool:
        """Whether pruning looks at the inputs of a layer."""
        return not self.dense and self.method is not None and self.method.calibrated

    def pruned_like(self, other: Variant) -> bool:
        """Whether both have the same pruned weights."""
        if self.dense and other.dense:
            return True
        mine = (self.pattern, self.method, self.layers)
        return mine == (other.pattern, other.method, other.layers)

    def __str__(self) -> str:
        """As tables and messages name it: "6:8 wanda fp8_e4m3"."""
        pattern = f"recipe ({self.pattern})" if self.layers else str(self.pattern)
        method = "" if self.dense or self.method is None else f" {self.method}"
        return f"{pattern}{method}{f' {self.dtype}' if self.dtype else ''}"


@dataclass(frozen=True)
class Outcome:
    """What a variant costs.

    Args:
        variant: that was measured.
        metrics: against the dense, unquantised model.
        zeros: share of zeros in the weights of the linears that are not kept.
        pruning_s: seconds that pruning took; 0 where the pruned weights were there already.
        measuring_s: seconds that the evaluation took.
        tasks: what `also` found, by name.
    """

    variant: Variant
    metrics: Metrics
    zeros: float
    pruning_s: float
    measuring_s: float
    tasks: Mapping[str, Any] = field(default_factory=dict)


def variants(
    patterns: Sequence[Pattern], methods: Sequence[Method], dtypes: Sequence[DType | None]
) -> tuple[Variant, ...]:
    """Every pattern with every method (dense with none) and every dtype, in this order."""
    made: list[Variant] = []
    for pattern in patterns:
        for method in (None,) if pattern.dense else methods:
            made.extend(Variant(pattern, method, dtype) for dtype in dtypes)
    return tuple(made)


def evaluate(
    model: nn.Module,
    windows: Sequence[Window],
    wanted: Sequence[Variant],
    calibration: torch.Tensor | None = None,
    *,
    keep: tuple[str, ...] = KEEP,
    batch: int = 1,
    permute: bool = False,
    also: Callable[[nn.Module], Mapping[str, Any]] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Outcome]:
    """Measure variants of a model one after the other; its weights are the dense ones at the end.

    Variants that differ only in the dtype should be neighbours: they share the pruned weights.

    Args:
        model: a dense transformers causal LM in evaluation mode.
        windows: of the text to evaluate on.
        wanted: what to measure.
        calibration: [S, L] int64; not needed for magnitude.
        keep: linears to leave alone, the output head among them.
        batch: windows that run together.
        permute: permute channels first where that is exact; see slidesparse.prune.permute.
        also: run on every variant, for example `lm_eval.Tasks`.
        progress: called with what is in hand, how much of it is done, and of how much.

    Yields:
        An outcome per variant, in their order.

    Raises:
        CalibrationError: the tokens do not suit the model, or calibration is missing.
        RecipeError: a linear that is named does not exist.
    """
    _check(model, windows, wanted, calibration, keep)
    say = progress or (lambda what, done, total: None)
    held = _Dense(model)
    current: Variant | None = None
    pruning_s = 0.0
    try:
        done = _counter(say, "dense reference", len(windows))
        reference = Reference(model, windows, batch, done)
        for variant in wanted:
            if current is None or not variant.pruned_like(current):
                start = time.monotonic()
                held.restore()
                _prune(model, variant, calibration, keep, permute, say)
                current, pruning_s = variant, time.monotonic() - start
            start = time.monotonic()
            linears = linears_of(model, variant.recipe(keep))
            with simulated(linears, variant.dtype):
                metrics = reference.compare(progress=_counter(say, str(variant), len(windows)))
                tasks = also(model) if also is not None else {}
            yield Outcome(
                variant, metrics, _zeros(linears), pruning_s, time.monotonic() - start, tasks
            )
            pruning_s = 0.0
    finally:
        held.restore()


def evaluate_converted(
    dense: nn.Module,
    converted: nn.Module,
    windows: Sequence[Window],
    variant: Variant,
    quantised: Sequence[str],
    *,
    batch: int = 1,
    also: Callable[[nn.Module], Mapping[str, Any]] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Outcome:
    """Measure a converted checkpoint as it is.

    Args:
        dense: the model that it was made of.
        converted: with dequantised weights, as `load_model` gives it.
        windows: of the text to evaluate on.
        variant: what the checkpoint says of itself; its dtype is that of quantised inputs.
        quantised: full names of the linears whose inputs are quantised.
        batch: windows that run together.
        also: run on the converted model.
        progress: as for `evaluate`.

    Raises:
        CalibrationError: the tokens do not suit the models.
        CheckpointError: a quantised weight belongs to no linear.
    """
    for model in (dense, converted):
        _check(model, windows, (), None, KEEP)
    say = progress or (lambda what, done, total: None)
    reference = Reference(dense, windows, batch, _counter(say, "dense reference", len(windows)))
    start = time.monotonic()
    linears = linears_of(converted)
    modules = dict(converted.named_modules())
    rounding = {
        name: module for name in quantised if isinstance(module := modules.get(name), nn.Linear)
    }
    if len(rounding) < len(quantised):
        lost = next(name for name in quantised if name not in rounding)
        raise CheckpointError(
            f"{lost} of the checkpoint is no linear of {type(converted).__name__}"
        )
    with simulated(rounding, variant.dtype, weights=False):
        metrics = reference.compare(converted, _counter(say, "checkpoint", len(windows)))
        tasks = also(converted) if also is not None else {}
    return Outcome(variant, metrics, _zeros(linears), 0.0, time.monotonic() - start, tasks)


class _Dense:
    """The weights of all linears, kept on the CPU, to start every variant from."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [
            (parameter, parameter.detach().to("cpu", copy=True))
            for linear in linears_of(model).values()
            for parameter in linear.parameters(recurse=False)
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for parameter, dense in self._kept:
            parameter.copy_(dense)


def _prune(
    model: nn.Module,
    variant: Variant,
    calibration: torch.Tensor | None,
    keep: tuple[str, ...],
    permute: bool,
    say: Callable[[str, int, int], None],
) -> None:
    if variant.dense:
        return

    def progress(done: int, total: int, _name: str) -> None:
        say(f"pruning {variant.pattern} {variant.method}", done, total)

    tokens = calibration if variant.calibrated else None
    prune_model(model, variant.recipe(keep), tokens, progress, permute=permute)


def _check(
    model: nn.Module,
    windows: Sequence[Window],
    wanted: Sequence[Variant],
    calibration: torch.Tensor | None,
    keep: tuple[str, ...],
) -> None:
    """Find out now what would otherwise end a long run."""
    if not Recipe(keep=keep).kept(KEEP[0]):
        raise CalibrationError(f"{KEEP[0]} has to be kept: both models are read with the same head")
    if not windows:
        raise CalibrationError("there is no text to evaluate on: no windows")
    lacking = next((variant for variant in wanted if variant.calibrated), None)
    if lacking is not None and calibration is None:
        raise CalibrationError(
            f"{lacking} needs calibration text: give --calibration, or use magnitude"
        )
    tokens = [window.tokens for window in windows]
    tokens += [calibration.reshape(-1)] if calibration is not None else []
    longest = max(window.tokens.numel() for window in windows)
    if calibration is not None:
        longest = max(longest, calibration.shape[1])
    config: Any = model.config
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise CalibrationError(
            f"sequences of {longest:,} tokens; {type(model).__name__} reads at most {limit:,}: "
            "lower --length"
        )
    for ids in tokens:
        check_vocabulary(ids, int(config.vocab_size))


def _zeros(linears: Mapping[str, nn.Linear]) -> float:
    total = sum(linear.weight.numel() for linear in linears.values())
    zeros = sum(int((linear.weight == 0).sum()) for linear in linears.values())
    return zeros / max(1, total)


def _counter(say: Callable[[str, int, int], None], what: str, total: int) -> Callable[[int], None]:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        say(what, done, total)

    say(what, 0, total)
    return count
