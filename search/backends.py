"""The backends by name. A test or a plug-in adds one by giving "module:Class"."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from slidesparse.devices import Device
from slidesparse.errors import UsageError
from slidesparse.search.backend import Backend

BUILT_IN = {
    "cublaslt": "slidesparse.search.cublaslt:CublasLt",
    "cusparselt": "slidesparse.search.cusparselt:CusparseLt",
    "torch": "slidesparse.search.torch_dense:TorchDense",
    "vllm": "slidesparse.search.vllm_dense:VllmDense",
    "native": "slidesparse.search.native:NativeSparse",
    "torchao": "slidesparse.search.torchao_sparse:TorchaoSparse",
    "cpu": "slidesparse.search.cpu:CpuReference",
    "cpu-slid": "slidesparse.search.cpu:CpuSlid",
}


def load_backend(spec: str) -> Backend:
    """Make the backend of a built-in name or a "module:Class" spec.

    Raises:
        UsageError: the name is unknown; the nearest and all known names are given.
    """
    path = BUILT_IN.get(spec, spec)
    module_name, _, class_name = path.partition(":")
    if not class_name:
        import difflib

        near = difflib.get_close_matches(spec, BUILT_IN, n=1)
        hint = f", did you mean {near[0]!r}" if near else ""
        raise UsageError(f"unknown backend {spec!r}{hint}; known: {', '.join(BUILT_IN)}")
    try:
        make = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"backend {spec!r} cannot be loaded: {error}") from error
    if not (isinstance(make, type) and issubclass(make, Backend)):
        raise UsageError(f"{spec} is not a slidesparse backend")
    return make()


def all_backends(specs: Iterable[str] = tuple(BUILT_IN)) -> list[Backend]:
    """Make every backend of `specs`, in that order; all built-in ones unless told."""
    return [load_backend(spec) for spec in specs]


def default_backends(device: Device) -> tuple[str, ...]:
    """The built-in names of a device's kind, less those that are optional and not installed."""
    made = {name: load_backend(name) for name in BUILT_IN}
    return tuple(n for n, b in made.items() if b.installed and b.on_gpu is device.is_gpu)
