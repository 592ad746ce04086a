"""Rates for the bound: those of the GPU table, and what a machine without NVML falls back to."""

from __future__ import annotations

import pytest

from slidesparse.bench.attention.rates import BOOST, TABLE, device_rates, table_rates
from slidesparse.devices import CPU, Fingerprint, detect
from slidesparse.gpus import find_gpu, gpu_keys
from slidesparse.problem import DType

H200 = Fingerprint("NVIDIA H200", 90, 132, 143156)


@pytest.mark.parametrize("key", gpu_keys())
def test_rates_are_near_the_published_peak(key: str) -> None:
    """Boost clocks of datasheets are rounded and some peaks are at other clocks: within 10 %."""
    spec = find_gpu(key)
    for dtype in (DType.BF16, DType.FP16):
        found = table_rates(spec, dtype)
        if found is None:
            assert str(dtype) not in spec.tflops
            continue
        assert 0.99 < found.tflops / spec.tflops[str(dtype)] < 1.10, (key, dtype)
        assert found.bandwidth_gbs == spec.bandwidth_gbs
        assert str(spec.sm_count) in str(found)


def test_what_tensor_cores_do_not_have_has_no_rate() -> None:
    assert table_rates(find_gpu("v100"), DType.BF16) is None
    assert table_rates(find_gpu("v100"), DType.FP16) is not None


def test_a_gpu_without_nvml_has_the_rates_of_the_table() -> None:
    """Asked of the CPU, NVML has nothing to say; the fingerprint still names the GPU."""
    found = device_rates(CPU, H200, DType.BF16)
    assert found is not None
    assert (found.clock_source, found.bandwidth_source) == (BOOST, TABLE)
    assert found.tflops == pytest.approx(132 * 1.98e9 * 4096 / 1e12)


def test_a_gpu_that_nobody_knows_has_none() -> None:
    assert device_rates(CPU, Fingerprint("NVIDIA H300", 90, 160, 0), DType.BF16) is None
    assert device_rates(CPU, Fingerprint("NVIDIA RTX A6000", 86, 84, 0), DType.BF16) is None


def test_a_cpu_has_none() -> None:
    assert device_rates(CPU, detect(CPU), DType.BF16) is None
