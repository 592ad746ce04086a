"""Options --device and --cache-dir, and what they open, for commands on one machine's results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slidesparse.errors import DeviceError, UsageError
from slidesparse.problem import DType

if TYPE_CHECKING:
    from slidesparse.cache import TuningCache
    from slidesparse.devices import Device

Function = TypeVar("Function", bound=Callable[..., Any])


def target_options(function: Function) -> Function:
    """Add --device and --cache-dir as the arguments `device` and `cache_dir`."""
    function = click.option(
        "--cache-dir",
        type=click.Path(path_type=Path, file_okay=True),
        help="Where tuning results live.  [default: $SLIDESPARSE_CACHE_DIR or the user's cache]",
    )(function)
    return click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:INDEX."
    )(function)


def open_cache(device: str, cache_dir: Path | None) -> tuple[Device, TuningCache]:
    """The device that was named and the cache of its results.

    Raises:
        UsageError: the device's spelling is wrong.
        DeviceError: the device is not there.
    """
    from slidesparse.cache import TuningCache
    from slidesparse.devices import detect, select_device

    selected = select_device(device)
    return selected, TuningCache(cache_dir, detect(selected))


def require_triton() -> None:
    """Refuse to go on without what the kernels are written in, before they are imported.

    Raises:
        DeviceError: triton cannot be imported.
    """
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            f"triton cannot be imported ({error}), and the kernels are written in it; "
            "pip install triton"
        ) from error


def refuse_fp8(dtype: DType, device: Device, sm: int, what: str = "these kernels") -> None:
    """Say once, before anything runs, that this GPU has no FP8.

    Args:
        dtype: of the quantised operands.
        device: that was named; a CPU has references for everything.
        sm: its compute capability, 90 for 9.0.
        what: cannot run there, for the message.

    Raises:
        UsageError: FP8 was asked of a GPU without it.
    """
    from slidesparse.devices import lacks_fp8

    reason = lacks_fp8(sm) if device.is_gpu and dtype is DType.FP8 else None
    if reason is not None:
        raise UsageError(f"{device} cannot run {what}: {reason}")


def select_devices(device_name: str, gpus: str | None) -> list[Device]:
    """The devices that --device and --gpus name: one worker each, all of one Fingerprint.

    Args:
        device_name: auto, cpu, cuda or cuda:INDEX.
        gpus: "all" or comma-separated indices; None for the one device.

    Raises:
        UsageError: a spelling is wrong, both are given, or the GPUs differ.
        DeviceError: a device is not there.
    """
    from slidesparse.devices import all_gpus, detect, select_device

    if gpus is None:
        return [select_device(device_name)]
    if device_name not in {"auto", "cuda"}:
        raise UsageError(f"--gpus {gpus} and --device {device_name} exclude each other")
    if gpus == "all":
        devices = list(all_gpus()) or [select_device("cuda")]
    else:
        indices = gpus.split(",")
        if not all(index.strip().isdecimal() for index in indices):
            raise UsageError(f"--gpus {gpus!r} is neither 'all' nor indices such as 0,1")
        devices = list(dict.fromkeys(select_device(f"cuda:{int(index)}") for index in indices))
    first = detect(devices[0])
    for device in devices[1:]:
        different = first.differences(detect(device))
        if different:
            raise UsageError(
                f"{devices[0]} and {device} differ ({different[0]}); search them one at a time"
            )
    return devices
