"""Hardware counters without a GPU: why there are none, and that NVML's names are as we use them."""

from __future__ import annotations

import re
import shutil
from types import SimpleNamespace

import pytest

from slidesparse import counters, dcgm
from slidesparse.counters import METRICS, GpmSampler
from slidesparse.dcgm import DcgmSampler
from slidesparse.devices import CPU, Device
from slidesparse.monitor import GpuMonitor, Nvml, Telemetry, mig_enabled, open_nvml

NVML_NAMES = {
    "sm_active": "SM_UTIL",
    "sm_occupancy": "SM_OCCUPANCY",
    "tensor_active": "ANY_TENSOR_UTIL",
    "hmma_active": "HMMA_TENSOR_UTIL",
    "imma_active": "IMMA_TENSOR_UTIL",
    "dram_active": "DRAM_BW_UTIL",
}


def test_a_cpu_has_no_counters_and_says_so() -> None:
    with GpmSampler(CPU) as sampler:
        assert not sampler.available
        assert sampler.why == "cpu is no GPU"
        assert sampler.read() is None
    assert sampler.read() is None


def test_a_cpu_has_no_telemetry() -> None:
    with GpuMonitor(CPU) as monitor:
        assert monitor.telemetry() == Telemetry(None, None, None, None)
        assert monitor.power_limit() is None
    assert open_nvml(CPU).why == "cpu is no GPU"


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a driver")
def test_a_machine_without_a_driver_says_what_is_missing() -> None:
    with GpmSampler(Device("cuda", 0)) as sampler:
        assert not sampler.available
        assert re.match("nvidia-ml-py is not installed|NVML cannot be opened: ", sampler.why)
        assert sampler.read() is None


def test_the_ids_are_nvmls() -> None:
    nvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    assert set(NVML_NAMES) == set(METRICS)
    for name, spelled in NVML_NAMES.items():
        assert METRICS[name] == getattr(nvml, f"NVML_GPM_METRIC_{spelled}")


def test_nvmls_structure_holds_what_a_reading_asks_for() -> None:
    nvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    asked = nvml.c_nvmlGpmMetricsGet_t()
    asked.version = nvml.NVML_GPM_METRICS_GET_VERSION
    asked.numMetrics = len(METRICS)
    for index, number in enumerate(METRICS.values()):
        asked.metrics[index].metricId = number
    assert [asked.metrics[index].metricId for index in range(6)] == list(METRICS.values())
    assert asked.metrics[0].nvmlReturn == nvml.NVML_SUCCESS
    assert asked.metrics[0].value == 0.0


class Refused(Exception):
    """What this library calls NVMLError."""


class Library:
    """As much of pynvml as decides whether there are readings; a refusal cannot be had for real."""

    NVMLError = Refused

    def __init__(self, mig: bool | None = None, refuse: str = "") -> None:
        self.mig, self.refuse, self.open, self.samples = mig, refuse, 1, 0

    def nvmlDeviceGetMigMode(self, handle: object) -> list[int]:
        if self.mig is None:
            raise Refused("Not Supported")
        return [int(self.mig), 0]

    def nvmlDeviceGetIndex(self, handle: object) -> int:
        return 3

    def nvmlGpmQueryDeviceSupport(self, handle: object) -> SimpleNamespace:
        return SimpleNamespace(isSupportedDevice=self.refuse != "support")

    def nvmlGpmSampleAlloc(self) -> object:
        self.samples += 1
        return object()

    def nvmlGpmSampleGet(self, handle: object, sample: object) -> None:
        if self.refuse == "sample":
            raise Refused("Insufficient Permissions")

    def nvmlGpmSampleFree(self, sample: object) -> None:
        self.samples -= 1
        if self.refuse == "sample":
            raise Refused("Invalid Argument")

    def nvmlShutdown(self) -> None:
        self.open -= 1


@pytest.mark.parametrize(
    ("library", "why"),
    [
        (Library(refuse="support"), "cuda:0 has no GPM counters, which Hopper and newer GPUs have"),
        (Library(mig=True), "cuda:0 is part of a GPU in MIG mode, whose counters are of all parts"),
        (Library(refuse="sample"), "the driver gives no GPM sample: Insufficient Permissions"),
    ],
    ids=["too old", "MIG", "no permission"],
)
def test_a_gpu_without_readings_says_why_and_leaves_nothing_open(
    library: Library, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "open_nvml", lambda device: Nvml(library, object(), ""))
    with GpmSampler(Device("cuda", 0)) as sampler:
        assert not sampler.available
        assert sampler.why.startswith(why)
        assert sampler.read() is None
    assert (library.open, library.samples) == (0, 0)


@pytest.mark.parametrize(("mig", "there"), [(None, True), (False, True), (True, False)])
def test_dcgm_does_not_count_a_part_of_a_gpu_as_the_whole(
    mig: bool | None, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(mig=mig)
    assert mig_enabled(Nvml(library, object(), "")) is (not there)
    monkeypatch.setattr(dcgm, "open_nvml", lambda device: Nvml(library, object(), ""))
    sampler = DcgmSampler(Device("cuda", 0), command="true")
    assert sampler.available is there
    assert there or "MIG mode" in sampler.why
    assert library.open == 0
