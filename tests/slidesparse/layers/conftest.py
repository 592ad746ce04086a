"""What the tests of layers share: the CPU as users have it, and a Hopper that only plans see.

pytest reads this before it decides whether Triton interprets, so nothing here imports it on top.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slidesparse.cache import TuningCache
from slidesparse.devices import Fingerprint


@pytest.fixture(autouse=True)
def _plain_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Quantise by plain torch, as without Triton's interpreter; forget what was planned."""
    from slidesparse.layers import forget

    monkeypatch.setattr("slidesparse.kernels.launch.INTERPRETED", False)
    forget()
    yield
    forget()


@pytest.fixture
def hopper(
    monkeypatch: pytest.MonkeyPatch, fingerprint: Fingerprint, cache: TuningCache
) -> TuningCache:
    """The cache of a machine whose every library loads; plans for cuda:0 are made for it."""
    from slidesparse.layers import cublaslt_way, cusparselt_way, planning

    monkeypatch.setattr(planning, "detect", lambda device: fingerprint)
    monkeypatch.setattr(planning, "TuningCache", lambda root, found: cache)
    for module in (cublaslt_way, cusparselt_way):
        monkeypatch.setattr(module, "binding_version", lambda name: ("13.1.0", ""))
    monkeypatch.setattr("slidesparse.kernels.native.program.missing", lambda: "")
    return cache
