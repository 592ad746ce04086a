"""Rooflines by hand, and measured times where the bundled cache has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from slidesparse.cache import TuningCache
from slidesparse.candidate import Provenance
from slidesparse.capacity import KvDtype, Quant, Settings
from slidesparse.capacity.gemm_times import GemmTimes
from slidesparse.capacity.roofline import (
    LINK,
    MEMORY,
    TENSOR,
    UNKNOWN_RATE,
    decode,
    keys_seen,
    prefill,
)
from slidesparse.gpus import find_gpu
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, GemmProblem, Scales

Make = Callable[..., Settings]

SIX = Pattern.parse("6:8")


def by_name(step: object) -> dict[str, object]:
    return {layer.name: layer for layer in step.layers}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def h200(tmp_path_factory: pytest.TempPathFactory) -> GemmTimes:
    return GemmTimes.of_gpu(find_gpu("h200"), tmp_path_factory.mktemp("cache"))


def test_a_prefill_step_by_hand(make_settings: Make) -> None:
    step = prefill(make_settings("qwen3-14b", "h100-sxm", context=32768))
    assert (step.stage, step.tokens, step.bound) == ("prefill", 8192, TENSOR)
    layers = {layer.name: layer for layer in step.layers}
    gate_up = layers["gate_up"]
    flops = 2 * 8192 * 34816 * 5120
    assert gate_up.flops == flops
    assert gate_up.us == gate_up.tensor_us == pytest.approx(flops / 989.4e6)
    moved = 2 * (34816 * 5120 + 8192 * (34816 + 5120))
    assert gate_up.bytes == moved
    assert gate_up.memory_us == pytest.approx(moved / 3352e3)
    # The step is tokens 12,289 to 20,480: each sees itself and all before it; two products of 40
    # heads of 128. Read are 20,480 keys and values of 8 heads.
    seen = sum(range(12289, 20481))
    assert layers["attention"].flops == 4 * seen * 40 * 128
    assert layers["attention"].bytes == 20480 * 2 * 8 * 128 * 2 + 2 * 2 * 8192 * 40 * 128
    total = sum(layer.us * layer.count for layer in step.layers)
    assert step.us == pytest.approx(total)
    assert step.tokens_per_s == pytest.approx(8192 / total * 1e6)


def test_a_decode_step_reads_weights_and_cache(make_settings: Make) -> None:
    step = decode(make_settings("qwen3-14b", "h100-sxm", max_seqs=32, context=8192))
    assert (step.tokens, step.bound) == (32, MEMORY)
    layers = {layer.name: layer for layer in step.layers}
    cache = 32 * 8192 * 163_840 / 40
    assert layers["attention"].bytes == cache + 2 * 2 * 32 * 40 * 128
    assert {layer.bound for layer in step.layers} == {MEMORY}
    eight = decode(make_settings("qwen3-14b", max_seqs=32, context=8192, kv_dtype=KvDtype.FP8))
    assert eight.us < step.us


@pytest.mark.parametrize(("before", "new", "window"), [(0, 9, 9), (0, 9, 4), (3, 9, 5), (7, 2, 4)])
def test_keys_that_a_causal_window_sees(before: int, new: int, window: int) -> None:
    assert keys_seen(before, new, window) == sum(min(before + i, window) for i in range(1, new + 1))


def test_a_window_bounds_what_is_computed_and_read(make_settings: Make) -> None:
    settings = make_settings("llama3.1-8b", context=32768, batch=1)
    spec = replace(settings.spec, window=4096, window_layers=16)
    for step, read in ((prefill, 4096 + 8191), (decode, 4096)):
        found = step(replace(settings, spec=spec))
        layers = {layer.name: layer for layer in found.layers}
        full, part = layers["attention"], layers["attention, window"]
        assert (full.count, part.count) == (16, 16)
        assert part.flops == 4 * found.tokens * 4096 * 32 * 128
        assert part.bytes == read * 2 * 8 * 128 * 2 + 2 * 2 * found.tokens * 32 * 128
        assert part.flops < full.flops


def test_weights_of_four_bits_are_multiplied_in_16(make_settings: Make) -> None:
    plain, four = (
        prefill(make_settings("qwen3-14b", quant=quant)) for quant in (Quant.NONE, Quant.AWQ)
    )
    assert plain.layers[0].tensor_us == four.layers[0].tensor_us
    assert decode(make_settings("qwen3-14b", quant=Quant.AWQ, max_seqs=1)).us < 0.45 * (
        decode(make_settings("qwen3-14b", max_seqs=1)).us
    )


def test_fp8_on_a_gpu_without_it_runs_in_16_bits(make_settings: Make) -> None:
    plain, eight = (
        prefill(make_settings("qwen3-8b", "a100", quant=quant)) for quant in (Quant.NONE, Quant.FP8)
    )
    assert plain.layers[0].tensor_us == eight.layers[0].tensor_us


def test_a_pattern_is_bound_by_its_own_rate(make_settings: Make) -> None:
    dense, sparse = (
        prefill(make_settings("qwen2.5-7b", quant=Quant.FP8, pattern=pattern))
        for pattern in (DENSE, SIX)
    )
    assert dense.layers[0].tensor_us is not None
    assert sparse.layers[0].tensor_us == pytest.approx(dense.layers[0].tensor_us * 3 / 4)


def test_experts_read_the_weights_that_tokens_are_routed_to(make_settings: Make) -> None:
    one = decode(make_settings("qwen3-30b-a3b", max_seqs=1))
    layer = next(layer for layer in one.layers if layer.name == "expert_down")
    assert layer.count == 48
    assert layer.bytes == pytest.approx(8 * 2 * 2048 * 768, rel=0.01)
    prompt = prefill(make_settings("qwen3-30b-a3b", context=8192, batch=1))
    layers = {layer.name: layer for layer in prompt.layers}
    # 8,192 tokens use all 128 experts: eight results of each, from one row of 2,048 and from eight.
    up, down = layers["expert_gate_up"].bytes, layers["expert_down"].bytes
    assert up == pytest.approx(2 * (128 * 1536 * 2048 + 8192 * 2048 + 8 * 8192 * 1536))
    assert down == pytest.approx(2 * (128 * 2048 * 768 + 8 * 8192 * 768 + 8 * 8192 * 2048))
    many = decode(make_settings("qwen3-30b-a3b", max_seqs=2048))
    layer = next(layer for layer in many.layers if layer.name == "expert_down")
    weights = 128 * 2 * 2048 * 768
    assert weights < layer.bytes < 1.5 * weights


def test_ranks_exchange_over_nvlink(make_settings: Make) -> None:
    step = prefill(make_settings("qwen3-14b", "h100-sxm", tp=2))
    layer = step.layers[-1]
    assert (layer.name, layer.bound, layer.count) == ("all-reduce", LINK, 80)
    assert layer.us == pytest.approx(2 * 4096 * 5120 / 450e3)
    assert "all-reduce" not in {one.name for one in prefill(make_settings(tp=1)).layers}
    # No NVLink: what PCIe reaches is not in the table.
    assert prefill(make_settings("qwen3-14b", "l40s", tp=2)).layers[-1].name == "output head"


def test_a_gpu_without_published_rates_says_so(make_settings: Make) -> None:
    step = prefill(make_settings("llama3.2-1b", "gb10"))
    layer = step.layers[0]
    assert (layer.tensor_us, layer.bound) == (None, UNKNOWN_RATE)
    assert layer.us == layer.memory_us


def test_the_state_of_a_delta_rule_is_read_and_written(make_settings: Make) -> None:
    step = decode(make_settings("qwen3-next-80b-a3b", "h200", max_seqs=64))
    layer = next(layer for layer in step.layers if layer.name == "delta rule")
    assert layer.count == 36
    assert layer.bytes > 2 * 64 * 1_097_728


def test_measured_times_stand_where_the_cache_has_them(
    make_settings: Make, h200: GemmTimes, tmp_path: Path
) -> None:
    settings = make_settings("qwen2.5-7b", "h200", quant=Quant.FP8, context=4096)
    step = prefill(settings, h200)
    layers = {layer.name: layer for layer in step.layers}
    cache = TuningCache(tmp_path, h200.machines[0])
    rowwise = GemmProblem(4096, 37888, 3584, DType.FP8, DType.BF16, Scales.ROWCOL)
    hit = cache.get(rowwise)
    assert hit is not None
    assert hit.result.best is not None
    assert layers["gate_up"].us == hit.result.best.median_us
    assert layers["gate_up"].provenance is Provenance.MEASURED
    assert layers["gate_up"].how.endswith("on NVIDIA H200")
    assert layers["gate_up"].tensor_us is not None
    assert layers["gate_up"].us > layers["gate_up"].tensor_us
    assert layers["attention"].provenance is Provenance.DERIVED
    # The norms are estimated, so the sum is.
    assert step.provenance is Provenance.ESTIMATED


def test_another_m_of_a_bucket_is_scaled_and_says_so(h200: GemmTimes) -> None:
    whole = h200.find(4096, 37888, 3584, DType.FP8, SIX)
    part = h200.find(3072, 37888, 3584, DType.FP8, SIX)
    assert whole is not None
    assert part is not None
    assert whole.provenance is Provenance.MEASURED
    assert part.provenance is Provenance.DERIVED
    assert part.us == pytest.approx(whole.us * 3 / 4)
    assert part.how.endswith("measured at M=4096")
    assert h200.find(4096, 37888, 1234, DType.FP8, SIX) is None


def test_other_gpus_and_other_dtypes_are_not_measured(
    make_settings: Make, h200: GemmTimes, tmp_path: Path
) -> None:
    assert GemmTimes.of_gpu(find_gpu("h100-sxm"), tmp_path).machines == ()
    assert [machine.name for machine in h200.machines] == ["NVIDIA H200"]
    # A machine tells its own memory: it is the same GPU.
    told = replace(find_gpu("h200"), memory_gib=139.0)
    assert GemmTimes.of_gpu(told, tmp_path).machines == h200.machines
    step = prefill(make_settings("qwen2.5-7b", "h200"), h200)
    assert Provenance.MEASURED not in {layer.provenance for layer in step.layers}


def test_damaged_caches_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "fingerprint.json").write_text("{", encoding="utf-8")
    found = GemmTimes.of_gpu(find_gpu("h200"), tmp_path)
    assert [machine.name for machine in found.machines] == ["NVIDIA H200"]
