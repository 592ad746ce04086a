"""Registering: with a vLLM, with one that is not supported, and with none."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import subprocess
import sys
from types import ModuleType

import pytest

import slidesparse.vllm


def said(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "vllm.slidesparse"]


def test_vllm_finds_it():
    found = importlib.metadata.entry_points(group="vllm.general_plugins", name="slidesparse")
    assert [point.load() for point in found] == [slidesparse.vllm.register]


def test_its_module_is_cheap_to_load():
    code = "import sys, slidesparse.vllm; print(sorted({'torch', 'vllm'} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


class TestOtherVersions:
    @pytest.fixture
    def pretend(self, monkeypatch):
        """A vLLM that is a version and nothing else."""

        def install(version):
            for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
                monkeypatch.delitem(sys.modules, name)
            module = ModuleType("vllm")
            module.__version__ = version
            monkeypatch.setitem(sys.modules, "vllm", module)

        return install

    @pytest.mark.parametrize(
        ("version", "reason"),
        [
            ("0.24.3", "vLLM 0.24.3 is older than 0.25, whose plug-in hooks it needs"),
            ("0.9.0", "vLLM 0.9.0 is older than 0.25, whose plug-in hooks it needs"),
            ("0.99.0", "vLLM 0.99.0 has no module vllm.model_executor"),
        ],
    )
    def test_are_left_alone_with_one_warning(self, pretend, caplog, version, reason):
        pretend(version)
        with caplog.at_level(logging.DEBUG, "vllm.slidesparse"):
            slidesparse.vllm.register()
        assert said(caplog) == [f"slidesparse leaves vLLM alone: {reason}"]
        assert [r.levelname for r in caplog.records if r.name == "vllm.slidesparse"] == ["WARNING"]

    def test_none_at_all(self, monkeypatch, caplog):
        for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "vllm", None)
        slidesparse.vllm.register()
        (line,) = said(caplog)
        assert line.startswith("slidesparse leaves vLLM alone: ModuleNotFoundError: ")


class TestTheVllmThatIsHere:
    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("vllm", reason="vLLM is not installed")

    def test_has_every_hook(self):
        from slidesparse.vllm import compat

        assert compat.unsupported() == ""

    def test_a_hook_that_is_gone_is_named(self, monkeypatch):
        import vllm.model_executor.kernels.linear as linear

        from slidesparse.vllm import compat

        monkeypatch.delattr(linear, "choose_scaled_mm_linear_kernel")
        assert compat.unsupported() == (
            f"vLLM {compat.version()} has no "
            "vllm.model_executor.kernels.linear.choose_scaled_mm_linear_kernel"
        )

    def test_loads_as_its_plugin(self):
        code = (
            "import vllm.plugins as p; p.load_general_plugins();"
            "from slidesparse.vllm import compat;"
            "print([compat.kernels_of(kind)[0].__name__ for kind in ('fp8', 'int8')])"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.stdout.strip().splitlines()[-1] == (
            "['SlideSparseFP8LinearKernel', 'SlideSparseInt8LinearKernel']"
        ), run.stderr[-2000:]

    def test_vllm_can_be_told_to_leave_it_out(self):
        code = (
            "import vllm.plugins as p; p.load_general_plugins();"
            "from slidesparse.vllm import compat; print(compat.kernels_of('fp8')[0].__name__)"
        )
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "VLLM_PLUGINS": "none"},
        )
        name = run.stdout.strip().splitlines()[-1]
        assert name.endswith("FP8ScaledMMLinearKernel")
        assert not name.startswith("SlideSparse")
