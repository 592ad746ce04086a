"""Devices, fingerprints and run-time versions, on this machine and on pretended ones."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from slidesparse import devices, libraries, monitor
from slidesparse.devices import CPU, Device, Fingerprint, cards, detect, l2_bytes, select_device
from slidesparse.errors import DeviceError, UsageError


def fake_torch(gpus: int, cuda: str | None = "13.0") -> Any:
    properties = SimpleNamespace(
        name="NVIDIA H200",
        major=9,
        minor=0,
        multi_processor_count=132,
        total_memory=143156 * 2**20,
        L2_cache_size=50 * 2**20,
        pci_domain_id=0,
        pci_bus_id=0x1B,
        pci_device_id=0,
        uuid="0f-00",
    )
    torch = ModuleType("torch")
    torch.__dict__.update(
        __version__="2.11.0+cu130" if cuda else "2.11.0+cpu",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(
            is_available=lambda: gpus > 0,
            device_count=lambda: gpus,
            get_device_properties=lambda index: properties,
        ),
    )
    return torch


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    detect.cache_clear()
    yield
    detect.cache_clear()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(2))


def test_boards_are_told_apart_by_uuid(two_gpus: None) -> None:
    assert cards(Device("cuda", 0), 2) == ("0f-00", "0f-00")
    assert cards(Device("cuda", 1)) == ("0f-00",)
    assert cards(CPU, 2) == ()
    with pytest.raises(DeviceError, match="cuda:2 does not exist; this machine has cuda:0, cuda:1"):
        cards(Device("cuda", 1), 2)


def test_importing_devices_imports_no_torch() -> None:
    code = "import sys, slidesparse.devices, slidesparse.monitor; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class TestSelect:
    @pytest.mark.parametrize("text", ["cpu", "CPU", " cpu "])
    def test_cpu(self, text: str) -> None:
        assert select_device(text) == CPU == Device("cpu")

    @pytest.mark.usefixtures("two_gpus")
    def test_gpus(self) -> None:
        assert select_device() == select_device("auto") == select_device("cuda") == Device("cuda")
        assert select_device("cuda:1") == Device("cuda", 1)
        assert [str(device) for device in devices.all_gpus()] == ["cuda:0", "cuda:1"]
        assert devices.gpu_problem() == ""

    @pytest.mark.parametrize("text", ["", "gpu", "cpu:0", "auto:1", "cuda:", "cuda:-1", "cuda:x"])
    def test_bad_spelling(self, text: str) -> None:
        message = f"unknown device {text!r}; use auto, cpu, cuda or cuda:INDEX"
        with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
            select_device(text)

    @pytest.mark.usefixtures("two_gpus")
    def test_missing_index(self) -> None:
        with pytest.raises(DeviceError) as caught:
            select_device("cuda:2")
        message = "cuda:2 does not exist; this machine has cuda:0, cuda:1"
        assert str(caught.value) == message

    def test_torch_without_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", fake_torch(0, cuda=None))
        assert select_device("auto") == CPU
        assert devices.all_gpus() == ()
        with pytest.raises(DeviceError) as caught:
            select_device("cuda")
        assert str(caught.value) == (
            "cuda:0 asked for, but torch 2.11.0+cpu is built without CUDA; "
            "install a CUDA build of torch, or use --device cpu"
        )

    def test_no_gpu_visible(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", fake_torch(0))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(DeviceError) as caught:
            select_device("cuda:1")
        assert str(caught.value) == (
            "cuda:1 asked for, but torch sees no GPU (CUDA_VISIBLE_DEVICES=''); "
            "check that nvidia-smi lists one, or use --device cpu"
        )
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        assert devices.gpu_problem() == "torch sees no GPU; check that nvidia-smi lists one"

    def test_no_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(DeviceError, match=r"torch cannot be imported .*; pip install torch"):
            select_device("auto")
        assert libraries.torch_version() == "none"


class TestFingerprint:
    def test_slug_is_a_readable_directory_name(self, fingerprint: Fingerprint) -> None:
        assert re.fullmatch(r"nvidia-h200-sm90-132sm-[0-9a-f]{10}", fingerprint.slug)
        assert fingerprint.slug == replace(fingerprint).slug

    def test_every_field_is_in_the_slug(self, fingerprint: Fingerprint) -> None:
        for field in fields(Fingerprint):
            old = getattr(fingerprint, field.name)
            other = replace(fingerprint, **{field.name: old + 1 if type(old) is int else old + "x"})
            assert other.slug != fingerprint.slug, field.name

    @pytest.mark.parametrize("name", ["../../etc", "a/b", ".", "", "x" * 300, "NVIDIA\u00ae \n"])
    def test_odd_names_are_safe(self, fingerprint: Fingerprint, name: str) -> None:
        assert re.fullmatch(r"[a-z0-9-]{1,100}", replace(fingerprint, name=name).slug)

    def test_differences(self, fingerprint: Fingerprint) -> None:
        assert fingerprint.differences(fingerprint) == []
        other = replace(fingerprint, cublaslt="13.2.0", memory_mib=1)
        assert fingerprint.differences(other) == [
            "memory mib 143156 here, 1 there",
            "cublaslt 13.1.0 here, 13.2.0 there",
        ]

    def test_text(self, fingerprint: Fingerprint) -> None:
        assert str(fingerprint) == "NVIDIA H200 (sm_90, 132 SMs, 143156 MiB)"
        assert str(Fingerprint("AMD EPYC", 0, 2, 0)) == "AMD EPYC (CPU, 2 cores)"


class TestDetect:
    def test_cpu(self, fingerprint: Fingerprint) -> None:
        found = detect(CPU)
        assert found == detect(CPU)
        assert (found.sm, found.memory_mib, found.driver, found.cublaslt) == (0, 0, "none", "none")
        assert found.sm_count >= 1
        assert found.name
        assert found.torch == libraries.torch_version() != "none"
        assert not found.is_gpu
        assert found != fingerprint

    @pytest.mark.usefixtures("two_gpus")
    def test_gpu(self, monkeypatch: pytest.MonkeyPatch, fingerprint: Fingerprint) -> None:
        versions = {"cublasLt": "13.1.0", "cusparseLt": "0.8.1"}
        monkeypatch.setattr(libraries, "binding_version", lambda name: (versions[name], ""))
        monkeypatch.setattr(libraries, "driver_version", lambda: "580.159.03")
        monkeypatch.setattr(libraries, "package_version", lambda name: "3.6.0")
        found = detect(Device("cuda", 1))
        assert found == replace(fingerprint, torch="2.11.0+cu130")
        assert l2_bytes(Device("cuda")) == 50 * 2**20

    @pytest.mark.usefixtures("two_gpus")
    def test_missing_gpu(self) -> None:
        with pytest.raises(DeviceError, match="cuda:5 does not exist"):
            detect(Device("cuda", 5))
        with pytest.raises(DeviceError, match="cuda:5 does not exist"):
            l2_bytes(Device("cuda", 5))

    def test_cpu_name(self, tmp_path: Path) -> None:
        info = tmp_path / "cpuinfo"
        info.write_text("processor : 0\nmodel name\t: AMD EPYC 9654\nmodel name : other\n")
        assert devices._cpu_name(info) == "AMD EPYC 9654"
        info.write_bytes(b"processor : 0\xff\nmodel name :\n")
        assert devices._cpu_name(info)
        assert devices._cpu_name(tmp_path / "none")

    def test_cpu_cache(self, tmp_path: Path) -> None:
        assert l2_bytes(CPU) >= 2**10
        assert devices._cpu_cache_bytes(tmp_path) == 32 * 2**20
        for index, size in enumerate(["32K", "8M", "odd", "512K"]):
            (tmp_path / f"index{index}").mkdir()
            (tmp_path / f"index{index}" / "size").write_text(size + "\n")
        assert devices._cpu_cache_bytes(tmp_path) == 8 * 2**20


class LibraryError(Exception):
    """Stands for cuBLASLtError, which is a plain Exception."""


class TestLibraries:
    def binding(self, monkeypatch: pytest.MonkeyPatch, get_property: Any) -> None:
        module = ModuleType("nvmath.bindings.cublasLt")
        module.__dict__.update(cuBLASLtError=LibraryError, get_property=get_property)
        for name in ("nvmath", "nvmath.bindings"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def test_version_is_dotted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.binding(monkeypatch, (13, 1, 0).__getitem__)
        assert libraries.binding_version("cublasLt") == ("13.1.0", "")

    @pytest.mark.parametrize("error", [RuntimeError, OSError, LibraryError])
    def test_library_that_does_not_load(
        self, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
    ) -> None:
        def fail(part: int) -> int:
            raise error('Failure finding "libcublasLt.so.13":\n  No such file')

        self.binding(monkeypatch, fail)
        expected = 'Failure finding "libcublasLt.so.13": No such file'
        assert libraries.binding_version("cublasLt") == ("none", expected)

    def test_defects_are_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.binding(monkeypatch, lambda: 1)
        with pytest.raises(TypeError):
            libraries.binding_version("cublasLt")

    def test_no_nvmath(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "nvmath", None)
        monkeypatch.delitem(sys.modules, "nvmath.bindings", raising=False)
        monkeypatch.delitem(sys.modules, "nvmath.bindings.cusparseLt", raising=False)
        version, reason = libraries.binding_version("cusparseLt")
        assert version == "none"
        assert reason.startswith("nvmath-python is not installed (")

    def test_packages(self) -> None:
        assert libraries.package_version("click")[0].isdigit()
        assert libraries.package_version("no-such-distribution") == "none"

    @pytest.mark.parametrize(
        ("version", "error", "reason"),
        [
            ("none", None, "vLLM is not installed"),
            ("0.25.1", ImportError("no libcudart.so.13"), "no libcudart.so.13"),
            ("0.25.1", RuntimeError("no CUDA here"), "RuntimeError: no CUDA here"),
            ("0.25.1", None, ""),
        ],
    )
    def test_vllm_is_imported_where_it_is_installed(
        self, version: str, error: Exception | None, reason: str, monkeypatch: Any, capsys: Any
    ) -> None:
        asked = []

        def load(name: str) -> None:
            asked.append(name)
            print("INFO Automatically detected platform cuda")
            if error is not None:
                raise error

        monkeypatch.setattr(libraries, "package_version", lambda name: version)
        monkeypatch.setattr(libraries.importlib, "import_module", load)
        libraries.vllm_reason.cache_clear()
        prefix = "vLLM cannot be imported: " if error else ""
        assert [libraries.vllm_reason() for _ in range(2)] == [prefix + reason] * 2
        libraries.vllm_reason.cache_clear()
        assert asked == ["vllm._custom_ops"] * (version != "none"), "once"
        output = capsys.readouterr()
        assert output.out == "", "stdout is for results"
        assert output.err.startswith("INFO") is bool(asked)

    def test_driver(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        file = tmp_path / "version"
        monkeypatch.setattr(libraries, "_DRIVER_FILE", file)
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert libraries.driver_version() == "none"
        file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.03  Tue Mar\n")
        assert libraries.driver_version() == "580.159.03"
        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(works=False))
        assert libraries.driver_version() == "580.159.03"
        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
        assert libraries.driver_version() == "590.1"


class FakeNvml(ModuleType):
    """NVML with one GPU on bus 1b."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM = 1

    def __init__(self, works: bool = True, reads: bool = True) -> None:
        super().__init__("pynvml")
        self.works, self.reads, self.open = works, reads, 0

    def nvmlInit(self) -> None:
        if not self.works:
            raise self.NVMLError("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "590.1"

    def nvmlDeviceGetHandleByPciBusId(self, bus: str) -> str:
        if bus != "00000000:1b:00.0":
            raise self.NVMLError("Not Found")
        return "handle"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-0f-00":
            raise self.NVMLError("Not Found")
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        if not self.reads:
            raise self.NVMLError("Not Supported")
        return 1980

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 512_500


class TestMonitor:
    def test_cpu_has_no_reading(self) -> None:
        assert monitor.read_clock_power(CPU) is None

    @pytest.mark.usefixtures("two_gpus")
    @pytest.mark.parametrize(
        ("nvml", "reading"),
        [
            (None, None),
            (FakeNvml(works=False), None),
            (FakeNvml(reads=False), None),
            (FakeNvml(), (1980, 512.5)),
        ],
    )
    def test_reading(self, monkeypatch: pytest.MonkeyPatch, nvml: Any, reading: Any) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        assert monitor.read_clock_power(Device("cuda")) == reading
        assert nvml is None or nvml.open == 0

    @pytest.mark.parametrize(("bus", "available"), [(0x1B, True), (0x2B, False)])
    def test_device_is_found_by_its_bus(
        self, monkeypatch: pytest.MonkeyPatch, bus: int, available: bool
    ) -> None:
        torch, nvml = fake_torch(1), FakeNvml()
        torch.cuda.get_device_properties(0).pci_bus_id = bus
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        with monitor.GpuMonitor(Device("cuda")) as watched:
            assert watched.available is available
        assert watched.read() is None
        assert nvml.open == 0

    def test_device_is_found_by_uuid_on_older_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch = fake_torch(1)
        del torch.cuda.get_device_properties(0).pci_bus_id
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
        assert monitor.read_clock_power(Device("cuda")) == (1980, 512.5)
