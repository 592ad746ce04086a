"""Hardware counters through DCGM's command dcgmi, for GPUs that are older than NVML's GPM.

DCGM reads profiling counters from Volta on (V100, A100, L4, L40S among others), as long as its
host engine runs and nobody else profiles the GPU. On Hopper and newer it asks NVML's GPM itself
(DCGM user guide, "Profiling": GPM module), so that there it adds nothing to slidesparse.counters.

`dcgmi dmon -e FIELDS -i GPU -d MILLISECONDS` prints a line per GPU and period: "GPU 0", then one
value per field in the order asked for, shares from 0 to 1, "N/A" where it has none yet.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import threading
from collections.abc import Mapping
from types import MappingProxyType, TracebackType

from slidesparse.devices import Device
from slidesparse.monitor import mig_enabled, open_nvml

COMMAND = "dcgmi"

FIELDS: Mapping[str, int] = MappingProxyType(
    {
        "sm_active": 1002,
        "sm_occupancy": 1003,
        "tensor_active": 1004,
        "hmma_active": 1014,
        "imma_active": 1013,
        "dram_active": 1005,
    }
)
"""DCGM's field of each counter (dcgm_fields.h, DCGM_FI_PROF_*), by the name that GPM has it under.
1004 is DCGM_FI_PROF_PIPE_TENSOR_ACTIVE, 1013 and 1014 its integer and its half-precision part."""

LEAST_MS = 100
"""dcgmi refuses shorter periods."""

START_SECONDS = 5.0
"""How long the first line may take."""


class DcgmSampler:
    """Reads the counters of FIELDS on one device from dcgmi, which runs meanwhile.

    Use it as a context manager; `read` works inside it.

    Args:
        device: to watch.
        period_ms: between two lines of dcgmi, LEAST_MS at least.
        command: dcgmi, by name or path.
        index: DCGM's number of the device; NVML is asked unless told.

    Attributes:
        why: there are no readings, in a few words; "" where there are.
    """

    def __init__(
        self,
        device: Device,
        period_ms: int = LEAST_MS,
        command: str = COMMAND,
        index: int | None = None,
    ) -> None:
        """Find dcgmi and the device's number; nothing runs yet."""
        self._period, self._path = max(period_ms, LEAST_MS), shutil.which(command)
        self._index, self.why = _dcgm_index(device) if index is None else (index, "")
        if not self.why and self._path is None:
            self.why = f"{command} is not installed"
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._lock, self._first = threading.Lock(), threading.Event()
        self._lines: list[dict[str, float]] = []
        self._said: list[str] = []

    @property
    def available(self) -> bool:
        """Whether readings can be had."""
        return not self.why

    def __enter__(self) -> DcgmSampler:
        """Start dcgmi and wait for its first figures."""
        if not self.available or self._path is None:
            return self
        fields = ",".join(map(str, FIELDS.values()))
        self._process = subprocess.Popen(
            [self._path, "dmon", "-e", fields, "-i", str(self._index), "-d", str(self._period)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        self._first.wait(START_SECONDS)
        with self._lock:
            silent = not self._lines
            said = " ".join(self._said) or f"nothing within {START_SECONDS:g} s"
        if silent:
            self._close()
            self.why = f"dcgmi gives no profiling counters; it said: {said[:200]}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End dcgmi; readings are None from now on."""
        self._close()

    def read(self) -> Mapping[str, float] | None:
        """Percent by counter: means of the lines since the last reading, None where there is none.

        A line covers one period, so a reading is late by up to one.
        """
        with self._lock:
            lines, self._lines = self._lines, []
        if self._process is None or not lines:
            return None
        return {
            name: statistics.fmean(line[name] for line in lines if name in line)
            for name in FIELDS
            if any(name in line for line in lines)
        }

    def _follow(self) -> None:
        """Take every line of dcgmi until it ends."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        for line in process.stdout:
            found = parse_line(line, self._index)
            with self._lock:
                if found:
                    self._lines.append(found)
                elif found is None and not line.lstrip().startswith(("#", "ID")):
                    self._said = [*self._said, line.strip()][-4:]
            if found:
                self._first.set()
        self._first.set()

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2.0)
        if process.poll() is None:
            process.kill()
            process.wait()
        if self._thread is not None:
            self._thread.join(timeout=2.0)
        if process.stdout is not None:
            process.stdout.close()


def parse_line(line: str, index: int) -> dict[str, float] | None:
    """What a line of `dcgmi dmon` says of one GPU.

    Args:
        line: of its output.
        index: of the GPU.

    Returns:
        Percent by counter without those that are N/A, or None for a heading, another GPU's line
        and anything else.
    """
    words = line.split()
    if words[:2] != ["GPU", str(index)] or len(words) != 2 + len(FIELDS):
        return None
    found = {}
    for name, word in zip(FIELDS, words[2:], strict=True):
        with contextlib.suppress(ValueError):  # "N/A"
            share = float(word)
            if 0 <= share < float("inf"):
                found[name] = 100 * share
    return found


def _dcgm_index(device: Device) -> tuple[int, str]:
    """DCGM's number of a device, which is NVML's, or why it is not known."""
    opened = open_nvml(device)
    nvml, handle, why = opened
    if handle is None:
        return -1, why
    try:
        if mig_enabled(opened):
            return -1, f"{device} is part of a GPU in MIG mode, which dcgmi dmon counts as a whole"
        return int(nvml.nvmlDeviceGetIndex(handle)), ""
    except nvml.NVMLError as error:
        return -1, f"NVML does not number {device}: {error}"
    finally:
        nvml.nvmlShutdown()
