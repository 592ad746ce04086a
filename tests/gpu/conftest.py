"""What the GPU tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from slidesparse.devices import Device

FAKES = Path(__file__).resolve().parent / "search"


@pytest.fixture(scope="session")
def gpu() -> Device:
    """The first GPU; the tests that ask for it are skipped where there is none."""
    return Device("cuda", 0)


@pytest.fixture
def faulty_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make "faulty_backends:NAME" loadable here and in spawned workers."""
    monkeypatch.syspath_prepend(str(FAKES))
    assert str(FAKES) in sys.path
