"""Clock, power and energy of a GPU while it is timed, through NVML where that is there."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from slidesparse.devices import Device


class GpuMonitor:
    """Reads SM clock, board power and energy of one device; None for each where NVML is not there.

    Use it as a context manager, or call `close`. NVML counts GPUs without regard to
    CUDA_VISIBLE_DEVICES, so the device is found by its PCI bus id or UUID, never by its index.

    Args:
        device: to watch; a CPU gives None for every reading.
    """

    def __init__(self, device: Device) -> None:
        """Open NVML and find the device, or note that it cannot be had."""
        self._nvml: Any = None
        self._handle: Any = None
        if device.is_gpu:
            self._open(device.index)

    @property
    def available(self) -> bool:
        """Whether readings can be had."""
        return self._handle is not None

    def read(self) -> tuple[int, float] | None:
        """(SM clock in MHz, board power in W) now, or None where the driver does not tell."""
        if self._handle is None:
            return None
        nvml = self._nvml
        try:
            clock = nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM)
            milliwatts = nvml.nvmlDeviceGetPowerUsage(self._handle)
        except nvml.NVMLError:
            return None
        return int(clock), milliwatts / 1000

    def joules(self) -> float | None:
        """Energy in J since the driver was loaded, or None where the GPU does not count it."""
        if self._handle is None:
            return None
        try:
            millijoules = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError:
            return None
        return float(millijoules) / 1000

    def close(self) -> None:
        """Let go of NVML; readings are None from now on."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
        self._nvml = self._handle = None

    def __enter__(self) -> GpuMonitor:
        """The monitor itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _open(self, index: int) -> None:
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return
        self._nvml = pynvml
        try:
            self._handle = _nvml_handle(pynvml, index)
        except pynvml.NVMLError:
            self.close()


def read_clock_power(device: Device) -> tuple[int, float] | None:
    """(SM clock in MHz, board power in W) of `device` now, or None where it cannot be read."""
    with GpuMonitor(device) as monitor:
        return monitor.read()


def _nvml_handle(nvml: Any, index: int) -> Any:
    """NVML's handle of torch's device `index`: by PCI bus id, else by UUID."""
    import torch

    properties: Any = torch.cuda.get_device_properties(index)
    if hasattr(properties, "pci_bus_id"):
        bus = f"{properties.pci_domain_id:08x}:{properties.pci_bus_id:02x}"
        return nvml.nvmlDeviceGetHandleByPciBusId(f"{bus}:{properties.pci_device_id:02x}.0")
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
