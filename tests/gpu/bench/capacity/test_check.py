"""Plans against what vLLM reports on this GPU: the tokens of the KV cache within 3 %."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest

from slidesparse.bench.capacity.check import (
    BUILD_TIMEOUT,
    TOLERANCE,
    CheckJob,
    Reported,
    differences,
)
from slidesparse.capacity import Quant, Settings, make_plan
from slidesparse.capacity.settings import default_batched_tokens
from slidesparse.devices import Device, detect
from slidesparse.gpus import GpuSpec, gpu_of
from slidesparse.models import load_model
from slidesparse.worker import Worker

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not installed: no plan was checked; pip install 'slidesparse[vllm]'",
)

FACTORY = "slidesparse.bench.capacity.check:CapacityEngine"


@pytest.fixture
def spec(gpu: Device) -> GpuSpec:
    here = detect(gpu)
    found = gpu_of(here)
    if found is None:
        pytest.skip(f"{here} is not in the GPU table: no plan was checked")
    return replace(found, memory_gib=here.memory_mib / 1024)


def start(gpu: Device, job: CheckJob) -> Reported:
    """vLLM in a process of its own, which gives the GPU's memory back when it ends."""
    worker = Worker(gpu, FACTORY, job, children=True)
    try:
        found = worker.call("build", timeout=BUILD_TIMEOUT)
        assert isinstance(found, Reported)
        return found
    finally:
        worker.stop()


@needs_vllm
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("model", "quant", "max_seqs", "eager"),
    [
        ("qwen2.5-7b", Quant.FP8, 256, False),  # Model runner V2, with CUDA graphs.
        ("llama3.1-8b", Quant.NONE, 1024, True),  # The sampler's logits are the peak.
        ("qwen3-30b-a3b", Quant.FP8, 256, False),  # Experts: model runner V1.
    ],
)
def test_tokens_of_the_kv_cache_are_within_three_percent(
    model: str, quant: Quant, max_seqs: int, eager: bool, gpu: Device, spec: GpuSpec
) -> None:
    settings = Settings(
        spec=load_model(model),
        gpu=spec,
        max_seqs=max_seqs,
        context=4096,
        batch=max_seqs,
        quant=quant,
        batched_tokens=default_batched_tokens(spec),
        eager=eager,
    )
    plan = make_plan(settings)
    if plan.sequences < 32:
        pytest.skip(f"{spec.name} is too small for {model}")
    found = start(gpu, CheckJob(model, settings, seed=5))
    compared = {each.name: each for each in differences(plan, found)}
    off = {name: it.planned / it.reported - 1 for name, it in compared.items() if it.reported}
    table = "\n".join(
        f"{it.name}: planned {it.planned:,}, vLLM {it.reported:,}" for it in compared.values()
    )
    print(table)
    assert found.block_tokens == plan.layout.block_tokens
    assert abs(off["total"]) < 0.001, table
    assert abs(off["budget"]) < 0.001, table
    assert abs(off["weights"]) < 0.02, table
    # The peak while the model is compiled; a start that finds it compiled has a lower one.
    assert off["activations"] > -0.01, table
    assert abs(off["KV-cache tokens"]) <= TOLERANCE, table


@pytest.mark.parametrize("quant", ["fp8", "none"])
def test_this_machines_gpu_is_planned_for(quant: str, spec: GpuSpec) -> None:
    from click.testing import CliRunner

    from slidesparse.cli.main import cli

    arguments = ["plan", "--model", "llama3.2-1b", "--max-seqs", "4", "--context", "2048"]
    done = CliRunner().invoke(cli, [*arguments, "--gpu", "auto", "--quant", quant])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("fits: ")
    assert f" on {spec.key}: 4 sequences" in done.output
