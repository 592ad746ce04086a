"""The device a command runs on and the fingerprint that its tuning results are filed under."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from slidesparse.errors import DeviceError, UsageError
from slidesparse.libraries import ABSENT, runtime_versions

SCHEMA_VERSION = 1
"""Version of the cache's file format and of what a candidate's parameters mean; part of every
Fingerprint, so that raising it makes all older entries stale."""

FP8_SM = 89
"""The first compute capability with FP8 tensor cores and conversions, 8.9 as one integer."""

OVERLAP_SM = 90
"""Compute capability from which a launch can overlap the end of the kernel before it."""

_SPELLING = re.compile(r"(auto|cpu|cuda)(?::(\d{1,4}))?")
_MIB = 2**20


@dataclass(frozen=True)
class Fingerprint:
    """The machine as far as it decides which algorithm is best, with the versions at run time.

    Args:
        name: of the GPU, or of the CPU for the cpu device.
        sm: compute capability as one integer, 90 for 9.0; 0 for a CPU.
        sm_count: streaming multiprocessors, or the cores this process may use.
        memory_mib: device memory in MiB; 0 for a CPU.
        driver: version of the NVIDIA driver, "none" without one.
        cublaslt: version of the loaded cuBLASLt, "none" without one.
        cusparselt: version of the loaded cuSPARSELt, "none" without one.
        torch: version of torch.
        triton: version of triton, "none" without it.
        schema: SCHEMA_VERSION of this package.
    """

    name: str
    sm: int
    sm_count: int
    memory_mib: int
    driver: str = ABSENT
    cublaslt: str = ABSENT
    cusparselt: str = ABSENT
    torch: str = ABSENT
    triton: str = ABSENT
    schema: int = SCHEMA_VERSION

    @property
    def is_gpu(self) -> bool:
        """Whether this is a GPU's fingerprint; a CPU's never equals one."""
        return self.sm > 0

    @property
    def slug(self) -> str:
        """A directory name: readable fields and ten hex digits of a hash of all of them."""
        everything = json.dumps(asdict(self), sort_keys=True).encode()
        digest = hashlib.sha256(everything).hexdigest()[:10]
        name = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:48].rstrip("-")
        shape = f"sm{self.sm}-{self.sm_count}sm" if self.is_gpu else f"cpu-{self.sm_count}cores"
        return f"{name or 'unnamed'}-{shape}-{digest}"

    def differences(self, other: Fingerprint) -> list[str]:
        """One line per differing field, "cublaslt 13.1.0 here, 13.2.0 there"; self is here."""
        lines = []
        for field in fields(self):
            here, there = getattr(self, field.name), getattr(other, field.name)
            if here != there:
                lines.append(f"{field.name.replace('_', ' ')} {here} here, {there} there")
        return lines

    def __str__(self) -> str:
        """One line for headings: the name and its size."""
        if self.is_gpu:
            return f"{self.name} (sm_{self.sm}, {self.sm_count} SMs, {self.memory_mib} MiB)"
        return f"{self.name} (CPU, {self.sm_count} cores)"


@dataclass(frozen=True)
class Device:
    """The target of a command.

    Args:
        kind: "cuda" or "cpu".
        index: of the GPU as torch counts (CUDA_VISIBLE_DEVICES applied); 0 for the CPU.
    """

    kind: Literal["cuda", "cpu"]
    index: int = 0

    @property
    def is_gpu(self) -> bool:
        """Whether this is a CUDA device."""
        return self.kind == "cuda"

    def __str__(self) -> str:
        """The name as torch spells it: "cuda:0" or "cpu"."""
        return f"cuda:{self.index}" if self.is_gpu else "cpu"


CPU = Device("cpu")


def select_device(text: str = "auto") -> Device:
    """The device that `text` names: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1".

    Raises:
        UsageError: the text is none of these.
        DeviceError: the GPU asked for is not there; the message says what is missing.
    """
    match = _SPELLING.fullmatch(text.strip().lower())
    if match is None or (match[2] is not None and match[1] != "cuda"):
        raise UsageError(f"unknown device {text!r}; use auto, cpu, cuda or cuda:INDEX")
    if match[1] == "cpu":
        return CPU
    torch = _torch()
    if match[1] == "auto":
        return Device("cuda") if torch.cuda.is_available() else CPU
    index = int(match[2] or 0)
    _require_gpu(torch, index)
    return Device("cuda", index)


def gpu_problem() -> str:
    """Why torch has no GPU here and what mends it, or "" if it has one.

    Raises:
        DeviceError: torch cannot be imported.
    """
    torch: Any = _torch()
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})"
    return f"torch sees no GPU{hidden}; check that nvidia-smi lists one"


def all_gpus() -> tuple[Device, ...]:
    """Every GPU that torch sees, in torch's order; empty without one."""
    torch = _torch()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(Device("cuda", index) for index in range(count))


@lru_cache(maxsize=16)
def detect(device: Device) -> Fingerprint:
    """The fingerprint of `device`, with the versions of the libraries that load here and now.

    Raises:
        DeviceError: the device is not there.
    """
    # torch first: it brings its own CUDA libraries, and the ones loaded first are what runs.
    torch = _torch()
    versions = runtime_versions(gpu=device.is_gpu)
    if not device.is_gpu:
        return Fingerprint(_cpu_name(), 0, _cpu_cores(), 0, **versions)
    _require_gpu(torch, device.index)
    properties = torch.cuda.get_device_properties(device.index)
    return Fingerprint(
        name=str(properties.name),
        sm=int(properties.major) * 10 + int(properties.minor),
        sm_count=int(properties.multi_processor_count),
        memory_mib=int(properties.total_memory) // _MIB,
        **versions,
    )


def cards(device: Device, count: int = 1) -> tuple[str, ...]:
    """The UUIDs of `count` GPUs from `device` on: which boards they are; empty on a CPU.

    Raises:
        DeviceError: one of them is not there.
    """
    if not device.is_gpu:
        return ()
    torch = _torch()
    _require_gpu(torch, device.index + count - 1)
    properties = map(torch.cuda.get_device_properties, range(device.index, device.index + count))
    return tuple(str(of_one.uuid) for of_one in properties)


def spell_sm(sm: int) -> str:
    """A compute capability as NVIDIA writes it: "SM 8.9"."""
    return f"SM {sm // 10}.{sm % 10}"


def lacks_fp8(sm: int) -> str | None:
    """Why a GPU of this compute capability cannot do FP8, with the remedy; None if it can."""
    if sm >= FP8_SM:
        return None
    return f"FP8 needs {spell_sm(FP8_SM)} or newer and this is {spell_sm(sm)}; use --dtype int8"


def l2_bytes(device: Device) -> int:
    """Size in bytes of the cache that a cold run must miss: the GPU's L2, the CPU's last level.

    Raises:
        DeviceError: the GPU is not there.
    """
    if not device.is_gpu:
        return _cpu_cache_bytes(Path("/sys/devices/system/cpu/cpu0/cache"))
    torch = _torch()
    _require_gpu(torch, device.index)
    return int(torch.cuda.get_device_properties(device.index).L2_cache_size)


def _torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise DeviceError(f"torch cannot be imported ({error}); pip install torch") from error
    return torch


def _require_gpu(torch: Any, index: int) -> None:
    missing = gpu_problem()
    if missing:
        raise DeviceError(f"cuda:{index} asked for, but {missing}, or use --device cpu")
    count = torch.cuda.device_count()
    if index >= count:
        names = ", ".join(f"cuda:{i}" for i in range(count))
        raise DeviceError(f"cuda:{index} does not exist; this machine has {names}")


def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name: "model name" on x86, else what the platform says."""
    try:
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown CPU"


def _cpu_cores() -> int:
    """Cores that this process may use; what the machine has beyond them does not run our work."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_cache_bytes(folder: Path) -> int:
    """The largest cache level listed in `folder`, or 32 MiB where the system does not tell."""
    sizes = [32 * _MIB]
    units = {"K": 2**10, "M": _MIB, "G": 2**30}
    for path in folder.glob("index*/size"):
        try:
            match = re.fullmatch(r"(\d+)([KMG])", path.read_text(encoding="ascii").strip())
        except (OSError, UnicodeDecodeError):
            continue
        if match is not None:
            sizes.append(int(match[1]) * units[match[2]])
    return max(sizes[1:], default=sizes[0])
