"""Hardware counters on a GPU: a busy GPU reads busy, an idle one idle, and a CPU thread may ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import pytest
import torch

from slidesparse.counters import METRICS, GpmSampler
from slidesparse.devices import Device
from slidesparse.monitor import GpuMonitor

BUSY_SECONDS = 0.6


@pytest.fixture
def sampler(gpu: Device) -> GpmSampler:
    """A sampler that has counters, not yet entered."""
    with GpmSampler(gpu) as found:
        if not found.available:
            pytest.skip(f"no hardware counters: {found.why}")
    return GpmSampler(gpu)


def run(launch: Callable[[], object], seconds: float = BUSY_SECONDS) -> None:
    """Keep the GPU busy for so long, and wait for it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(8):
            launch()
        torch.cuda.synchronize()


def read_while(sampler: GpmSampler, launch: Callable[[], object]) -> Mapping[str, float]:
    """Counters over a stretch in which the GPU did nothing else, settled before."""
    run(launch, 0.2)
    sampler.read()
    run(launch)
    found = sampler.read()
    assert found is not None
    return found


def matmul(dtype: torch.dtype) -> Callable[[], object]:
    a = torch.randn(8192, 8192, device="cuda").to(dtype)
    b = torch.randn(8192, 8192, device="cuda").to(dtype)
    return lambda: a @ b


def test_every_counter_is_a_percentage(sampler: GpmSampler) -> None:
    with sampler:
        found = read_while(sampler, matmul(torch.bfloat16))
    assert set(found) == set(METRICS)
    for name, value in found.items():
        assert 0 <= value <= 101, f"{name} is {value}"


def test_a_matmul_keeps_sms_and_tensor_cores_busy(sampler: GpmSampler) -> None:
    with sampler:
        found = read_while(sampler, matmul(torch.bfloat16))
    assert found["sm_active"] > 70, found
    assert found["tensor_active"] > 50, found
    assert found["hmma_active"] > 50, found
    assert found["imma_active"] < 5, found


def test_the_integer_counter_sees_int8_and_not_fp8(sampler: GpmSampler) -> None:
    a = torch.randint(-128, 127, (4096, 8192), device="cuda", dtype=torch.int8)
    b = torch.randint(-128, 127, (8192, 8192), device="cuda", dtype=torch.int8)
    x = torch.randn(4096, 8192, device="cuda").to(torch.float8_e4m3fn)
    w = torch.randn(8192, 8192, device="cuda").to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")
    with sampler:
        integer = read_while(sampler, lambda: torch._int_mm(a, b.t()))
        floating = read_while(
            sampler, lambda: torch._scaled_mm(x, w.t(), one, one, out_dtype=torch.bfloat16)
        )
    assert integer["imma_active"] > 10, integer
    assert floating["imma_active"] < 5, floating
    assert floating["tensor_active"] > 30, floating


def test_a_copy_keeps_the_memory_busy_and_no_tensor_core(sampler: GpmSampler) -> None:
    source = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    with sampler:
        found = read_while(sampler, lambda: target.copy_(source))
    assert found["dram_active"] > 50, found
    assert found["tensor_active"] < 5, found


def test_an_idle_gpu_reads_idle(sampler: GpmSampler) -> None:
    with sampler:
        run(matmul(torch.bfloat16), 0.2)
        time.sleep(0.1)
        sampler.read()
        time.sleep(BUSY_SECONDS)
        found = sampler.read()
    assert found is not None
    # Nobody else should work here; a display or a neighbour would show.
    assert found["sm_active"] < 10, found
    assert found["dram_active"] < 10, found


def test_a_reading_covers_the_time_since_the_one_before(sampler: GpmSampler) -> None:
    """Half busy, half idle: about half of what the busy half reads."""
    work = matmul(torch.bfloat16)
    with sampler:
        busy = read_while(sampler, work)
        sampler.read()
        run(work, 0.5)
        time.sleep(0.5)
        half = sampler.read()
    assert half is not None
    assert half["sm_active"] == pytest.approx(busy["sm_active"] / 2, rel=0.25)


def test_it_may_be_read_from_a_thread_while_kernels_are_launched(sampler: GpmSampler) -> None:
    readings: list[Mapping[str, float] | None] = []
    done = threading.Event()

    def follow() -> None:
        while not done.wait(0.05):
            readings.append(sampler.read())

    with sampler:
        thread = threading.Thread(target=follow)
        thread.start()
        run(matmul(torch.bfloat16), 1.0)
        done.set()
        thread.join()
    told = [reading for reading in readings[2:] if reading is not None]
    assert len(told) >= 5
    assert max(reading["tensor_active"] for reading in told) > 50


def test_nothing_is_read_outside_the_with_block(sampler: GpmSampler) -> None:
    assert sampler.read() is None
    with sampler:
        time.sleep(0.05)
        assert sampler.read() is not None
    assert sampler.read() is None
    assert not sampler.available


def test_telemetry_is_what_a_working_gpu_has(gpu: Device) -> None:
    with GpuMonitor(gpu) as monitor:
        if not monitor.available:
            pytest.skip("NVML is not there")
        run(matmul(torch.bfloat16), 1.5)
        found, limit = monitor.telemetry(), monitor.power_limit()
    assert found.power_w is not None
    assert 30 < found.power_w < 2000
    assert limit is None or found.power_w < 1.2 * limit
    assert found.temperature_c is None or 15 < found.temperature_c < 110
    assert found.sm_mhz is not None
    assert 100 < found.sm_mhz < 4000
    assert found.memory_mhz is None or found.memory_mhz > 100
