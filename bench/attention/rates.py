"""The best rates of a GPU for attention: of the one that is here, or of one from the table."""

from __future__ import annotations

from slidesparse.bench.attention.bound import EXPS_PER_CLOCK, Rates
from slidesparse.devices import Device, Fingerprint
from slidesparse.gpus import GpuSpec, flops_per_clock, gpu_of
from slidesparse.monitor import open_nvml
from slidesparse.problem import DType

MAX_CLOCK = "the driver's highest SM clock (NVML)"
BOOST = "boost clock, GPU table"
TABLE = "GPU table"
DRIVER = "the driver's highest memory clock and bus width (NVML)"


def table_rates(spec: GpuSpec, dtype: DType) -> Rates | None:
    """The rates of a GPU in the table, at its boost clock.

    Args:
        spec: of the GPU.
        dtype: BF16 or FP16.

    Returns:
        None if its tensor cores do not have the dtype, or nobody publishes how fast they are.
    """
    per_clock = spec.flops_per_clock(str(dtype))
    if per_clock is None:
        return None
    return Rates(
        gpu=spec.name,
        sm=spec.sm,
        sm_count=spec.sm_count,
        clock_mhz=float(spec.boost_mhz),
        clock_source=BOOST,
        dtype=dtype,
        flops_per_clock=per_clock,
        exps_per_clock=EXPS_PER_CLOCK,
        bandwidth_gbs=float(spec.bandwidth_gbs),
        bandwidth_source=TABLE,
    )


def device_rates(device: Device, machine: Fingerprint, dtype: DType) -> Rates | None:
    """The rates of the GPU that is here: what its driver says, and the table for the rest.

    Args:
        device: to ask.
        machine: its fingerprint, for SM and number of SMs.
        dtype: BF16 or FP16.

    Returns:
        None for a CPU, for a GPU without such tensor cores, and where neither the driver nor the
        table knows its clock or its bandwidth.
    """
    spec = gpu_of(machine)
    per_clock = (
        flops_per_clock(machine.sm, str(dtype))
        if spec is None
        else spec.flops_per_clock(str(dtype))
    )
    if not machine.is_gpu or per_clock is None:
        return None
    clock, bandwidth = _told(device)
    if clock is None and spec is not None:
        clock = float(spec.boost_mhz), BOOST
    if spec is not None:
        bandwidth = float(spec.bandwidth_gbs), TABLE
    if clock is None or bandwidth is None:
        return None
    return Rates(
        gpu=machine.name,
        sm=machine.sm,
        sm_count=machine.sm_count,
        clock_mhz=clock[0],
        clock_source=clock[1],
        dtype=dtype,
        flops_per_clock=per_clock,
        exps_per_clock=EXPS_PER_CLOCK,
        bandwidth_gbs=bandwidth[0],
        bandwidth_source=bandwidth[1],
    )


_Told = tuple[float, str] | None


def _told(device: Device) -> tuple[_Told, _Told]:
    """(highest SM clock in MHz, bandwidth in GB/s) and who says so, None for what nobody does."""
    nvml, handle, _ = open_nvml(device)
    if handle is None:
        return None, None
    clock: _Told = None
    bandwidth: _Told = None
    try:
        mhz = float(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM))
        clock = mhz, MAX_CLOCK
        memory = float(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM))
        # Two transfers per clock and bit of the bus.
        gbs = 2 * memory * nvml.nvmlDeviceGetMemoryBusWidth(handle) / 8e3
        bandwidth = gbs, DRIVER
    except nvml.NVMLError:
        pass
    finally:
        nvml.nvmlShutdown()
    return clock, bandwidth
