"""The GPU table: what NVIDIA publishes about each GPU, and the source of every figure.

The figures lie in data/gpus.json. Rates are dense ones, never those "with sparsity". On GeForce
cards the FP16, BF16 and FP8 rates are those with FP32 accumulation, half of the other, since that
is how the GEMMs of language models run. A figure that nobody publishes is left out.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from slidesparse.devices import Fingerprint
from slidesparse.errors import UsageError

_GIB = 2**30

_FLOPS_PER_CLOCK: Mapping[int, Mapping[str, int]] = {
    70: {"fp16": 1024},
    80: {"fp16": 2048, "bf16": 2048, "int8": 4096},
    89: {"fp16": 1024, "bf16": 1024, "fp8": 2048, "int8": 2048},
    90: {"fp16": 4096, "bf16": 4096, "fp8": 8192, "int8": 8192},
    100: {"fp16": 8192, "bf16": 8192, "fp8": 16384, "int8": 16384},
    120: {"fp16": 1024, "bf16": 1024, "fp8": 2048, "int8": 2048},
}
_HALVED_ON_GEFORCE = frozenset({"fp16", "bf16", "fp8"})


@dataclass(frozen=True)
class GpuSpec:
    """One GPU as its maker describes it.

    Args:
        key: what the command line takes: "h100-sxm", "rtx-4090".
        aliases: other spellings that it takes: "h100-80gb".
        name: for headings: "H100 SXM 80 GB".
        driver_names: as NVML and torch tell it: "NVIDIA H100 80GB HBM3".
        architecture: "Volta" to "Blackwell".
        sm: compute capability as one integer, 90 for 9.0.
        sm_count: streaming multiprocessors.
        boost_mhz: highest SM clock in MHz.
        memory_gib: memory that the driver reports to a program, in GiB.
        bandwidth_gbs: of the memory, in GB/s of 1e9 bytes.
        l2_mib: size of the L2 cache in MiB.
        power_w: limit of the board's power in watts.
        nvlink_gbs: NVLink between GPUs, both directions together, in GB/s; 0 without.
        tflops: dense rates in TFLOP/s (TOP/s for "int8"): "fp16", "bf16", "fp8" and "int8" of the
            tensor cores, "fp32" of the CUDA cores; a missing one is unsupported or unpublished.
        sparse: whether its tensor cores run 2:4 sparsity.
        sources: where each figure comes from, by field ("tflops.fp8").
    """

    key: str
    aliases: tuple[str, ...]
    name: str
    driver_names: tuple[str, ...]
    architecture: str
    sm: int
    sm_count: int
    boost_mhz: int
    memory_gib: float
    bandwidth_gbs: float
    l2_mib: float
    power_w: int
    nvlink_gbs: float
    tflops: Mapping[str, float]
    sparse: bool
    sources: Mapping[str, str]

    @property
    def memory_bytes(self) -> int:
        """The memory that the driver reports, in bytes."""
        return int(self.memory_gib * _GIB)

    @property
    def geforce(self) -> bool:
        """Whether it is a GeForce card, whose FP32 accumulation runs at half rate."""
        return any("GeForce" in name for name in self.driver_names)

    def flops_per_clock(self, dtype: str) -> int | None:
        """Dense tensor FLOP per clock and SM with FP32 (for int8: INT32) accumulation.

        As the function `flops_per_clock`, with the half rate of GeForce cards.
        """
        full = flops_per_clock(self.sm, dtype)
        if full is None or not (self.geforce and dtype in _HALVED_ON_GEFORCE):
            return full
        return full // 2


def gpu_keys() -> tuple[str, ...]:
    """The names of all GPUs in the table, oldest first."""
    return tuple(_table())


def find_gpu(text: str) -> GpuSpec:
    """The GPU of that key, alias, name or driver's name, in any case, "_" and blanks for "-".

    Raises:
        UsageError: there is none; the message has the nearest names.
    """
    wanted = _normal(text)
    names = _names()
    if wanted in names:
        return names[wanted]
    # A family's name ("h100") is nearer to all its members than letters alone would tell.
    near = [key for key in gpu_keys() if wanted and _normal(key).startswith(wanted)]
    if not near:
        close = difflib.get_close_matches(wanted, list(names), n=6, cutoff=0.5)
        near = list(dict.fromkeys(names[name].key for name in close))
    hint = f"nearest: {', '.join(near[:4])}; " if near else ""
    raise UsageError(f"unknown GPU {text!r}; {hint}known: {', '.join(gpu_keys())}")


def gpu_of(fingerprint: Fingerprint) -> GpuSpec | None:
    """The table's entry for a machine, by driver name, compute capability and SM count.

    A part of a GPU (MIG) has fewer SMs and is none of them.
    """
    for spec in _table().values():
        if (
            fingerprint.name in spec.driver_names
            and fingerprint.sm == spec.sm
            and fingerprint.sm_count == spec.sm_count
        ):
            return spec
    return None


def flops_per_clock(sm: int, dtype: str) -> int | None:
    """Dense tensor-core FLOP (two per multiply-add) of one SM in one clock; None if not published.

    From the peak rates of NVIDIA's architecture whitepapers (V100 v1.1 Table 1, A100 v1.0 Table 4,
    H100 v1.04 Table 2, Ada v2.1 Appendix A, RTX Blackwell v1.1 Appendix B, Blackwell brief),
    divided by SMs and clock: 312 TFLOP/s / (108 x 1.41 GHz) = 2048 for BF16 on 8.0. GeForce cards
    (8.9, 12.0) run FP16, BF16 and FP8 with FP32 accumulation at half of it:
    `GpuSpec.flops_per_clock` has that. GB10 (12.1) is not published.

    Args:
        sm: compute capability as one integer, 90 for 9.0.
        dtype: "fp16", "bf16", "fp8" or "int8".
    """
    return _FLOPS_PER_CLOCK.get(sm, {}).get(dtype)


@lru_cache(maxsize=1)
def _table() -> dict[str, GpuSpec]:
    file = resources.files("slidesparse") / "data" / "gpus.json"
    entries = json.loads(file.read_text(encoding="utf-8"))["gpus"]
    return {str(entry["key"]): _spec(entry) for entry in entries}


@lru_cache(maxsize=1)
def _names() -> dict[str, GpuSpec]:
    """Every spelling that names a GPU, normalised."""
    return {
        _normal(name): spec
        for spec in _table().values()
        for name in (spec.key, *spec.aliases, spec.name, *spec.driver_names)
    }


def _spec(entry: Mapping[str, Any]) -> GpuSpec:
    lists = {field: tuple(entry[field]) for field in ("aliases", "driver_names")}
    return GpuSpec(**{**entry, **lists})


def _normal(text: str) -> str:
    return re.sub(r"[\s_-]+", "-", text.strip().lower())
