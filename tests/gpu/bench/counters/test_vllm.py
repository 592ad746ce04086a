"""A load on vLLM on a GPU: small dense and MoE models, eager and with graphs."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from vllm_scripts import write_config

from slidesparse.bench.counters.headroom import headroom
from slidesparse.bench.counters.job import Load, LoadFound, LoadJob
from slidesparse.bench.counters.record import LoadFigures
from slidesparse.bench.counters.sampler import LoadSampler, Source
from slidesparse.bench.counters.samples import EngineLoad
from slidesparse.bench.sweep.job import Mode
from slidesparse.counters import GpmSampler
from slidesparse.devices import Device
from slidesparse.problem import DType
from slidesparse.worker import Worker

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not installed: no load ran; pip install 'slidesparse[vllm]'",
)

BUILD_SECONDS, CELL_SECONDS = 600.0, 180.0
FACTORY = "slidesparse.bench.counters.vllm:LoadEngine"
DENSE = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8}
EXPERTS = {
    **DENSE,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 64,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 256,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Of a small dense model, eager, one and many requests."""
    monkeypatch.setenv("SLIDESPARSE_CACHE_DIR", str(tmp_path / "cache"))
    folder = write_config(tmp_path / "tiny", num_hidden_layers=4, **DENSE)
    return Load(
        models=(str(folder),),
        dtypes=(DType.FP8,),
        concurrencies=(1, 300),
        modes=(Mode.EAGER,),
        tp=1,
        prompt=30,
        outputs=64,
        seconds=3.0,
        settle=1.0,
        sample_ms=50,
        source=Source.AUTO,
        seed=11,
    )


@contextmanager
def built(gpu: Device, load: Load) -> Iterator[tuple[Worker, dict[str, str], LoadJob]]:
    """The engine in a process of its own, which gives the GPU's memory back when it ends."""
    job = load.turns()[0].job
    assert isinstance(job, LoadJob)
    worker = Worker(gpu, FACTORY, job, children=True)
    try:
        yield worker, worker.call("build", timeout=BUILD_SECONDS), job
    finally:
        worker.stop()


def measured(worker: Worker, m: int) -> tuple[LoadFound, LoadFigures]:
    found = worker.call("run", m, timeout=CELL_SECONDS)
    assert isinstance(found, LoadFound)
    return found, LoadFigures.of(found)


def check(figures: LoadFigures, concurrency: int, gpu: Device) -> None:
    assert figures.seconds == pytest.approx(3.0, rel=0.3)
    assert 10 < figures.tokens_per_s < 1e6
    running = figures.mean("running")
    assert running is not None
    assert 0.85 * concurrency <= running <= concurrency
    assert figures.preemptions == 0
    assert figures.cut.lead_s >= 1.0
    assert figures.cut.dropped == concurrency
    kv = figures.mean("kv_percent")
    assert kv is not None
    assert 0 <= kv < 50
    assert figures.samples >= 20
    power = figures.mean("power_w")
    assert power is None or 30 < power < 2000
    assert figures.joules_per_token is None or 0 < figures.joules_per_token < 100
    with GpmSampler(gpu) as counters:
        there = counters.available
    if there:
        assert figures.source is Source.GPM
        assert (figures.mean("sm_active") or 0) > 1
        # FP8 and BF16 are no integers.
        assert (figures.mean("imma_active") or 0) < 5
        left = headroom(figures)
        assert left.sm_percent is not None
        assert 0 <= left.sm_percent < 99


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("mode", list(Mode))
def test_a_dense_model_under_load(mode: Mode, gpu: Device, load: Load) -> None:
    load = replace(load, modes=(mode,))
    with built(gpu, load) as (worker, said, job):
        assert (said["cudagraph mode"] == "none") is (mode is Mode.EAGER)
        assert int(said["max sequences"]) >= 300
        if mode is Mode.GRAPHS:
            captured = [int(size) for size in said["graphs of"].split(", ")]
            # Steps of 300 sequences, and of 300 with a prompt in the place of a token.
            assert {1, 300} <= set(captured)
            assert max(captured) >= 300 + 29
        else:
            assert said["graphs of"] == "nothing"
        for m in job.ms:
            found, figures = measured(worker, m)
            check(figures, m, gpu)
            assert found.cost is not None


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [(Mode.EAGER, DType.FP8), (Mode.GRAPHS, DType.FP8), (Mode.EAGER, DType.INT8)],
    ids=str,
)
def test_a_model_with_experts_under_load(
    mode: Mode, dtype: DType, gpu: Device, load: Load, tmp_path: Path
) -> None:
    folder = write_config(tmp_path / "experts", num_hidden_layers=2, **EXPERTS)
    load = replace(load, models=(str(folder),), modes=(mode,), dtypes=(dtype,))
    with built(gpu, load) as (worker, said, _):
        assert "W8A8" in said["experts"]
        assert said["experts"].endswith("x2")
        for m in load.concurrencies:
            _, figures = measured(worker, m)
            if dtype is DType.FP8:
                check(figures, m, gpu)
            assert figures.tokens_per_s > 10


@needs_vllm
@pytest.mark.slow
def test_graphs_are_faster_for_one_sequence_of_a_small_model(gpu: Device, load: Load) -> None:
    rates = {}
    for mode in Mode:
        once = replace(load, modes=(mode,), concurrencies=(1,))
        with built(gpu, once) as (worker, _, _):
            rates[mode] = measured(worker, 1)[1].tokens_per_s
    assert rates[Mode.GRAPHS] > 1.3 * rates[Mode.EAGER], rates


@needs_vllm
@pytest.mark.slow
def test_sampling_costs_little(gpu: Device, load: Load) -> None:
    """One percent is the aim on a large model; steps of this one are short, so more may show."""
    slower = replace(load, concurrencies=(300,), seconds=6.0, sample_ms=100, modes=(Mode.GRAPHS,))
    with built(gpu, slower) as (worker, _, _):
        _, figures = measured(worker, 300)
    assert figures.cost is not None
    assert figures.cost.percent - 2 * figures.cost.error < 3.0, figures.cost


@needs_vllm
@pytest.mark.slow
def test_two_cells_one_after_the_other_do_not_disturb_each_other(gpu: Device, load: Load) -> None:
    small = replace(load, concurrencies=(64, 300))
    with built(gpu, small) as (worker, _, _):
        first = measured(worker, 64)[1]
        measured(worker, 300)
        again = measured(worker, 64)[1]
    assert again.tokens_per_s == pytest.approx(first.tokens_per_s, rel=0.1)


def test_the_sampler_reads_this_gpu(gpu: Device) -> None:
    with LoadSampler([gpu], lambda: EngineLoad(1, 0, 0.5), 0.05) as sampler:
        sampler.resume()
        time.sleep(0.5)
        sampler.pause()
        assert sampler.why == "" or sampler.source is Source.NONE
    assert len(sampler.samples) >= 5
    last = sampler.samples[-1]
    if sampler.source is Source.GPM:
        assert set(last.counters) >= {"sm_active", "tensor_active", "dram_active"}
    if importlib.util.find_spec("pynvml") is not None:
        assert last.telemetry.power_w is not None
