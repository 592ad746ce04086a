"""A tiny model, text that it wrote itself, and times that nobody measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_models
import torch

from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Measurement, ProblemResult
from slidesparse.pattern import DENSE, Pattern, parse_patterns
from slidesparse.problem import DType, GemmProblem, Scales

LENGTH = 24
PATTERNS = parse_patterns("2:4,4:6,6:8,8:10")
SHAPES = {"qkv": (128, 48), "o": (48, 64), "gate_up": (176, 48), "down": (48, 88)}
GAINS = {"2:4": 1.6, "4:6": 1.25, "6:8": 1.15, "8:10": 1.06}


@torch.no_grad()
def written_text(model: Any, windows: int, seed: int) -> torch.Tensor:
    """Token ids [windows * LENGTH]: on text of its own, what is done to a model costs loss."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randint(3, tiny_models.VOCABULARY, (windows, 1), generator=generator)
    for _ in range(LENGTH - 1):
        odds = model(input_ids=made, use_cache=False).logits[:, -1].softmax(-1)
        made = torch.cat([made, torch.multinomial(odds, 1, generator=generator)], dim=1)
    return made.reshape(-1)


def save_case(folder: Path, windows: int = 96) -> None:
    """A model's directory with calibration and held-out token ids beside its weights."""
    model = tiny_models.tiny_model("Llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    model.save_pretrained(folder)
    for name, seed in (("calibration", 21), ("text", 22)):
        ids = written_text(model, windows, seed).tolist()
        (folder / f"{name}.json").write_text(json.dumps(ids))


def timed(backend: str, us: float, sparse: bool, spread: float = 0.01) -> Measurement:
    return Measurement(Candidate(backend, {"algo": 1}, sparse), us, spread, 30, 8, 1e-3, 1e-2)


def made_result(
    problem: GemmProblem, dense_us: float, gain: float, clock: float = 1.0
) -> ProblemResult:
    """A race at `clock` times the speed of the dense problem's own race."""
    dense = timed("cublaslt", dense_us / clock, False)
    if problem.pattern.dense:
        return ProblemResult(problem, (dense,), baseline=dense)
    sparse = timed("cusparselt", dense_us / clock / gain, True)
    ranked = tuple(sorted((sparse, dense), key=lambda m: m.median_us))
    return ProblemResult(problem, ranked, baseline=dense)


def dense_us(m: int, n: int, k: int) -> float:
    return 1.0 + m * n * k / 1e5


def fill(
    cache: TuningCache,
    tokens: tuple[int, ...] = (64,),
    gains: dict[str, float] | None = None,
    dtype: DType = DType.FP8,
    out: DType = DType.BF16,
    scales: Scales = Scales.ROWCOL,
) -> None:
    """Put a result for every shape, pattern and M into a cache, as if they had been searched."""
    found = []
    for m in tokens:
        for n, k in SHAPES.values():
            for pattern in (DENSE, *PATTERNS):
                problem = GemmProblem(m, n, k, dtype, out, scales, pattern)
                gain = (GAINS | (gains or {})).get(str(pattern), 1.0)
                # Races of sparser patterns ran at lower clocks: only ratios may be used.
                clock = 1.0 - 0.3 * float(Pattern.parse(str(pattern)).zeros)
                found.append(made_result(problem, dense_us(m, n, k), gain, clock))
    cache.put_many(found)
