"""Compiling a variant with NVRTC, keeping it on disk, loading it on a device."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from slidesparse.cache_store import cache_root
from slidesparse.devices import spell_sm
from slidesparse.errors import CandidateError, DeviceError
from slidesparse.kernels.native.source import KERNEL, Variant, source
from slidesparse.worker import first_line

log = logging.getLogger(__name__)

SM = 90
"""The instructions are those of sm_90a: no other GPU has them."""

ARCHITECTURE = "sm_90a"
FOLDER = "native"
DISK_LIMIT = 256 * 2**20
"""Bytes of compiled code that are kept, the least recently used leave first; one takes 50 kB."""

DIGEST = hashlib.sha256().digest_size
MOST_THREADS = 16
_COMPLAINT = re.compile(r"\b(error|fatal)\s*:")
_LOADING = threading.Lock()
_THREAD = threading.local()
_LOADED: set[tuple[Variant, int]] = set()
"""Variants that `load` has loaded, with the devices: what it remembers anyway, for asking."""


@dataclass(frozen=True)
class Loaded:
    """A variant on a device, ready to launch.

    Args:
        function: the driver's CUfunction.
        shared_bytes: dynamic shared memory of a block.
        clusters: that run at the same time on the whole device.
        code: the module, which lives as long as this.
    """

    function: Any
    shared_bytes: int
    clusters: int
    code: Any


def missing() -> str:
    """Why nothing can be compiled here, or "": cuda.core or NVRTC is not there."""
    try:
        from cuda.core import Program, ProgramOptions
        from cuda.core.utils import FileStreamProgramCache  # noqa: F401
    except (ImportError, OSError) as error:
        return f"cuda.core does not import ({error})"
    try:
        options = ProgramOptions(arch=ARCHITECTURE)  # Unasked, the driver would be.
        Program('extern "C" __global__ void nothing() {}', "c++", options).close()
    except Exception as error:  # cuda.core's loaders and NVRTC have error classes of their own.
        return f"NVRTC does not load ({type(error).__name__}: {first_line(error)})"
    return ""


def compile_variant(variant: Variant, folder: Path | None = None) -> Any:
    """Compile, or take from disk; needs no GPU.

    Args:
        variant: to compile.
        folder: of the compiled code; None for native/ in slidesparse's cache folder.

    Returns:
        cuda.core's ObjectCode.

    Raises:
        CandidateError: NVRTC refuses the source; has its first message.
    """
    try:
        return _through_disk(source(variant), folder or cache_root() / FOLDER)
    except Exception as error:  # NVRTC's error class is cuda.core's own, which moves.
        lines = [line for line in str(error).splitlines() if _COMPLAINT.search(line)]
        raise CandidateError(
            f"{variant.config.label} does not compile: {(lines or [repr(error)])[0].strip()}"
        ) from error


def compile_variants(variants: Iterable[Variant]) -> list[str]:
    """Compile into the cache on disk, on several threads; needs no GPU.

    Args:
        variants: to compile; repetitions cost nothing.

    Returns:
        One line per variant that could not be compiled, with the compiler's reason.
    """

    def attempt(variant: Variant) -> str:
        try:
            compile_variant(variant)
        except CandidateError as error:
            return str(error)
        return ""

    distinct = list(dict.fromkeys(variants))
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)), len(distinct))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        return [reason for reason in pool.map(attempt, distinct) if reason]


def load(variant: Variant, device: int) -> Loaded:
    """Compile if needed and load on a device, once per process.

    Args:
        variant: to load.
        device: index of a CUDA device of SM 9.0.

    Raises:
        CandidateError: it does not compile, or not one cluster fits the device.
        DeviceError: the device is not of SM 9.0.
    """
    with _LOADING:
        return _load(variant, device)


def is_loaded(variant: Variant, device: int) -> bool:
    """Whether `load` would neither compile nor read files."""
    return (variant, device) in _LOADED


@cache
def _load(variant: Variant, device: int) -> Loaded:
    import torch

    sm = torch.cuda.get_device_capability(device)
    if sm != (SM // 10, SM % 10):
        raise DeviceError(
            f"the native kernel is for {spell_sm(SM)} (Hopper) and cuda:{device} is "
            f"{spell_sm(sm[0] * 10 + sm[1])}"
        )
    from cuda.bindings import driver

    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # The context exists from here on.
        bind_thread(device)
        code = compile_variant(variant)
        kernel = code.get_kernel(KERNEL)
        function = checked(driver.cuKernelGetFunction(driver.CUkernel(int(kernel.handle))))
        shared = variant.config.shared_bytes(variant.scaled)
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        checked(driver.cuFuncSetAttribute(function, attribute, shared))
        clusters = _clusters(variant, function, shared, device)
    _LOADED.add((variant, device))
    return Loaded(function, shared, clusters, code)


def _clusters(variant: Variant, function: Any, shared: int, device: int) -> int:
    """How many clusters run at once; blocks of a cluster need neighbouring multiprocessors."""
    import torch
    from cuda.bindings import driver

    config = variant.config
    blocks = torch.cuda.get_device_properties(device).multi_processor_count * config.resident
    if config.cluster == 1:
        fit = checked(
            driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(function, config.threads, shared)
        )
        count = min(fit, config.resident) * (blocks // config.resident)
    else:
        launch = launch_config(variant, shared, blocks // config.cluster, overlap=False)
        count = min(
            checked(driver.cuOccupancyMaxActiveClusters(function, launch)),
            blocks // config.cluster,
        )
    if count < 1:
        raise CandidateError(f"no cluster of {config.label} fits the GPU")
    return int(count)


def launch_config(variant: Variant, shared: int, clusters: int, overlap: bool) -> Any:
    """The driver's CUlaunchConfig, all but the stream."""
    from cuda.bindings import driver

    config, kinds = variant.config, driver.CUlaunchAttributeID
    launch = driver.CUlaunchConfig()
    launch.gridDimX, launch.gridDimY, launch.gridDimZ = clusters * config.cluster, 1, 1
    launch.blockDimX, launch.blockDimY, launch.blockDimZ = config.threads, 1, 1
    launch.sharedMemBytes = shared
    attributes = []
    if overlap:
        attribute, value = driver.CUlaunchAttribute(), driver.CUlaunchAttributeValue()
        value.programmaticStreamSerializationAllowed = 1
        attribute.id = kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value = value
        attributes.append(attribute)
    if config.cluster > 1:
        attribute, value = driver.CUlaunchAttribute(), driver.CUlaunchAttributeValue()
        value.clusterDim.x, value.clusterDim.y, value.clusterDim.z = config.cluster, 1, 1
        attribute.id = kinds.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        attribute.value = value
        attributes.append(attribute)
    launch.attrs = attributes
    launch.numAttrs = len(attributes)
    return launch


def bind_thread(device: int) -> None:
    """Give a thread that never used CUDA the device's context; the driver asks for one."""
    if getattr(_THREAD, "bound", False):
        return
    from cuda.bindings import driver

    if not int(checked(driver.cuCtxGetCurrent())):
        from cuda.core import Device

        Device(device).set_current()
    _THREAD.bound = True


def checked(answer: Any) -> Any:
    """The result of a driver call.

    Raises:
        CandidateError: the driver refused, with its error's name.
    """
    status, *results = answer
    if int(status) != 0:
        raise CandidateError(f"the CUDA driver says {status.name}")
    return results[0] if results else None


def _through_disk(text: str, folder: Path) -> Any:
    """Compile through the cache on disk; without it where that cannot be used.

    The cache keeps what it is given and does not look at it again, so a digest goes with the code.
    """
    from cuda.core import ObjectCode, ProgramOptions
    from cuda.core.utils import FileStreamProgramCache, make_program_cache_key

    options = ProgramOptions(arch=ARCHITECTURE, std="c++17")
    key = make_program_cache_key(code=text, code_type="c++", options=options, target_type="cubin")
    made = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileStreamProgramCache(folder, max_size_bytes=DISK_LIMIT) as cache:
            kept = cache.get(key)
            if kept is not None:
                code = kept[DIGEST:]
                if hashlib.sha256(code).digest() == kept[:DIGEST]:
                    return ObjectCode.from_cubin(code)
                log.warning("a compiled kernel in %s is damaged; it is compiled again", folder)
            made = _compiled(text, options)
            code = bytes(made.code)
            cache[key] = hashlib.sha256(code).digest() + code
    except OSError as error:
        log.warning("compiled kernels are not kept: %s", error)
    return made or _compiled(text, options)


def _compiled(text: str, options: Any) -> Any:
    from cuda.core import Program

    program = Program(text, "c++", options)
    try:
        return program.compile("cubin")
    finally:
        program.close()
