"""What the machine can do at best: a copy's bandwidth, and a kernel that does nothing."""

from __future__ import annotations

import torch

from slidesparse.devices import Device, l2_bytes
from slidesparse.kernels.case import COLD_FACTOR, MOST_SETS
from slidesparse.timing import Runner

LARGE_BYTES = 2**29
"""Read and written together by the copy whose bandwidth is the ceiling: 256 MiB each way."""

CPU_BYTES = 2**26
"""The same on a CPU, where a large copy would only take long."""

SMALLEST = 512
"""Bytes of the shortest copy: what the allocator rounds to."""


class Copy:
    """Copies within the device's memory that move as many bytes as a kernel does.

    Args:
        size: bytes read and written together.
        device: of the memory.

    Attributes:
        half: bytes of one buffer; a copy reads and writes them.
        sets: of operands, enough to outrun the L2 cache.
    """

    def __init__(self, size: int, device: Device) -> None:
        """Take the memory."""
        self.half = half = max(SMALLEST, size // 2)
        wanted = -(-COLD_FACTOR * l2_bytes(device) // (2 * half)) if device.is_gpu else 1
        self.sets = max(1, min(wanted, MOST_SETS))
        where = torch.device(str(device))
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for _ in range(self.sets):
            source = torch.empty(half, dtype=torch.uint8, device=where).random_(0, 256)
            self._pairs.append((source, torch.empty_like(source)))

    def runner(self) -> Runner:
        """One copy per launch."""
        return Runner(self._launch)

    def _launch(self, index: int, stream: int) -> None:
        source, target = self._pairs[index % self.sets]
        target.copy_(source)


def empty_runner(device: Device) -> Runner:
    """A kernel of one program that does nothing."""
    import triton

    @triton.jit
    def empty_kernel(x_ptr):  # type: ignore[no-untyped-def]
        pass

    x = torch.zeros(1, device=torch.device(str(device)))

    def launch(index: int, stream: int) -> None:
        empty_kernel[(1,)](x, num_warps=1)

    return Runner(launch)
