"""What the backends of NVIDIA GPUs share: when they are available and what they refuse."""

from __future__ import annotations

from slidesparse.devices import Device, detect, lacks_fp8
from slidesparse.libraries import ABSENT, binding_version
from slidesparse.problem import DType, GemmProblem
from slidesparse.search.backend import Availability

EXTRAS = "pip install 'slidesparse[cuda13]' (or [cuda12] with a CUDA 12 driver)"


def needs_gpu(device: Device) -> Availability | None:
    """The answer of a GPU backend for a CPU, or None on a GPU."""
    if device.is_gpu:
        return None
    return Availability(False, "needs an NVIDIA GPU", "run on a machine with one")


def library_availability(device: Device, binding: str) -> Availability:
    """Whether a library that nvmath binds loads here, with its run-time version."""
    missing = needs_gpu(device)
    if missing is not None:
        return missing
    version, reason = binding_version(binding)
    if version == ABSENT:
        return Availability(False, reason, EXTRAS)
    return Availability(True, f"version {version}")


def fp8_refusal(problem: GemmProblem, device: Device) -> str | None:
    """Refuse FP8 on GPUs without FP8 tensor cores."""
    return lacks_fp8(detect(device).sm) if problem.dtype is DType.FP8 else None


def alignment_refusal(problem: GemmProblem, n: int, k: int) -> str | None:
    """Refuse an N or K that is not a multiple of what the library asks."""
    for name, size, step in (("N", problem.n, n), ("K", problem.k, k)):
        if size % step:
            up = -(-size // step) * step
            return f"{name}={size} is not a multiple of {step}; pad it to {up}"
    return None
