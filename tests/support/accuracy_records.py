"""An evaluation's result, made up: two patterns, two methods, two dtypes, and a recipe."""

from __future__ import annotations

from dataclasses import replace

from slidesparse.bench.accuracy.record import AccuracyRecord, AccuracyRow, TextSource
from slidesparse.devices import Fingerprint
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method

P68 = Pattern.parse("6:8")

ROW = AccuracyRow(
    pattern=DENSE,
    method=None,
    dtype=None,
    recipe=False,
    zeros=0.0,
    tokens=51175,
    loss=3.0,
    perplexity=20.0855,
    increase=0.0,
    error=0.0,
    agreement=1.0,
    kl=0.0,
    pruning_s=0.0,
    measuring_s=1.5,
    tasks={},
)


def make_accuracy() -> AccuracyRecord:
    """Perplexities are told apart by their digits."""
    sparse = replace(ROW, pattern=P68, zeros=0.25, increase=0.25, error=0.0123, agreement=0.875)
    wanda, magnitude = (
        replace(sparse, method=Method.WANDA),
        replace(sparse, method=Method.MAGNITUDE),
    )
    rows = (
        ROW,
        replace(ROW, dtype=DType.FP8, perplexity=20.5, kl=0.0042),
        replace(magnitude, perplexity=39.5),
        replace(magnitude, dtype=DType.FP8, perplexity=None, loss=800.0),
        replace(wanda, perplexity=31.06),
        replace(wanda, dtype=DType.FP8, perplexity=12345.6, tasks={"arc": {"acc,none": 0.25}}),
        replace(wanda, recipe=True, perplexity=25.0),
    )
    return AccuracyRecord(
        model="SmolLM2-135M",
        fingerprint=Fingerprint("NVIDIA H200", 90, 132, 143156, "580", "13.1.0", "0.8.1"),
        settings={"precision": "float32", "length": 2048, "seed": 0},
        evaluation=TextSource("evaluation.txt", "00ff", 51175),
        calibration=TextSource("calibration.txt", "ff00", 262144),
        seconds=123.4,
        interrupted=False,
        rows=rows,
        commit="0123456789abcdef",
        created="2026-03-03T10:00:00+00:00",
    )
