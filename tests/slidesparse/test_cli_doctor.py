"""`slidesparse doctor`: the table, the JSON and the exit code, with pretended backends."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from slidesparse import devices, libraries
from slidesparse.cache import TuningCache
from slidesparse.cli.main import cli
from slidesparse.devices import CPU, Device, Fingerprint, detect


@dataclass(frozen=True)
class Availability:
    ok: bool
    reason: str = ""
    remedy: str = ""


class FakeBackend:
    def __init__(self, name: str, state: Availability) -> None:
        self.name, self.state = name, state

    def availability(self, device: Device) -> Availability:
        return self.state


WORKS = FakeBackend("cpu", Availability(True, "torch reference"))
BROKEN = FakeBackend(
    "cusparselt",
    Availability(False, "libcusparseLt.so.0 not found", "pip install 'slidesparse[cuda13]'"),
)


@pytest.fixture(autouse=True)
def _cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDESPARSE_CACHE_DIR", str(tmp_path / "root"))
    monkeypatch.setattr("slidesparse.devices.select_device", lambda text: CPU)


def pretend(monkeypatch: pytest.MonkeyPatch, *backends: FakeBackend) -> None:
    module = ModuleType("slidesparse.search.backends")
    module.__dict__["all_backends"] = lambda: list(backends)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def run(*arguments: object) -> Result:
    environment = {"COLUMNS": "200", "NO_COLOR": "1"}
    return CliRunner().invoke(cli, ["doctor", *map(str, arguments)], env=environment)


def report(*arguments: object) -> dict[str, Any]:
    result = run("--json", *arguments)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert isinstance(data, dict)
    return data


def test_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, WORKS, BROKEN)
    result = run()
    assert result.exit_code == 0, result.output
    rows = {
        line.split()[0]: line.split(maxsplit=2)[1:] for line in result.stdout.splitlines() if line
    }
    assert [cell.strip() for cell in rows["cpu"]] == ["works", "torch reference"]
    remedy = "libcusparseLt.so.0 not found; to mend it: pip install 'slidesparse[cuda13]'"
    assert [cell.strip() for cell in rows["cusparselt"]] == ["no", remedy]
    assert rows["torch"][0] == libraries.torch_version()
    cache = TuningCache(None, detect(CPU))
    assert f"cache: {cache.directory}" in result.stdout
    assert "0 entries, 0 bundled with the package" in result.stdout
    assert "0 kernel configurations, 0 bundled with the package" in result.stdout
    assert not cache.root.exists()


def test_nothing_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, BROKEN)
    result = run()
    assert result.exit_code == 1
    assert result.stderr.strip() == "Error: no backend works on cpu; see the remedies above"
    result = run("--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["usable"] is False


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, WORKS, BROKEN)
    data = report()
    assert data["usable"] is True
    assert data["device"]["name"] == "cpu"
    assert data["device"]["fingerprint"]["sm"] == 0
    assert data["device"]["l2_bytes"] > 0
    assert data["backends"][1] == {
        "name": "cusparselt",
        "ok": False,
        "reason": "libcusparseLt.so.0 not found",
        "remedy": "pip install 'slidesparse[cuda13]'",
    }
    names = [row["name"] for row in data["versions"]]
    assert names[:5] == ["driver", "cublasLt", "cusparseLt", "torch", "triton"]
    assert {"nvmath", "cupy", "vllm"} < set(names)
    assert all(row["note"] for row in data["versions"] if row["version"] == "none")


def test_cache_state(monkeypatch: pytest.MonkeyPatch, make_result: Any, tmp_path: Path) -> None:
    pretend(monkeypatch, WORKS)
    cache = TuningCache(None, detect(CPU))
    cache.put(make_result())
    TuningCache(None, replace(cache.fingerprint, torch="1.0")).put_many(
        [make_result(), make_result(m=64)]
    )
    state = report()["cache"]
    assert (state["directory"], state["entries"]) == (str(cache.directory), 1)
    assert state["writable"] is True
    (stale,) = state["stale"]
    assert stale["entries"] == 2
    assert stale["differences"] == [f"torch {cache.fingerprint.torch} here, 1.0 there"]
    assert "stale: 2 in " in run().stdout

    file = tmp_path / "file"
    file.write_text("")
    state = report("--cache-dir", file)["cache"]
    assert state["writable"] is False
    expected = f"not writable: {file} is not a directory; choose another place with --cache-dir"
    assert expected in run("--cache-dir", file).stdout


def test_kernel_configurations_are_counted(
    monkeypatch: pytest.MonkeyPatch, make_kernel: Any
) -> None:
    pretend(monkeypatch, WORKS)
    TuningCache(None, detect(CPU)).put_kernels([make_kernel(), make_kernel(m=64)])
    state = report()["cache"]
    assert (state["entries"], state["kernels"], state["bundled_kernels"]) == (0, 2, 0)
    assert "2 kernel configurations, 0 bundled with the package" in run().stdout


def test_says_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, WORKS)
    monkeypatch.setattr(devices, "gpu_problem", lambda: "torch sees no GPU; check nvidia-smi")
    assert "no GPU is used: torch sees no GPU; check nvidia-smi" in run().stdout
    monkeypatch.setattr(devices, "gpu_problem", lambda: "")
    assert "no GPU is used: there is one; --device cuda examines it" in run().stdout


def test_gpu_is_described(monkeypatch: pytest.MonkeyPatch, fingerprint: Fingerprint) -> None:
    pretend(monkeypatch, WORKS)
    monkeypatch.setattr("slidesparse.devices.select_device", lambda text: Device("cuda", 1))
    monkeypatch.setattr("slidesparse.devices.detect", lambda device: fingerprint)
    monkeypatch.setattr("slidesparse.devices.l2_bytes", lambda device: 50 * 2**20)
    monkeypatch.setattr("slidesparse.monitor.read_clock_power", lambda device: (1980, 76.4))
    line = "cuda:1: NVIDIA H200 (sm_90, 132 SMs, 143156 MiB), 50 MiB cache, now 1980 MHz, 76 W"
    output = run().stdout
    assert line in output
    assert "no GPU is used" not in output
    monkeypatch.setattr("slidesparse.monitor.read_clock_power", lambda device: None)
    assert "50 MiB cache\n" in run().stdout


def test_real_backends_on_the_cpu() -> None:
    data = report("--device", "cpu")
    states = {row["name"]: row for row in data["backends"]}
    assert states["cpu"]["ok"] is True
    assert all(row["ok"] or (row["reason"] and row["remedy"]) for row in states.values())
    assert states["vllm"]["reason"] == "needs an NVIDIA GPU"


def test_vllm_is_optional(monkeypatch: pytest.MonkeyPatch, fingerprint: Fingerprint) -> None:
    from slidesparse.search import vllm_dense

    pretend(monkeypatch, WORKS, vllm_dense.VllmDense())
    monkeypatch.setattr("slidesparse.devices.select_device", lambda text: Device("cuda"))
    monkeypatch.setattr("slidesparse.devices.detect", lambda device: fingerprint)
    monkeypatch.setattr("slidesparse.devices.l2_bytes", lambda device: 50 * 2**20)
    monkeypatch.setattr("slidesparse.monitor.read_clock_power", lambda device: None)
    monkeypatch.setattr(vllm_dense, "package_version", lambda name: "none")
    result = run()
    assert result.exit_code == 0, result.output
    _library, line = [line for line in result.stdout.splitlines() if line.startswith("vllm")]
    mended = "optional, and vLLM is not installed; to mend it: pip install 'slidesparse[vllm]'"
    assert [cell.strip() for cell in line.split(maxsplit=2)] == ["vllm", "no", mended]


def test_bad_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    result = run("--device", "tpu")
    assert result.exit_code == 2
    assert "unknown device 'tpu'; use auto, cpu, cuda or cuda:INDEX" in result.stderr
