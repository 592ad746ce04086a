"""Sweeps, their outcomes and records for tests, without any process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slidesparse.bench.sweep.book import Heading, SweepBook
from slidesparse.bench.sweep.job import CellTime, Mode, Stage, System, Variant
from slidesparse.bench.sweep.plan import Block, Key, Sweep
from slidesparse.bench.sweep.record import SweepRecord
from slidesparse.bench.sweep.runner import Failure, Kind, Outcome
from slidesparse.devices import Fingerprint
from slidesparse.models import load_model
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType

MODEL = "qwen2.5-7b"
SIX = Pattern.parse("6:8")
STOCK, OURS, OURS_SIX = Variant(System.STOCK), Variant(System.OURS), Variant(System.OURS, SIX)
STOCK_SIX = Variant(System.STOCK, SIX)
BLOCK = Block(MODEL, DType.FP8, Mode.GRAPHS)
H200 = Fingerprint("NVIDIA H200", 90, 132, 143156, "580", "13.1.0", "0.8.1", "2.11.0", "3.6.0")


def make_sweep(**changes: Any) -> Sweep:
    settings: dict[str, Any] = {
        "stage": Stage.PREFILL,
        "models": (MODEL,),
        "dtypes": (DType.FP8,),
        "patterns": (DENSE, SIX),
        "ms": (4096, 512),
        "modes": (Mode.GRAPHS,),
        "tp": 1,
        "prompt": 1024,
        "outputs": 128,
        "repeats": 3,
        "seed": 7,
        "same_weights": False,
    }
    return Sweep(**{**settings, **changes})


def make_heading(sweep: Sweep | None = None, **changes: Any) -> Heading:
    sweep = sweep or make_sweep()
    settings: dict[str, Any] = {
        "sweep": sweep,
        "engine": "vllm",
        "device": "cuda:0",
        "fingerprint": H200,
        "versions": {"slidesparse": "0.1.0", "vllm": "0.25.1"},
        "specs": {name: load_model(name) for name in sweep.models},
        "stock": "vLLM as it is",
        "timed": "the whole model",
        "cards": ("card-a",),
    }
    return Heading(**{**settings, **changes})


def time_of(m: int, us: float, spread: float = 0.0, largest: int = 1) -> CellTime:
    """Samples with this median and interquartile range."""
    samples = (us - spread, us - spread / 2, us, us + spread / 2, us + spread)
    shares = {"gemm": 0.7, "fused": 0.1, "attention": 0.05, "other": 0.15}
    return CellTime(m, samples, shares, 1500.0, 690.5, 0.012, largest)


def outcome(
    variant: Variant,
    m: int,
    us: float,
    spread: float = 0.0,
    again: bool = False,
    largest: int = 1,
    ran: Mapping[str, str] | None = None,
) -> Outcome:
    built = {"vllm": "0.25.1", "linears": str(variant)} if ran is None else ran
    return Outcome(Key(BLOCK, variant, again, m), time_of(m, us, spread, largest), built)


def failed(
    variant: Variant, m: int, kind: Kind = Kind.CRASH, reason: str = "killed by SIGSEGV"
) -> Outcome:
    return Outcome(Key(BLOCK, variant, False, m), Failure(kind, reason), {})


def make_record(**changes: Any) -> SweepRecord:
    """M=512: dense 1.05 within the doubt, 6:8 1.21 clear; M=4096: dense ran, 6:8 crashed."""
    book = SweepBook(make_heading(make_sweep(**changes)))
    for each in (
        outcome(STOCK, 512, 1000.0, 20.0),
        outcome(STOCK, 4096, 8000.0, 40.0),
        outcome(OURS, 512, 1000.0, 20.0),
        outcome(OURS, 4096, 9000.0, 40.0),
        outcome(OURS_SIX, 512, 870.0, 10.0),
        failed(OURS_SIX, 4096),
        outcome(STOCK, 512, 1100.0, 20.0, again=True),
        outcome(STOCK, 4096, 8000.0, 40.0, again=True, largest=2**31),
    ):
        book.add(each)
    return book.record(interrupted=False)
