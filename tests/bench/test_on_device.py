"""What benchmarks do on their device, on the CPU: there is no stream, and memory is counted."""

from __future__ import annotations

import os
from contextlib import nullcontext

import torch

from slidesparse.bench.on_device import OnDevice
from slidesparse.devices import CPU


def test_a_cpu_has_no_stream_to_wait_for() -> None:
    bench = OnDevice(CPU)
    assert bench._stream is None
    assert bench._where == torch.device("cpu")
    assert isinstance(bench._on_stream(), nullcontext)
    bench._wait()
    bench._tidy()


def test_free_memory_is_that_of_the_machine() -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < OnDevice(CPU)._free() <= whole
