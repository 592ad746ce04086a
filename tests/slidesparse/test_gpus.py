from __future__ import annotations

import json
from dataclasses import fields
from importlib import resources
from itertools import chain

import pytest

from slidesparse.devices import Fingerprint
from slidesparse.errors import UsageError
from slidesparse.gpus import GpuSpec, find_gpu, flops_per_clock, gpu_keys, gpu_of

ALL = [find_gpu(key) for key in gpu_keys()]
FIGURES = {field.name for field in fields(GpuSpec)} - {
    "key",
    "aliases",
    "name",
    "driver_names",
    "architecture",
    "tflops",
    "sources",
}


def test_the_table_has_the_gpus_that_it_promises() -> None:
    assert gpu_keys() == (
        "v100-sxm2-16gb",
        "v100-sxm2-32gb",
        "a100-40gb-pcie",
        "a100-40gb-sxm",
        "a100-80gb-pcie",
        "a100-80gb-sxm",
        "l4",
        "l40s",
        "rtx-4090",
        "rtx-5080",
        "h100-pcie",
        "h100-sxm",
        "h200",
        "b200",
        "gb10",
    )


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.key)
def test_every_figure_has_its_source(spec: GpuSpec) -> None:
    assert set(spec.sources) == FIGURES | {f"tflops.{dtype}" for dtype in spec.tflops}
    assert min(len(text) for text in spec.sources.values()) > 20


def test_the_file_holds_the_fields_of_a_spec_and_nothing_else() -> None:
    text = (resources.files("slidesparse") / "data" / "gpus.json").read_text(encoding="utf-8")
    names = {field.name for field in fields(GpuSpec)}
    assert all(set(entry) == names for entry in json.loads(text)["gpus"])


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.key)
def test_figures_are_plausible(spec: GpuSpec) -> None:
    # "80 GB" is some GiB in truth, of which the driver keeps a part for itself.
    sold = int(spec.name.split()[-2])
    assert 0.9 * sold < spec.memory_gib < sold
    assert spec.memory_bytes == int(spec.memory_gib * 2**30)
    assert 1000 < spec.boost_mhz < 3000
    assert spec.sparse == (spec.sm >= 80)
    assert set(spec.tflops) <= {"fp16", "bf16", "fp8", "int8", "fp32"}


def test_no_rate_is_one_with_sparsity_and_each_follows_from_sms_and_clock() -> None:
    """Rates are stated for a clock of their own, at most the highest and not far below."""
    checked = 0
    for spec in ALL:
        for dtype, tflops in spec.tflops.items():
            per_clock = spec.flops_per_clock(dtype)
            if dtype == "fp32":  # Two FLOP a clock and core: 64 cores on 7.0 and 8.0, else 128.
                per_clock = 128 if spec.sm in (70, 80) else 256
            assert per_clock is not None
            bound = per_clock * spec.sm_count * spec.boost_mhz * 1e6 / 1e12
            assert 0.9 < tflops / bound < 1.05, (spec.key, dtype, tflops, bound)
            checked += 1
            assert "halved" not in spec.sources[f"tflops.{dtype}"] or dtype != "fp32"
    assert checked > 50


def test_old_architectures_lack_what_they_lack() -> None:
    assert set(find_gpu("v100").tflops) == {"fp16", "fp32"}
    assert not find_gpu("v100").sparse
    assert "fp8" not in find_gpu("a100").tflops
    # Nobody publishes a dense rate for it.
    assert set(find_gpu("gb10").tflops) == {"fp32"}


def test_flops_per_clock_of_an_sm() -> None:
    assert flops_per_clock(90, "bf16") == 4096
    assert flops_per_clock(90, "fp8") == 8192
    assert flops_per_clock(80, "fp8") is None
    assert flops_per_clock(121, "bf16") is None
    assert flops_per_clock(61, "fp16") is None


def test_geforce_runs_fp32_accumulation_at_half_rate_and_int8_at_the_full_one() -> None:
    assert find_gpu("rtx-4090").flops_per_clock("bf16") == 512
    assert find_gpu("rtx-4090").flops_per_clock("fp8") == 1024
    assert find_gpu("rtx-4090").flops_per_clock("int8") == 2048
    assert find_gpu("l40s").flops_per_clock("bf16") == 1024


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("h100-80gb", "h100-sxm"),
        ("H100_SXM", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("h100 pcie 80 gb", "h100-pcie"),
        ("4090", "rtx-4090"),
        (" h200 ", "h200"),
        ("Tesla V100-SXM2-16GB", "v100-sxm2-16gb"),
        ("dgx-spark", "gb10"),
    ],
)
def test_a_gpu_is_found_by_any_of_its_names(text: str, key: str) -> None:
    assert find_gpu(text).key == key


def test_no_two_gpus_share_a_name() -> None:
    named = [{spec.key, *spec.aliases, spec.name, *spec.driver_names} for spec in ALL]
    assert sum(map(len, named)) == len(set(chain.from_iterable(named)))


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("h100", "nearest: h100-pcie, h100-sxm; "),
        ("rtx-4080", "nearest: rtx-5080, rtx-4090; "),
        ("h300", "nearest: h200"),
        ("tpu", "tpu'; known: v100-sxm2-16gb, v100-sxm2-32gb, a100-40gb-pcie"),
        ("", "unknown GPU ''; known: "),
    ],
)
def test_an_unknown_gpu_gets_the_nearest_names(text: str, nearest: str) -> None:
    with pytest.raises(UsageError, match="unknown GPU") as caught:
        find_gpu(text)
    assert nearest in str(caught.value)
    assert str(caught.value).endswith("h200, b200, gb10")


def test_a_machine_is_found_by_name_capability_and_sms() -> None:
    found = gpu_of(Fingerprint("NVIDIA H200", 90, 132, 143155))
    assert found is not None
    assert found.key == "h200"
    assert found.memory_bytes == pytest.approx(143155 * 2**20, rel=1e-3)
    # A slice of it, another card of a near name, and no GPU at all.
    assert gpu_of(Fingerprint("NVIDIA H200", 90, 60, 71000)) is None
    assert gpu_of(Fingerprint("NVIDIA H200 NVL", 90, 132, 143155)) is None
    assert gpu_of(Fingerprint("AMD EPYC", 0, 16, 0)) is None
