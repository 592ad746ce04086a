"""`slidesparse cache`: each command on a real directory, each error in one line."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from slidesparse.cache import TuningCache
from slidesparse.cli.main import cli
from slidesparse.devices import CPU, Fingerprint, detect
from slidesparse.kernel_problem import Op
from slidesparse.serialize import to_plain

KEY = "m16-n256-k512-fp8_e4m3-bf16-tensor-nobias-6:8"


def run(*arguments: object, stdin: str = "") -> Result:
    environment = {"COLUMNS": "200", "NO_COLOR": "1"}
    return CliRunner().invoke(cli, ["cache", *map(str, arguments)], input=stdin, env=environment)


def good(*arguments: object, stdin: str = "") -> str:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def bad(*arguments: object, code: int = 1) -> str:
    """The one line on standard error of a command that fails."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    return result.stderr.strip().splitlines()[-1]


@dataclass(frozen=True)
class VerifiedEntry:
    key: str
    stored_us: float
    now_us: float | None
    holds: bool
    note: str = ""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TuningCache:
    """This machine's cache, which the commands find through the environment."""
    monkeypatch.setenv("SLIDESPARSE_CACHE_DIR", str(tmp_path / "root"))
    monkeypatch.setattr("slidesparse.devices.select_device", lambda text: CPU)
    return TuningCache(None, detect(CPU))


def older(cache: TuningCache) -> TuningCache:
    return TuningCache(cache.root, replace(cache.fingerprint, torch="1.0"))


class TestPath:
    def test_environment_and_option(self, own: TuningCache, tmp_path: Path) -> None:
        assert good("path") == f"{own.directory}\n"
        elsewhere = tmp_path / "else"
        data = json.loads(good("path", "--cache-dir", elsewhere, "--json"))
        slug = own.fingerprint.slug
        assert data == {"root": str(elsewhere), "directory": str(elsewhere / slug)}
        assert not elsewhere.exists()

    def test_bad_device(self) -> None:
        line = bad("path", "--device", "gpu", code=2)
        assert line == "Error: unknown device 'gpu'; use auto, cpu, cuda or cuda:INDEX"


class TestList:
    def test_empty(self, own: TuningCache) -> None:
        assert f"no entries in {own.path}; run slidesparse search" in good("list")
        assert "slidesparse tune" in good("list")
        assert json.loads(good("list", "--json"))["entries"] == []

    def test_kernels_only(self, own: TuningCache, make_kernel: Any) -> None:
        own.put_kernels([make_kernel()])
        output = good("list")
        assert f"no GEMM results in {own.path}; run slidesparse search\n" in output
        assert "kernels: 1 configurations of slidesparse tune" in output
        assert "no entries" not in output

    def test_results_and_stale(self, own: TuningCache, make_result: Any) -> None:
        own.put_many([make_result(m=64, us=10.0), make_result()])
        older(own).put(make_result())
        output = good("list")
        rows = [line for line in output.splitlines() if line.startswith("m")]
        expected = [KEY, "16", "cusparselt", "8.00", "1.25", "normal", "cached"]
        assert rows[0].split() == expected
        assert rows[1].startswith("m64-")
        version = own.fingerprint.torch
        stale = f"stale: 1 entries in {older(own).directory} (torch {version} here, 1.0 there)"
        assert stale in output

    def test_json(self, own: TuningCache, make_result: Any) -> None:
        own.put(make_result())
        older(own).put(make_result())
        data = json.loads(good("list", "--json"))
        assert data["fingerprint"] == to_plain(own.fingerprint)
        (entry,) = data["entries"]
        assert entry["key"] == KEY
        assert (entry["median_us"], entry["speedup_over_dense"]) == (8.0, 1.25)
        (stale,) = data["stale"]
        assert (stale["entries"], stale["path"]) == (1, str(older(own).directory))

    def test_kernels(self, own: TuningCache, make_kernel: Any) -> None:
        own.put_kernels([make_kernel(m=m) for m in (1024, 64)])
        own.put_kernels([make_kernel(Op.DEQUANTIZE, pattern="dense")])
        output = good("list")
        assert "no GEMM results in" in output
        assert "kernels: 3 configurations" in output
        rows = [line.split() for line in output.splitlines()]
        assert ["quantize-k512-bf16-fp8_e4m3-6:8-plain", "64", "1024", "cached"] in rows
        assert ["dequantize-k512-bf16-bf16-dense-plain", "16", "cached"] in rows
        listed = json.loads(good("list", "--json"))["kernels"]
        assert [row["key"] for row in listed][:2] == [
            f"quantize-m{m}-k512-bf16-fp8_e4m3-6:8-plain" for m in (64, 1024)
        ]
        assert (listed[0]["median_us"], listed[0]["speedup_over_default"]) == (8.0, 1.25)

    def test_problem_that_nothing_supports(self, own: TuningCache, make_result: Any) -> None:
        own.put(replace(make_result(), ranked=(), defaults=(), baseline=None))
        assert "nothing supports it" in good("list")
        assert json.loads(good("list", "--json"))["entries"][0]["best"] is None

    def test_damaged_file_warns_and_goes_on(
        self, own: TuningCache, make_result: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        own.put(make_result())
        own.path.write_text("{")
        assert "no entries" in good("list")
        assert f"tuning cache {own.path} is damaged" in caplog.text


class TestShow:
    @pytest.fixture(autouse=True)
    def _filled(self, own: TuningCache, make_result: Any) -> None:
        own.put_many([make_result(), make_result(m=64), make_result(n=512, pattern="4:6")])

    def test_one(self) -> None:
        output = good("show", KEY)
        assert KEY in output
        assert "cusparselt tile=3" in output
        assert "failed (crash): cusparselt" in output
        assert "left out: torchao: not installed" in output
        assert "m64-" not in output

    @pytest.mark.parametrize(
        ("arguments", "count"),
        [
            ([], 3),
            (["--n", 256], 2),
            (["--n", 256, "--m", "33,64"], 1),
            (["--pattern", "4:6"], 1),
            (["--pattern", "2:8"], 2),
            (["--k", 512], 3),
        ],
    )
    def test_filters(self, arguments: list[object], count: int) -> None:
        assert len(json.loads(good("show", *arguments, "--json"))["entries"]) == count

    def test_json_is_the_whole_result(self, make_result: Any) -> None:
        (entry,) = json.loads(good("show", KEY, "--json"))["entries"]
        assert entry == {"key": KEY, "from": "cached", "result": to_plain(make_result())}

    def test_kernel(self, own: TuningCache, make_kernel: Any) -> None:
        result = make_kernel()
        own.put_kernels([result])
        key = result.problem.key
        output = good("show", key)
        assert "quantize M=16 K=512 bf16->fp8_e4m3 6:8; cached, 12 tried, seed 7" in output
        rows = [line.split()[0] for line in output.splitlines()]
        assert rows[3:6] == ["1", "2", "default"]
        assert "failed (memory): triton num_warps=32: too much" in output
        (entry,) = json.loads(good("show", key, "--json"))["entries"]
        assert entry == {"key": key, "from": "cached", "result": to_plain(result)}
        assert f"did you mean {key}" in bad("show", key + "x")

    def test_unknown_key(self) -> None:
        near = KEY.replace("256", "257")
        assert bad("show", near) == f"Error: no result with key {near!r}, did you mean {KEY}"
        line = "Error: no result with key '?'; `slidesparse cache list` shows the keys"
        assert bad("show", "?") == line

    def test_nothing_matches(self, own: TuningCache) -> None:
        expected = f"Error: no result matches; there are 3 entries in {own.path}"
        assert bad("show", "--n", 3) == expected

    def test_bad_filters(self) -> None:
        assert "0 is not in the range x>=1" in bad("show", "--n", 0, code=2)
        assert "pattern 3:8 is not of the" in bad("show", "--pattern", "3:8", code=2)


class TestTransfer:
    def test_there_and_back(self, own: TuningCache, tmp_path: Path, make_result: Any) -> None:
        own.put(make_result())
        file = tmp_path / "all.json"
        assert good("export", file) == f"exported 1 entry of {own.fingerprint} to {file}\n"
        other = tmp_path / "other"
        path = other / own.fingerprint.slug
        imported = good("import", file, "--cache-dir", other)
        assert imported == f"imported 1 entry into {path}\n"
        again = good("import", file, "--cache-dir", other)
        kept = "; kept 1 that were here already (--overwrite replaces them)"
        assert again == f"imported 0 entries into {path}{kept}\n"
        replaced = good("import", file, "--cache-dir", other, "--overwrite")
        assert replaced == f"imported 1 entry into {path}, 1 of them replaced own ones\n"

    def test_nothing_to_export(self, own: TuningCache, tmp_path: Path) -> None:
        expected = (
            f"Error: nothing to export: no entries in {own.directory}; run slidesparse search or "
            "slidesparse tune"
        )
        assert bad("export", tmp_path / "x.json") == expected

    def test_export_to_nowhere(self, own: TuningCache, tmp_path: Path, make_result: Any) -> None:
        own.put(make_result())
        file = tmp_path / "no" / "x.json"
        assert bad("export", file) == f"Error: cannot write {file}: No such file or directory"
        assert "is a directory" in bad("export", tmp_path, code=2)

    def test_import_of_nothing(self, own: TuningCache, tmp_path: Path) -> None:
        assert "does not exist" in bad("import", tmp_path / "x.json", code=2)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("?", "not valid JSON"),
            ("{}", 'this is not a tuning cache ("kind" is not "slidesparse-cache")'),
            ('{"kind": "slidesparse-cache", "schema_version": 2}', "schema version 2, and this"),
        ],
    )
    def test_import_of_other_things(
        self, own: TuningCache, tmp_path: Path, content: str, reason: str
    ) -> None:
        file = tmp_path / "x.json"
        file.write_text(content)
        assert bad("import", file).startswith(f"Error: cannot import {file}: {reason}")
        assert not own.root.exists()

    def test_import_from_another_machine(
        self, own: TuningCache, tmp_path: Path, make_result: Any, fingerprint: Fingerprint
    ) -> None:
        gpu = TuningCache(tmp_path / "gpu", fingerprint)
        gpu.put(make_result())
        gpu.export(tmp_path / "gpu.json")
        line = bad("import", tmp_path / "gpu.json")
        assert "another machine or with other versions" in line
        assert "sm 0 here, 90 there" in line

    def test_unwritable_cache(self, own: TuningCache, tmp_path: Path, make_result: Any) -> None:
        own.put(make_result())
        file = tmp_path / "x.json"
        good("export", file)
        line = bad("import", file, "--cache-dir", file)
        assert line.startswith("Error: cannot write the tuning cache at ")
        assert "choose another place with --cache-dir or SLIDESPARSE_CACHE_DIR" in line


class TestClear:
    def test_asks_first(self, own: TuningCache, make_result: Any) -> None:
        own.put(make_result())
        question = f"Remove 1 entry and all journals of {own.directory}? [y/N]: "
        refused = run("clear", stdin="n\n")
        assert refused.exit_code == 1
        assert question in refused.output
        assert own.path.exists()
        assert f"removed 1 entry of {own.directory}" in good("clear", stdin="y\n")
        assert not own.directory.exists()

    def test_kernels_go_too(self, own: TuningCache, make_result: Any, make_kernel: Any) -> None:
        own.put(make_result())
        own.put_kernels([make_kernel()])
        assert f"removed 2 entries of {own.directory}" in good("clear", stdin="y\n")
        assert not own.directory.exists()

    def test_yes(self, own: TuningCache, make_result: Any) -> None:
        own.put(make_result())
        assert good("clear", "--yes") == f"removed 1 entry of {own.directory}\n"
        assert good("clear", "--yes") == f"removed 0 entries of {own.directory}\n"

    def test_without_an_answer_nothing_goes(self, own: TuningCache, make_result: Any) -> None:
        own.put(make_result())
        assert run("clear").exit_code == 1
        assert own.path.exists()

    def test_stale(self, own: TuningCache, make_result: Any) -> None:
        nothing = f"no stale results of {own.fingerprint.name} in {own.root}\n"
        assert good("clear", "--stale") == nothing
        own.put(make_result())
        older(own).put(make_result())
        output = good("clear", "--stale", "--yes")
        assert f"{older(own).directory}: 1 entry; torch " in output
        assert output.endswith("removed 1 entry\n")
        assert own.path.exists()
        assert not older(own).directory.exists()


class TestVerify:
    def pretend(self, monkeypatch: pytest.MonkeyPatch, holds: bool) -> list[Any]:
        calls: list[Any] = []

        def verify_entries(results: Any, device: Any, sample: int, progress: Any) -> list[Any]:
            calls.append((len(results), device, sample))
            progress("1/2 M=16")
            broken = VerifiedEntry(KEY, 8.0, None if not holds else 8.5, holds, "[now] slower")
            return [VerifiedEntry("other", 4.0, 4.1, True), broken]

        module = ModuleType("slidesparse.search.verify_cache")
        module.__dict__["verify_entries"] = verify_entries
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return calls

    def test_order_holds(
        self, own: TuningCache, make_result: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = self.pretend(monkeypatch, holds=True)
        own.put_many([make_result(), replace(make_result(m=64), ranked=())])
        result = run("verify", "--sample", 3)
        assert result.exit_code == 0, result.output
        assert calls == [(1, CPU, 3)]
        assert "1/2 M=16" in result.stderr
        row = next(line for line in result.stdout.splitlines() if line.startswith(KEY))
        assert row.split() == [KEY, "8.00", "8.50", "holds", "[now]", "slower"]

    def test_order_changed(
        self, own: TuningCache, make_result: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.pretend(monkeypatch, holds=False)
        own.put(make_result())
        assert bad("verify") == (
            "Error: the stored order no longer holds for 1 of 2 results; "
            "run slidesparse search --fresh for their layers"
        )
        assert "failed  changed" in run("verify").stdout
        result = run("verify", "--json")
        assert result.exit_code == 1
        data = json.loads(result.stdout)
        assert data["holds"] is False
        assert data["entries"][1]["note"] == "[now] slower"

    def test_nothing_to_verify(self, own: TuningCache) -> None:
        assert bad("verify") == f"Error: nothing to verify: no results in {own.path}"
        assert "0 is not in the range" in bad("verify", "--sample", 0, code=2)


def test_help_needs_no_torch() -> None:
    import subprocess

    code = (
        "import sys; from slidesparse.cli.main import cli\n"
        "try: cli(['cache', 'list', '--help'])\n"
        "finally: assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "List every result" in done.stdout
