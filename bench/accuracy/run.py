"""One run of `slidesparse eval`: load, measure every variant, keep what there is at any end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidesparse.accuracy.converted import converted_variant, is_converted, quantised_linears
from slidesparse.accuracy.evaluate import (
    Outcome,
    Variant,
    evaluate,
    evaluate_converted,
    variants,
)
from slidesparse.accuracy.lm_eval import Tasks
from slidesparse.accuracy.load import load_model, load_tokenizer, model_name
from slidesparse.accuracy.sources import is_ids
from slidesparse.accuracy.text import (
    Window,
    calibration_tokens,
    evaluation_windows,
    read_tokens,
)
from slidesparse.bench.accuracy.record import AccuracyRecord, AccuracyRow, text_source
from slidesparse.errors import UsageError
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method, Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from slidesparse.devices import Device, Fingerprint

BATCH_TOKENS = {"cuda": 16384, "cpu": 2048}
"""Tokens that run together: enough to fill a GPU, few enough for any memory."""

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class AccuracyOptions:
    """What the command was asked for.

    Args:
        model: a directory, a Hugging Face id, a .gguf file or "smollm2".
        text: to evaluate on; a file or a cached dataset.
        calibration: for methods that look at inputs, or None.
        patterns: to measure.
        methods: to measure each sparse pattern with.
        dtypes: to measure each of those in; None is pruned only.
        recipe: measured instead of patterns, methods and dtypes.
        reference: the dense model that `model` was converted from, or None.
        keep: linears that are left as they are.
        sequences: of calibration text.
        length: tokens of each and of an evaluation window.
        stride: tokens between windows; None for `length`.
        windows: at most, None for all of the text.
        permute: channels first, where that is exact.
        precision: one of PRECISIONS; auto is the stored dtype, float32 on a CPU and for GGUF.
        tasks: of lm-evaluation-harness.
        seed: of the draw of calibration sequences.
    """

    model: str
    text: str
    calibration: str | None
    patterns: tuple[Pattern, ...]
    methods: tuple[Method, ...]
    dtypes: tuple[DType | None, ...]
    recipe: Recipe | None
    reference: str | None
    keep: tuple[str, ...]
    sequences: int
    length: int
    stride: int | None
    windows: int | None
    permute: bool
    precision: str
    tasks: tuple[str, ...]
    seed: int

    def wanted(self) -> tuple[Variant, ...]:
        """The variants to measure; for a recipe the dense model too."""
        if self.recipe is not None:
            return Variant(), Variant.of(self.recipe)
        return variants(self.patterns, self.methods, self.dtypes)

    def plain(self) -> dict[str, Any]:
        """As the result file holds them, paths by their last part."""
        return {
            "patterns": [str(pattern) for pattern in self.patterns],
            "methods": [str(method) for method in self.methods],
            "dtypes": [str(dtype) if dtype else None for dtype in self.dtypes],
            "recipe": None if self.recipe is None else self.recipe.to_json(),
            "reference": None if self.reference is None else model_name(self.reference),
            "keep": list(self.keep),
            "sequences": self.sequences,
            "length": self.length,
            "stride": self.stride,
            "windows": self.windows,
            "permute": self.permute,
            "tasks": list(self.tasks),
            "seed": self.seed,
        }


class AccuracyRun:
    """Runs an evaluation; rows are there as they are found.

    Args:
        options: of the command.
        device: to run on.
        fingerprint: of that device.
        progress: called with what is in hand, how much of it is done, and of how much.
    """

    def __init__(
        self,
        options: AccuracyOptions,
        device: Device,
        fingerprint: Fingerprint,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Nothing is read yet."""
        self.options, self.device, self.fingerprint = options, device, fingerprint
        self.progress = progress
        self.rows: list[AccuracyRow] = []
        self._start = time.monotonic()
        self._tokens = [0, 0]
        self._precision = options.precision

    def run(self) -> Iterator[AccuracyRow]:
        """Measure everything.

        Yields:
            A row per variant.

        Raises:
            UsageError: the model is converted and there is no reference, or the other way round.
            SlideSparseError: the model or a text cannot be used; says why.
        """
        options = self.options
        _check_model(options)
        # Texts are read before the model: what is wrong with them is found sooner.
        sources = [it for it in (options.text, options.calibration) if it is not None]
        dense = options.reference or options.model
        plain = all(is_ids(Path(source)) for source in sources) and not options.tasks
        tokenizer = dense if plain else load_tokenizer(dense)
        stream = read_tokens(options.text, tokenizer)
        windows = evaluation_windows(stream, options.length, options.stride, options.windows)
        calibration = self._calibration(tokenizer)
        self._tokens[0] = sum(window.scored for window in windows)
        model = load_model(dense, self._dtype(), str(self.device))
        self._precision = str(next(model.parameters()).dtype).removeprefix("torch.")
        batch = max(1, BATCH_TOKENS.get(self.device.kind, 2048) // options.length)
        # Made here so that unknown tasks end the run before it begins.
        also = Tasks(options.tasks, tokenizer) if options.tasks else None
        rest: dict[str, Any] = {"batch": batch, "also": also, "progress": self.progress}
        for outcome in self._outcomes(model, windows, calibration, rest):
            self.rows.append(AccuracyRow.of(outcome))
            yield self.rows[-1]

    def _outcomes(
        self,
        model: nn.Module,
        windows: list[Window],
        calibration: torch.Tensor | None,
        rest: dict[str, Any],
    ) -> Iterator[Outcome]:
        """Of variants that are made here or, given a reference, of the checkpoint as it is."""
        options = self.options
        if options.reference is None:
            yield from evaluate(
                model,
                windows,
                options.wanted(),
                calibration,
                keep=options.keep,
                permute=options.permute,
                **rest,
            )
            return
        path = Path(options.model)
        variant = Variant()
        quantised: tuple[str, ...] = ()
        if path.is_dir() and is_converted(path):
            variant, quantised = converted_variant(path), quantised_linears(path)
        converted = load_model(options.model, self._dtype(), str(self.device))
        yield evaluate_converted(model, converted, windows, variant, quantised, **rest)

    def record(self, interrupted: bool) -> AccuracyRecord:
        """What there is so far, as the result file holds it."""
        options = self.options
        used = text_source(options.calibration, self._tokens[1]) if options.calibration else None
        return AccuracyRecord(
            model=model_name(options.model),
            fingerprint=self.fingerprint,
            settings={
                **options.plain(),
                "precision": self._precision,
                "device": str(self.device),
            },
            evaluation=text_source(options.text, self._tokens[0]),
            calibration=used if self._tokens[1] else None,
            seconds=time.monotonic() - self._start,
            interrupted=interrupted,
            rows=tuple(self.rows),
        ).stamped()

    def _calibration(self, tokenizer: Any) -> torch.Tensor | None:
        options = self.options
        if options.reference or not any(variant.calibrated for variant in options.wanted()):
            return None
        if options.calibration is None:
            first = next(variant for variant in options.wanted() if variant.calibrated)
            raise UsageError(
                f"{first.method} looks at text to prune: give --calibration FILE, another text "
                "than the one that is evaluated, or use --methods magnitude"
            )
        tokens = calibration_tokens(
            options.calibration, tokenizer, options.sequences, options.length, options.seed
        )
        self._tokens[1] = tokens.numel()
        return tokens

    def _dtype(self) -> torch.dtype | None:
        import torch

        if self.options.precision == "auto":
            return None if self.device.is_gpu else torch.float32
        found: torch.dtype = getattr(torch, self.options.precision)
        return found


def _check_model(options: AccuracyOptions) -> None:
    path = Path(options.model)
    if options.reference is None and (path / "config.json").is_file() and is_converted(path):
        raise UsageError(
            f"{options.model} is pruned or quantised already: name the dense model that it was "
            "made of with --reference, and it is evaluated as it is"
        )
