"""The fingerprint and the monitor on a real GPU."""

from __future__ import annotations

import re
import subprocess

from slidesparse.devices import CPU, all_gpus, detect, l2_bytes, select_device
from slidesparse.monitor import GpuMonitor


def test_fingerprint_has_every_version() -> None:
    found = detect(select_device("auto"))
    assert found.is_gpu
    assert found != detect(CPU)
    print(found, found.slug)
    for name in ("driver", "cublaslt", "cusparselt", "torch", "triton"):
        assert re.match(r"\d+\.\d+", getattr(found, name)), name
    assert found.memory_mib > 1024
    assert l2_bytes(select_device("cuda")) >= 2**20


def test_monitor_reads_the_gpu_that_torch_counts() -> None:
    for device in all_gpus():
        with GpuMonitor(device) as monitor:
            reading = monitor.read()
        assert reading is not None
        clock, power = reading
        assert 100 < clock < 5000
        assert 5 < power < 2000


def test_driver_is_what_nvidia_smi_says() -> None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert detect(select_device("cuda")).driver == output.splitlines()[0].strip()
