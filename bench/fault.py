"""A device that is lost in the middle of a benchmark, and which work lost it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from slidesparse.devices import Device
from slidesparse.errors import DeviceError
from slidesparse.kernel_problem import KernelProblem
from slidesparse.worker import first_line, is_device_fault


class DeviceLost(DeviceError):
    """The device serves this process no more; nothing can be measured after it.

    Args:
        problem: that was in hand; None for the ceilings.
        reason: what ran, and what the driver says.
    """

    def __init__(self, problem: KernelProblem | None, reason: str) -> None:
        """Say which problem it was, and which way to compute it."""
        where = "" if problem is None else f"{problem}: "
        super().__init__(f"the device is lost: {where}{reason}")
        self.problem, self.reason = problem, reason


@contextmanager
def guard(device: Device, problem: KernelProblem | None, culprit: str) -> Iterator[None]:
    """Turn an error that costs the device into DeviceLost; all others pass.

    Args:
        device: that the work inside runs on.
        problem: that is in hand.
        culprit: what runs inside; the innermost guard names it.

    Raises:
        DeviceLost: the work inside lost the device.
    """
    try:
        yield
    except DeviceLost:
        raise
    except Exception as error:  # Whatever a driver, a compiler or someone else's code throws.
        if is_device_fault(error) and not _answers(device):
            raise DeviceLost(problem, f"{culprit} lost it: {first_line(error)}") from error
        raise


def _answers(device: Device) -> bool:
    """Whether the device still works: a launch or a capture that was only refused leaves it so."""
    if not device.is_gpu:
        return False
    import torch

    try:
        torch.cuda.synchronize(device.index)
    except RuntimeError:
        return False
    return True
