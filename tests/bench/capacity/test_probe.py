"""What is read of a vLLM worker: names that vLLM really has, and the arithmetic on them."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from slidesparse.bench.capacity.check import CheckJob, engine_arguments
from slidesparse.bench.capacity.probe import EXTENSION, MemoryProbe, memory_of
from slidesparse.capacity import Settings
from slidesparse.gpus import find_gpu
from slidesparse.models import load_model

GIB = 2**30


def test_every_figure_of_a_worker_that_has_started() -> None:
    worker = SimpleNamespace(
        init_snapshot=SimpleNamespace(total_memory=140 * GIB, free_memory=139 * GIB),
        requested_memory=126 * GIB,
        model_runner=SimpleNamespace(model_memory_usage=8.0 * GIB),
        peak_activation_memory=2 * GIB,
        non_torch_memory=GIB // 4,
        cudagraph_memory_estimate=0,
        available_kv_cache_memory_bytes=115 * GIB,
    )
    assert memory_of(worker, free=15 * GIB) == {
        "total": 140 * GIB,
        "budget": 126 * GIB,
        "weights": 8 * GIB,
        "activations": 2 * GIB,
        "outside torch": GIB // 4,
        "CUDA graphs": 0,
        "available": 115 * GIB,
        "context": GIB,
        # 124 GiB are taken since; weights, libraries and the cache are 123.25 of them.
        "captured": 3 * GIB // 4,
    }


def test_what_a_worker_lacks_is_left_out() -> None:
    assert memory_of(SimpleNamespace(), free=5) == {}


def test_vllm_knows_the_extension_by_its_name() -> None:
    module, _, name = EXTENSION.rpartition(".")
    assert (module, name) == (MemoryProbe.__module__, MemoryProbe.__name__)


@pytest.fixture(scope="module")
def vllm_folder() -> Path:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed: its names were not compared")
    return Path(found.origin).parent


def test_vllms_worker_has_these_names(vllm_folder: Path) -> None:
    source = (vllm_folder / "v1" / "worker" / "gpu_worker.py").read_text(encoding="utf-8")
    for name in (
        "init_snapshot",
        "requested_memory",
        "peak_activation_memory",
        "non_torch_memory",
        "cudagraph_memory_estimate",
        "available_kv_cache_memory_bytes",
    ):
        assert f"self.{name} = " in source, name
    for runner in ("gpu_model_runner.py", "gpu/model_runner.py"):
        text = (vllm_folder / "v1" / "worker" / runner).read_text(encoding="utf-8")
        assert "self.model_memory_usage = " in text
    core = (vllm_folder / "v1" / "engine" / "core.py").read_text(encoding="utf-8")
    assert "cache_config.kv_cache_size_tokens = num_tokens" in core


def test_vllm_takes_the_arguments(
    vllm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.setenv("SLIDESPARSE_CACHE_DIR", str(tmp_path))
    settings = Settings(load_model("qwen2.5-7b"), find_gpu("h200"), 256, 4096, 256)
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    assert set(engine_arguments(CheckJob("qwen2.5-7b", settings))) <= known
