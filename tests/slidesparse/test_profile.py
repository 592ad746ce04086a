"""Profiles: what suits each GPU of the table, with reasons that hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import pytest

from slidesparse.candidate import Provenance
from slidesparse.gpus import GpuSpec, find_gpu, gpu_keys
from slidesparse.models import load_model
from slidesparse.problem import DType
from slidesparse.profile import Profile, Setting, choose_dtype, make_profile

NAMES = ("dtype", "sparse", "memory fraction", "batch", "attention")


Make = Callable[..., Profile]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Make a profile from what is bundled alone, each once: that file takes a while to read."""
    empty = tmp_path_factory.mktemp("caches")

    @lru_cache
    def profile(key: str, model: str = "qwen2.5-7b", context: int = 4096) -> Profile:
        return make_profile(find_gpu(key), load_model(model), context, empty)

    return profile


def settings(profile: Profile) -> dict[str, Setting]:
    return {setting.name: setting for setting in profile.settings}


@pytest.mark.parametrize("key", gpu_keys())
def test_every_gpu_has_all_settings_with_reasons(key: str, make: Make) -> None:
    profile = make(key)
    assert tuple(setting.name for setting in profile.settings) == NAMES
    for setting in profile.settings:
        assert setting.value
        assert len(setting.reason) > 10
    fraction = float(settings(profile)["memory fraction"].value)
    assert 0.5 < fraction <= 0.95


@pytest.mark.parametrize("key", ["v100-sxm2-16gb", "v100-sxm2-32gb"])
def test_a_v100_has_no_fp8_no_sparse_tensor_cores_and_runs_fp16(key: str, make: Make) -> None:
    found = settings(make(key))
    assert found["dtype"].value == "fp16"
    assert "no FP8 and no INT8 tensor cores" in found["dtype"].reason
    assert found["sparse"].value == "no"
    assert "no sparse tensor cores" in found["sparse"].reason
    assert found["attention"].value == "Triton"
    assert {found[name].evidence for name in ("dtype", "sparse", "attention")} == {"derived"}


@pytest.mark.parametrize(
    ("key", "dtype", "attention"),
    [
        ("a100", DType.INT8, "FlashAttention 2"),
        ("l4", DType.FP8, "FlashAttention 2"),
        ("l40s", DType.FP8, "FlashAttention 2"),
        ("rtx-4090", DType.INT8, "FlashAttention 2"),
        ("rtx-5080", DType.FP8, "FlashAttention 2"),
        ("h100-sxm", DType.FP8, "FlashAttention 3"),
        ("h200", DType.FP8, "FlashAttention 3"),
        ("b200", DType.FP8, "FlashInfer"),
        ("gb10", DType.FP8, "FlashAttention 2"),
    ],
)
def test_dtype_and_attention_by_generation(
    key: str, dtype: DType, attention: str, make: Make
) -> None:
    assert choose_dtype(find_gpu(key)) is dtype
    assert settings(make(key))["attention"].value == attention


@pytest.mark.parametrize("key", gpu_keys())
def test_the_dtype_is_the_fastest_that_vllm_serves(key: str) -> None:
    gpu = find_gpu(key)
    if gpu.sm < 100 and "int8" in gpu.tflops:
        name = "fp8" if choose_dtype(gpu) is DType.FP8 else "int8"
        assert gpu.tflops[name] == max(gpu.tflops.get(it, 0.0) for it in ("fp8", "int8"))


def test_the_h200_knows_from_bundled_results(make: Make) -> None:
    found = settings(make("h200"))["sparse"]
    assert found.value == "2:4 sparse, 4:6 sparse in part, 6:8 sparse in part, 8:10 sparse in part"
    assert found.evidence == "measured, bundled"
    assert "2:4 1.38 and 1.47" in found.reason


def test_nothing_is_made_up_where_nothing_was_measured(make: Make) -> None:
    found = settings(make("h100-pcie"))["sparse"]
    assert (found.value, found.provenance) == ("dense until searched", None)
    assert found.evidence == "not measured"
    assert "slidesparse search" in found.reason


def ridge(gpu: GpuSpec, dtype: str, width: int) -> float:
    return gpu.tflops[dtype] * 1e12 * width / (2 * gpu.bandwidth_gbs * 1e9)


def test_the_batch_keeps_tensor_cores_busy_where_memory_allows(make: Make) -> None:
    gpu = find_gpu("h200")
    batch = settings(make(gpu.key))["batch"]
    assert int(batch.value) == math.ceil(ridge(gpu, "fp8", 1) / 16) * 16
    small = find_gpu("l4")
    fitting = settings(make(small.key))["batch"]
    assert int(fitting.value) < ridge(small, "fp8", 1)
    assert fitting.reason.startswith(f"{fitting.value} sequences of 4,096 tokens fit")


def test_a_longer_context_leaves_room_for_fewer(make: Make) -> None:
    short, long = (
        int(settings(make("l4", context=context))["batch"].value) for context in (2048, 8192)
    )
    assert short > 3 * long > 0


def test_what_does_not_fit_is_told_with_what_lacks(make: Make) -> None:
    batch = settings(make("rtx-5080", "qwen3-30b-a3b"))
    assert batch["batch"].value == "does not fit"
    assert batch["batch"].reason.endswith("; slidesparse plan says what would")
    assert "qwen3-30b-a3b lacks" in batch["batch"].reason
    assert "GiB for one sequence of 4,096 tokens" in batch["batch"].reason


def test_the_fraction_leaves_what_vllm_does_not_count(make: Make) -> None:
    small = find_gpu("rtx-5080")
    found = settings(make(small.key))["memory fraction"]
    assert found.provenance is Provenance.ESTIMATED
    assert (1 - float(found.value)) * small.memory_gib > 0.87
    shared = settings(make("gb10"))["memory fraction"]
    assert shared.value == "0.80"
    assert "share the memory" in shared.reason
