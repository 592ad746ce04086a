"""Clock, power and energy of a GPU while it is timed, through NVML where that is there."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple

from slidesparse.devices import Device


class Nvml(NamedTuple):
    """NVML, opened for one device.

    Args:
        library: the module pynvml, None where it cannot be had. Whoever opened it calls its
            nvmlShutdown.
        handle: of the device; None where it cannot be had.
        why: it cannot be had, in a few words; "" where it can.
    """

    library: Any
    handle: Any
    why: str


def open_nvml(device: Device) -> Nvml:
    """Open NVML for one device; where that fails nothing is left open and `why` says the reason."""
    if not device.is_gpu:
        return Nvml(None, None, f"{device} is no GPU")
    try:
        import pynvml
    except ImportError:
        return Nvml(None, None, "nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Nvml(None, None, f"NVML cannot be opened: {error}")
    try:
        return Nvml(pynvml, _nvml_handle(pynvml, device.index), "")
    except pynvml.NVMLError as error:
        pynvml.nvmlShutdown()
        return Nvml(None, None, f"NVML does not know {device}: {error}")


def mig_enabled(opened: Nvml) -> bool:
    """Whether a device is partitioned (MIG), so that what it counts as a whole is not one part's.

    Args:
        opened: NVML with a handle.
    """
    nvml = opened.library
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(opened.handle)
    except nvml.NVMLError:
        return False  # It cannot be partitioned.
    return bool(current)


class Telemetry(NamedTuple):
    """What a GPU says of itself at one moment; None for what it does not tell.

    Args:
        power_w: of the board. On Hopper NVML averages it over about a second.
        temperature_c: of the chip.
        sm_mhz: clock of the SMs.
        memory_mhz: clock of the memory.
    """

    power_w: float | None
    temperature_c: float | None
    sm_mhz: float | None
    memory_mhz: float | None


class GpuMonitor:
    """Reads SM clock, board power and energy of one device; None for each where NVML is not there.

    Use it as a context manager, or call `close`. NVML counts GPUs without regard to
    CUDA_VISIBLE_DEVICES, so the device is found by its PCI bus id or UUID, never by its index.

    Args:
        device: to watch; a CPU gives None for every reading.
    """

    def __init__(self, device: Device) -> None:
        """Open NVML and find the device, or note that it cannot be had."""
        self._nvml, self._handle, _ = open_nvml(device)

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

    def telemetry(self) -> Telemetry:
        """Power, temperature and clocks now, each None where the driver does not tell it."""
        nvml, handle = self._nvml, self._handle
        if handle is None:
            return Telemetry(None, None, None, None)
        milliwatts = self._ask(nvml.nvmlDeviceGetPowerUsage)
        return Telemetry(
            power_w=None if milliwatts is None else milliwatts / 1000,
            temperature_c=self._ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            sm_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            memory_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        )

    def power_limit(self) -> float | None:
        """W that the board may draw, as enforced now, or None where the driver does not tell."""
        if self._handle is None:
            return None
        milliwatts = self._ask(self._nvml.nvmlDeviceGetEnforcedPowerLimit)
        return None if milliwatts is None else milliwatts / 1000

    def _ask(self, function: Any, *arguments: Any) -> float | None:
        try:
            return float(function(self._handle, *arguments))
        except self._nvml.NVMLError:
            return None

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
