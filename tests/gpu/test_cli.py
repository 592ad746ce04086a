"""The commands on the GPU, as a user runs them."""

from __future__ import annotations

import json
import subprocess

import pytest

from slidesparse.bench.search.record import read_json


@pytest.fixture
def run(tmp_path):
    def call(*arguments: str, expect: int = 0) -> str:
        done = subprocess.run(
            ["slidesparse", *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    return call


@pytest.mark.parametrize(("dtype", "out"), [("fp8", "bf16"), ("int8", "int32")])
def test_search_from_command_line_to_cache(run, tmp_path, dtype, out):
    file, cache = tmp_path / "result.json", str(tmp_path / "cache")
    common = ["--model", "llama3.2-1b", "--dtype", dtype, "--m", "16,1024", "--cache-dir", cache]
    # Without --fresh the results that ship with the package would do on this machine.
    printed = run("search", *common, "--patterns", "2:4,6:8", "--json", str(file), "--fresh")
    record = read_json(file)
    assert not record.skipped
    assert len(record.results) == 4 * 2 * 3
    assert record.layers[0].problem.out.value == out
    for name in ("qkv", "gate_up", "all layers"):
        assert name in printed
    for result, _ in record.results.values():
        assert result.best.clock_mhz is not None
        assert result.best.cold_l2
    again = run("search", *common, "--patterns", "2:4,6:8")
    assert "from the cache" in again
    exported = tmp_path / "export.json"
    run("cache", "export", str(exported), "--cache-dir", cache)
    other = str(tmp_path / "other")
    run("cache", "import", str(exported), "--cache-dir", other)
    imported = run("search", *common, "--patterns", "2:4,6:8", "--cache-dir", other)
    assert "from the cache" in imported


def test_doctor_finds_the_libraries(run):
    found = json.loads(run("doctor", "--json"))
    text = json.dumps(found)
    for name in ("cublaslt", "cusparselt", "torch", "H200" if "H200" in text else "NVIDIA"):
        assert name in text


def test_dry_run_lists_candidates_and_runs_none(run, tmp_path):
    cache = str(tmp_path / "cache")
    printed = run(
        *("search", "--model", "llama3.2-1b", "--dtype", "fp8", "--m", "64", "--dry-run"),
        *("--cache-dir", cache),
    )
    assert "cublaslt" in printed
    assert "cusparselt" in printed
    assert "nothing was run" in printed
