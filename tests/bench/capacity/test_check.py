"""`slidesparse plan --check` without vLLM: its arguments, its differences, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slidesparse.bench.capacity.check import (
    CapacityEngine,
    CheckJob,
    Reported,
    differences,
    engine_arguments,
    served_folder,
)
from slidesparse.bench.capacity.probe import EXTENSION
from slidesparse.bench.sweep.vllm_weights import LOAD_FORMAT
from slidesparse.capacity import KvDtype, Quant, Settings, make_plan
from slidesparse.devices import CPU
from slidesparse.errors import ModelError, UsageError
from slidesparse.gpus import find_gpu
from slidesparse.models import load_model
from slidesparse.pattern import Pattern

Make = Callable[..., CheckJob]


@pytest.fixture
def make_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("SLIDESPARSE_CACHE_DIR", str(tmp_path / "cache"))

    def make(model: str = "qwen2.5-7b", spec: str = "", **changes: Any) -> CheckJob:
        given = {"max_seqs": 256, "context": 4096, "batch": 256, **changes}
        settings = Settings(load_model(spec or model), find_gpu("h200"), **given)
        return CheckJob(model, settings, seed=3)

    return make


def test_vllm_is_asked_for_what_is_planned(make_job: Make) -> None:
    made = engine_arguments(
        make_job(quant=Quant.FP8, kv_dtype=KvDtype.FP8, memory_fraction=0.8, eager=True)
    )
    assert made["max_model_len"] == 4096
    assert made["max_num_seqs"] == 256
    assert made["max_num_batched_tokens"] == 8192
    assert made["gpu_memory_utilization"] == 0.8
    assert made["kv_cache_dtype"] == "fp8"
    assert made["enforce_eager"] is True
    assert made["worker_extension_cls"] == EXTENSION
    assert made["load_format"] == LOAD_FORMAT
    assert made["model_loader_extra_config"] == {"seed": 3, "pattern": "dense"}
    assert made["additional_config"] == {"slidesparse": {"off": True}}
    config = json.loads((Path(made["model"]) / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_weights_of_16_bits_are_not_quantised(make_job: Make) -> None:
    folder, random = served_folder(make_job())
    assert random
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["max_position_embeddings"] == 131072


def test_a_pattern_is_held_in_one_form(make_job: Make) -> None:
    made = engine_arguments(make_job(quant=Quant.INT8, pattern=Pattern.parse("6:8")))
    assert made["additional_config"] == {"slidesparse": {"memory_format": "smallest"}}
    assert made["model_loader_extra_config"]["pattern"] == "6:8"


def test_a_folder_without_weights_gets_random_ones(make_job: Make, tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128}
    config |= {"intermediate_size": 96, "num_attention_heads": 4}
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    made, random = served_folder(make_job(str(folder)))
    assert random
    assert json.loads((made / "config.json").read_text()) == config
    (folder / "model.safetensors").write_bytes(b"")
    assert served_folder(make_job(str(folder))) == (folder, False)


def test_weights_that_cannot_be_made(make_job: Make) -> None:
    with pytest.raises(UsageError) as caught:
        engine_arguments(make_job(quant=Quant.AWQ))
    assert str(caught.value) == (
        "--check makes weights of 16 or 8 bits, not awq; use --quant none, fp8 or int8, or a "
        "folder with the weights"
    )


def test_a_model_of_the_hub_is_refused(make_job: Make) -> None:
    with pytest.raises(ModelError) as caught:
        served_folder(make_job("someone/something", spec="qwen2.5-7b"))
    assert str(caught.value) == (
        "--check takes a preset or a folder with config.json, not 'someone/something'; download it"
    )


def test_it_needs_a_gpu(make_job: Make) -> None:
    with pytest.raises(UsageError, match="--check starts vLLM, which needs an NVIDIA GPU"):
        CapacityEngine(CPU, make_job()).build()


def test_differences_are_part_by_part(make_job: Make) -> None:
    plan = make_plan(make_job(quant=Quant.FP8).settings)
    reported = Reported(
        {"weights": 8 * 2**30, "activations": 2**30, "CUDA graphs": 0}, 2_000_000, 125_000, 16, {}
    )
    found = {each.name: each for each in differences(plan, reported)}
    assert list(found) == ["weights", "activations", "CUDA graphs", "KV-cache tokens"]
    assert found["weights"].planned == pytest.approx(8.14 * 2**30, rel=0.005)
    assert found["weights"].reported == 8 * 2**30
    assert found["CUDA graphs"].planned == 0  # Runner V2 takes none off.
    assert found["KV-cache tokens"].planned == plan.kv_tokens
