"""Versions of the libraries that load here and now, which may differ from those built against.

Every import is lazy. A library that is missing, or whose driver is, has the version "none"; the
reason goes to `why_absent`, which the doctor prints.
"""

from __future__ import annotations

import importlib
import re
import sys
from contextlib import redirect_stdout
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TypedDict

ABSENT = "none"
"""Version of a library that is not there."""

_MAJOR, _MINOR, _PATCH = 0, 1, 2
_DRIVER_FILE = Path("/proc/driver/nvidia/version")


class Versions(TypedDict):
    """The run-time versions that a Fingerprint holds."""

    driver: str
    cublaslt: str
    cusparselt: str
    torch: str
    triton: str


def runtime_versions(gpu: bool) -> Versions:
    """Versions at run time.

    Args:
        gpu: whether a GPU is the target; on a CPU the CUDA libraries take no part and are "none".
    """
    return Versions(
        driver=driver_version() if gpu else ABSENT,
        cublaslt=binding_version("cublasLt")[0] if gpu else ABSENT,
        cusparselt=binding_version("cusparseLt")[0] if gpu else ABSENT,
        torch=torch_version(),
        triton=package_version("triton"),
    )


def binding_version(name: str) -> tuple[str, str]:
    """Version of an NVIDIA library that nvmath binds, and why there is none.

    Args:
        name: "cublasLt" or "cusparseLt".

    Returns:
        ("13.1.0", "") or ("none", one line of reason).
    """
    try:
        module = importlib.import_module(f"nvmath.bindings.{name}")
    except ImportError as error:
        return ABSENT, f"nvmath-python is not installed ({error})"
    # The loaders of nvmath and cuda.pathfinder raise subclasses of RuntimeError; the library's
    # own status codes come as the binding's error class, which is a plain Exception.
    own_error = getattr(module, "cuBLASLtError" if name == "cublasLt" else "cuSPARSELtError")
    try:
        parts = [int(module.get_property(part)) for part in (_MAJOR, _MINOR, _PATCH)]
    except (RuntimeError, OSError, own_error) as error:
        return ABSENT, " ".join(str(error).split())[:300]
    return ".".join(map(str, parts)), ""


def driver_version() -> str:
    """Version of the NVIDIA driver from NVML, else from the kernel module's file, else "none"."""
    try:
        import pynvml
    except ImportError:
        return _driver_from_file(_DRIVER_FILE)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return _driver_from_file(_DRIVER_FILE)
    try:
        version = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return _driver_from_file(_DRIVER_FILE)
    finally:
        pynvml.nvmlShutdown()
    return version.decode() if isinstance(version, bytes) else str(version)


def torch_version() -> str:
    """Version of the torch that imports, with its build suffix ("2.11.0+cu130")."""
    try:
        import torch
    except ImportError:
        return ABSENT
    return str(torch.__version__)


def package_version(distribution: str) -> str:
    """Version of an installed distribution, "none" if it is not."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ABSENT


@lru_cache(maxsize=1)
def vllm_reason() -> str:
    """Why vLLM's kernels cannot be called here, or ""; asking imports vLLM, which takes seconds."""
    if package_version("vllm") == ABSENT:
        return "vLLM is not installed"
    try:
        # vLLM logs to what stdout is when it is imported, where a command prints its results.
        with redirect_stdout(sys.stderr):
            # Imports torch's extension with the kernels, whatever it is called in this release.
            importlib.import_module("vllm._custom_ops")
    except ImportError as error:
        return f"vLLM cannot be imported: {error}"
    except Exception as error:  # Whatever a broken installation raises costs vLLM only.
        return f"vLLM cannot be imported: {type(error).__name__}: {error}"
    return ""


def _driver_from_file(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ABSENT
    match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return match[1] if match else ABSENT
