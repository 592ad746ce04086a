"""What a benchmark in this process does on its device: its stream, waiting, and free memory."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from slidesparse.devices import Device, l2_bytes


class OnDevice:
    """A benchmark that runs on one device.

    Args:
        device: a GPU, which becomes torch's current one, or the CPU.
    """

    def __init__(self, device: Device) -> None:
        """Bind the device; a GPU gets a stream to be timed on."""
        self._device = device
        self._where = torch.device(str(device))
        self._stream: torch.cuda.Stream | None = None
        self._l2 = 0
        if device.is_gpu:
            torch.cuda.set_device(device.index)
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._l2 = l2_bytes(device)

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _wait(self) -> None:
        if self._stream is not None:
            torch.cuda.synchronize()

    def _tidy(self) -> None:
        """Give back the memory that torch only keeps for later."""
        if self._stream is not None:
            torch.cuda.empty_cache()

    def _free(self) -> int:
        """Bytes of memory that are free."""
        if self._device.is_gpu:
            return int(torch.cuda.mem_get_info(self._where)[0])
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
