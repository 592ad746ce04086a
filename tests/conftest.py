"""Shared by all tests: the seed, the skipping of GPU tests and what the summary says about it."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
GPU_TESTS = ROOT / "tests" / "gpu"
DEFAULT_SEED = 20260303
NO_GPU = "torch sees no CUDA GPU"
NO_BROWSER = "no browser was found"

with suppress(ImportError):  # A GPU machine may lack hypothesis; its tests skip themselves there.
    from hypothesis import settings

    settings.register_profile("slidesparse", deadline=None, derandomize=True, print_blob=True)
    settings.load_profile("slidesparse")


@lru_cache
def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=DEFAULT_SEED, help="seed of the random inputs")


def pytest_configure(config: pytest.Config) -> None:
    if {"", str(ROOT)} & set(sys.path):
        raise pytest.UsageError(
            f"{ROOT} is on sys.path and shadows the installed slidesparse; run `pytest`, or "
            "`PYTHONSAFEPATH=1 python -m pytest`"
        )
    # Processes that tests start are to find what is installed, whatever folder is current.
    os.environ["PYTHONSAFEPATH"] = "1"
    # A shell starts what runs in the background with Ctrl-C ignored, and processes inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Triton reads it when it is first imported. A driver is a cheap sign of a GPU: no torch needed.
    if not shutil.which("nvidia-smi"):
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption('--seed')} (change with --seed)"


def is_gpu_test(item: pytest.Item) -> bool:
    return GPU_TESTS in item.path.parents or item.get_closest_marker("gpu") is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu_tests = [item for item in items if is_gpu_test(item)]
    for item in gpu_tests:
        item.add_marker(pytest.mark.gpu)
        if not has_gpu():
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(NO_GPU in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.section("GPU TESTS WERE SKIPPED", sep="!", red=True, bold=True)
        terminalreporter.line(f"{count} tests did not run: {NO_GPU}.")
        terminalreporter.line("On a machine with an NVIDIA GPU run: bash scripts/gpu_check.sh")
    count = sum(NO_BROWSER in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.section("BROWSER TESTS WERE SKIPPED", sep="!", red=True, bold=True)
        terminalreporter.line(f"{count} tests did not run: {NO_BROWSER}.")
        terminalreporter.line("Install one: sudo apt-get install chromium-headless-shell")


@pytest.fixture
def readme_tables(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/readme_tables.py, which finds result files in `tmp_path`."""
    path = root / "scripts" / "readme_tables.py"
    spec = importlib.util.spec_from_file_location("readme_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


@pytest.fixture(scope="session", autouse=True)
def _print_seed(request: pytest.FixtureRequest) -> None:
    """Goes into the captured output of the first test, which `pytest -q` shows when it fails."""
    print(f"seed={request.config.getoption('--seed')}")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The run's seed, with Python's, NumPy's and (where imported) torch's generators set to it."""
    value = int(request.config.getoption("--seed"))
    print(f"seed={value}")
    random.seed(value)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(value % 2**32)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(value)
    return value


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT
