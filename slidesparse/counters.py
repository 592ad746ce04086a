"""Hardware counters of a GPU while it works, through NVML's GPM, without a profiler or DCGM.

GPM ("GPU performance monitoring") is part of the driver from Hopper on. The driver counts all the
time; a sample copies the counters, and two samples give each metric over the time between them. So
a reading is a mean over the whole stretch since the one before, however rarely it is taken, and
launches no kernel and stops none. DCGM's profiling fields are the same counters there (see dcgm).

The metrics, in NVML's words and ids (nvml.h, nvmlGpmMetricId_t), all in percent of the elapsed
cycles or of the peak:

* sm_active (2): SMs that had a warp, mean over SMs and time.
* sm_occupancy (3): resident warps over the most that fit, mean over SMs and time.
* tensor_active (5): cycles in which the tensor pipe of an SM worked, on any type.
* hmma_active (7): of these, floating-point products; FP8 counts here as FP16 and BF16 do.
* imma_active (9): of these, integer products. It does not see FP8.
* dram_active (10): traffic over the theoretical bandwidth of the memory.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Any

from slidesparse.devices import Device
from slidesparse.monitor import Nvml, mig_enabled, open_nvml

METRICS: Mapping[str, int] = MappingProxyType(
    {
        "sm_active": 2,
        "sm_occupancy": 3,
        "tensor_active": 5,
        "hmma_active": 7,
        "imma_active": 9,
        "dram_active": 10,
    }
)
"""NVML's id of each counter that a reading holds."""


class GpmSampler:
    """Reads the counters of METRICS on one device.

    Use it as a context manager; `read` works inside it. It may be called from any one thread.

    Args:
        device: to watch.

    Attributes:
        why: there are no readings, in a few words; "" where there are.
    """

    def __init__(self, device: Device) -> None:
        """Open NVML and ask whether the device has GPM; nothing is sampled yet."""
        self._nvml: Any
        self._nvml, self._handle, self.why = _supported(open_nvml(device), device)
        self._before: Any = None
        self._now: Any = None

    @property
    def available(self) -> bool:
        """Whether readings can be had."""
        return self._handle is not None

    def __enter__(self) -> GpmSampler:
        """Take the first sample; readings count from here."""
        if self.available:
            try:
                self._before = self._nvml.nvmlGpmSampleAlloc()
                self._now = self._nvml.nvmlGpmSampleAlloc()
                self._nvml.nvmlGpmSampleGet(self._handle, self._before)
            except self._nvml.NVMLError as error:
                self.why = f"the driver gives no GPM sample: {error}"
                self._close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of NVML; readings are None from now on."""
        self._close()

    def read(self) -> Mapping[str, float] | None:
        """Percent by counter since the last reading, or since entering.

        Returns:
            By name, without those that the driver did not give; None where it gave nothing. The
            time between two readings should be 10 ms or more.
        """
        if self._before is None:
            return None
        nvml = self._nvml
        try:
            nvml.nvmlGpmSampleGet(self._handle, self._now)
            found = self._between()
        except nvml.NVMLError:
            return None
        self._before, self._now = self._now, self._before
        return found or None

    def _between(self) -> dict[str, float]:
        """The metrics between the two samples."""
        nvml = self._nvml
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version = nvml.NVML_GPM_METRICS_GET_VERSION
        asked.numMetrics = len(METRICS)
        asked.sample1, asked.sample2 = self._before, self._now
        for index, number in enumerate(METRICS.values()):
            asked.metrics[index].metricId = number
        nvml.nvmlGpmMetricsGet(asked)
        return {
            name: float(asked.metrics[index].value)
            for index, name in enumerate(METRICS)
            if asked.metrics[index].nvmlReturn == nvml.NVML_SUCCESS
            and math.isfinite(asked.metrics[index].value)
        }

    def _close(self) -> None:
        nvml = self._nvml
        if nvml is None:
            return
        for sample in (self._before, self._now):
            if sample is not None:
                with contextlib.suppress(nvml.NVMLError):
                    nvml.nvmlGpmSampleFree(sample)
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
        self._nvml = self._handle = self._before = self._now = None


def _supported(opened: Nvml, device: Device) -> Nvml:
    """NVML if the device has GPM; closed, with the reason, if it has not."""
    nvml, handle, why = opened
    if handle is None:
        return Nvml(None, None, why)
    try:
        if mig_enabled(opened):
            why = f"{device} is part of a GPU in MIG mode, whose counters are of all parts together"
        elif nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            return opened
        else:
            why = f"{device} has no GPM counters, which Hopper and newer GPUs have"
    except nvml.NVMLError as error:
        # FUNCTION_NOT_FOUND with drivers older than GPM, NOT_SUPPORTED on some older GPUs.
        why = f"the driver has no GPM counters for {device}: {error}"
    nvml.nvmlShutdown()
    return Nvml(None, None, why)
