"""Options --device and --cache-dir, and what they open, for commands on one machine's results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

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
