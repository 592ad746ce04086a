"""The engine vllm of a sweep on a GPU: a small model, stock and ours, eager and with graphs."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import layer_plans as plans
import pytest
import torch
from vllm_scripts import write_config

from slidesparse.bench.sweep.job import CellTime, Job, Mode, Stage, System, Variant
from slidesparse.bench.sweep.vllm_steps import StepError
from slidesparse.bench.sweep.vllm_weights import RandomWeights
from slidesparse.cache import TuningCache
from slidesparse.devices import Device, detect
from slidesparse.errors import UsageError
from slidesparse.models import load_model
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.slide import detect_pattern
from slidesparse.worker import Worker

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not installed: the engine did not run; pip install 'slidesparse[vllm]'",
)

SIX = Pattern.parse("6:8")
STOCK, OURS = Variant(System.STOCK, SIX), Variant(System.OURS, SIX)
BUILD_SECONDS, CELL_SECONDS = 600.0, 120.0
FACTORY = "slidesparse.bench.sweep.vllm:VllmEngine"


@pytest.fixture
def job(gpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Prefill of a model with heads of 64, which FlashAttention takes.

    A race that torch has won is cached for each of its linears: without one the plug-in takes none.
    """
    cache = tmp_path / "cache"
    monkeypatch.setenv("SLIDESPARSE_CACHE_DIR", str(cache))
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8}
    folder = write_config(tmp_path / "tiny", num_hidden_layers=4, **sizes)
    ways = {DType.FP8: plans.SCALED_MM, DType.INT8: plans.INT_MM}
    TuningCache(cache, detect(gpu)).put_many(
        plans.race(plans.shape_of(it.n, it.k, DENSE, dtype), m, {way: 10.0})
        for it in load_model(str(folder)).linears()
        for dtype, way in ways.items()
        for m in (16, 4096)
    )
    fixed = {"tp": 1, "prompt": 64, "outputs": 64, "repeats": 3, "seed": 11}
    chosen = {"dtype": DType.FP8, "variant": STOCK, "mode": Mode.EAGER, "ms": (64, 4096)}
    return Job(stage=Stage.PREFILL, model=str(folder), **chosen, **fixed)


@contextmanager
def built(gpu: Device, job: Job) -> Iterator[tuple[Worker, dict[str, str]]]:
    """The engine in a process of its own, which gives the GPU's memory back when it ends."""
    worker = Worker(gpu, FACTORY, job, children=True)
    try:
        yield worker, worker.call("build", timeout=BUILD_SECONDS)
    finally:
        worker.stop()


def check(cell: CellTime, m: int, job: Job) -> None:
    assert cell.m == m
    assert len(cell.step_us) == job.repeats
    assert all(10 < us < 1e6 for us in cell.step_us)
    assert sum(cell.shares.values()) == pytest.approx(1.0)
    for kind in ("gemm", "attention"):
        assert cell.shares[kind] > 0.01, cell.shares
    assert cell.clock_mhz is None or 100 < cell.clock_mhz < 4000
    assert cell.power_w is None or 20 < cell.power_w < 2000
    assert cell.joules_per_token is None or 0 <= cell.joules_per_token < 100
    assert math.isfinite(cell.largest)


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("variant", [STOCK, OURS], ids=str)
@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8], ids=str)
def test_prefill_runs_steps_of_m_tokens(
    dtype: DType, variant: Variant, mode: Mode, gpu: Device, job: Job
) -> None:
    job = replace(job, dtype=dtype, variant=variant, mode=mode)
    with built(gpu, job) as (worker, said):
        assert said["async scheduling"] == "on"
        assert (said["cudagraph mode"] == "none") is (mode is Mode.EAGER)
        assert ("slidesparse" in said) is (variant is OURS)
        assert "Kernel" in said["linears"]
        assert said["attention"]
        found = {m: worker.call("run", m, timeout=CELL_SECONDS) for m in job.ms}
    for m, cell in found.items():
        check(cell, m, job)
    assert found[64].largest == 64 * 2816


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("variant", [STOCK, OURS], ids=str)
def test_decode_times_steps_of_all_sequences(
    variant: Variant, mode: Mode, gpu: Device, job: Job
) -> None:
    job = replace(job, stage=Stage.DECODE, variant=variant, mode=mode, ms=(1, 16, 300))
    with built(gpu, job) as (worker, said):
        assert int(said["max sequences"]) >= 300
        for m in job.ms:
            check(worker.call("run", m, timeout=CELL_SECONDS), m, job)


@needs_vllm
@pytest.mark.slow
def test_a_cell_that_cannot_run_leaves_the_engine_sound(gpu: Device, job: Job) -> None:
    job = replace(job, stage=Stage.DECODE, outputs=8, ms=(4,))
    with built(gpu, job) as (worker, _):
        for _ in range(2):
            with pytest.raises(StepError, match="tokens per sequence instead of 8"):
                worker.call("run", 4, timeout=CELL_SECONDS)
        assert worker.alive


@needs_vllm
def test_sequences_that_are_too_long_are_refused_before_vllm_starts(gpu: Device, job: Job) -> None:
    begun = time.monotonic()
    worker = Worker(gpu, FACTORY, replace(job, prompt=10000, ms=(20000,)))
    try:
        with pytest.raises(UsageError, match="longer than the 8192"):
            worker.call("build", timeout=BUILD_SECONDS)
    finally:
        worker.stop()
    assert time.monotonic() - begun < 60


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("mode", list(Mode))
def test_what_the_profiler_leaves_behind_slows_no_later_cell(
    mode: Mode, gpu: Device, job: Job
) -> None:
    """One sequence of a small model: its steps are launches and little else."""
    job = replace(job, stage=Stage.DECODE, mode=mode, ms=(1,), outputs=400)
    with built(gpu, job) as (worker, _):
        found = [worker.call("run", 1, timeout=CELL_SECONDS).step_us for _ in range(4)]
    first, later = min(found[0]), [min(step_us) for step_us in found[1:]]
    assert max(later) < 1.08 * first, found


class Linear(torch.nn.Module):
    def __init__(self, n: int, k: int, dtype: torch.dtype) -> None:
        super().__init__()
        where = torch.device("cuda")
        self.weight = torch.nn.Parameter(
            torch.zeros(n, k, device=where, dtype=torch.uint8).view(dtype), requires_grad=False
        )
        self.weight_scale = torch.nn.Parameter(torch.zeros(n, 1, device=where), requires_grad=False)


def weights(made: torch.nn.ModuleDict) -> dict[str, torch.Tensor]:
    return {name: made.get_parameter(f"{name}.weight").data for name in made}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
@pytest.mark.parametrize("pattern", [DENSE, SIX], ids=str)
def test_weights_are_drawn_quickly_and_alike(
    pattern: Pattern, dtype: torch.dtype, gpu: Device
) -> None:
    """A layer of Qwen2.5-7B has 233 million weights in 28 such layers: some seconds for all."""
    shapes = {"gate_up": (37888, 3584), "down": (3584, 18944), "qkv": (4608, 3584)}
    first: dict[str, torch.Tensor] = {}
    seconds = []
    for _ in range(3):
        made = torch.nn.ModuleDict({name: Linear(n, k, dtype) for name, (n, k) in shapes.items()})
        torch.cuda.synchronize()
        begun = time.monotonic()
        RandomWeights(5, pattern).fill(made)
        torch.cuda.synchronize()
        seconds.append(time.monotonic() - begun)
        values = {name: tensor.data.view(torch.uint8) for name, tensor in weights(made).items()}
        first = first or values
        assert all(torch.equal(values[name], first[name]) for name in shapes)
    assert min(seconds) < 0.5
    for weight in weights(made).values():
        assert detect_pattern(weight) == pattern
        top = 448 if dtype is torch.float8_e4m3fn else 127
        assert bool((weight.float().abs().amax(dim=1) == top).all())
