"""README's figures come from the result files: rendered exactly, and --check notices a change."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from bench_records import make_record as make_kernels

from slidesparse.bench.kernel_record import read_json as read_kernels
from slidesparse.bench.kernel_record import write_json as write_kernels
from slidesparse.bench.record import SearchRecord, read_json, write_json
from slidesparse.bench.workload import LayerProblem
from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Measurement, ProblemResult, Provenance
from slidesparse.devices import Fingerprint
from slidesparse.models import LinearLayer
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem
from slidesparse.serialize import from_plain

README = """# Title

<!-- table: fp8 -->
old
<!-- end table -->

between

<!-- table: fp8 -->
<!-- end table -->
"""


def measured(us: float, sparse: bool) -> Measurement:
    backend = "cusparselt" if sparse else "cublaslt"
    return Measurement(Candidate(backend, {}, sparse), us, 0.0, 45, 1, 0.0, 0.0)


def make_record() -> SearchRecord:
    """Two layers (x2 and x3), two M; 6:8 wins in one layer; M=64 of the second was skipped."""
    layers = (LinearLayer("o", 64, 64, 2), LinearLayer("down", 64, 96, 3))
    times = {("o", 16): (1000.0, 800.0), ("down", 16): (2000.0, 2500.0), ("o", 64): (9.0, 8.0)}
    items, results = [], {}
    for layer in layers:
        for m in (16, 64):
            dense = GemmProblem(m, layer.n, layer.k, DType.FP8, DType.BF16)
            sparse = replace(dense, pattern=Pattern.parse("6:8"))
            items += [LayerProblem(layer, m, dense), LayerProblem(layer, m, sparse)]
            if (layer.name, m) not in times:
                continue
            dense_us, sparse_us = times[layer.name, m]
            # Unpruned weights are a little slower: the ratio must not be taken against these.
            best = measured(1.1 * dense_us, False)
            both = (measured(dense_us, False), measured(sparse_us, True))
            results[dense] = (ProblemResult(dense, (best,), baseline=best), Provenance.MEASURED)
            results[sparse] = (ProblemResult(sparse, both, baseline=both[0]), Provenance.MEASURED)
    return SearchRecord(
        model="tiny",
        tp=1,
        fingerprint=Fingerprint("NVIDIA H200", 90, 132, 143156, "580", "13.1.0", "0.8.1"),
        settings={"effort": "normal"},
        seconds=123.4,
        interrupted=False,
        layers=tuple(items),
        results=results,
        skipped={},
        commit="0123456789abcdef",
        created="2026-03-03T10:00:00+00:00",
    )


# Dense: 1.1 (2 * 1000 + 3 * 2000) us. 6:8: 8000 / (2 * 800 + 3 * 2500), planned dense for down.
TABLE = """<!-- table: fp8 -->
| M | best dense, ms | 6:8 (bound 1.33) |
| ---: | ---: | ---: |
| 16 | 8.80 | 0.88, planned 1.05 |
| 64 | - | - |

tiny, fp8_e4m3 to bf16, GEMM only, NVIDIA H200, cuBLASLt 13.1.0, cuSPARSELt 0.8.1; 6 problems \
searched at normal effort in 123 s on 2026-03-03 (commit 0123456789ab).
<!-- end table -->"""


@pytest.fixture
def script(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = root / "scripts" / "readme_tables.py"
    spec = importlib.util.spec_from_file_location("readme_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "PAGES", ("README.md",))
    (tmp_path / "README.md").write_text(README)
    write_json(make_record(), tmp_path / "fp8.json")
    monkeypatch.setattr("sys.argv", ["readme_tables.py"])
    return module


def test_every_block_is_made_anew_and_nothing_else_changes(script: ModuleType) -> None:
    made = script.render(README)
    assert made == f"# Title\n\n{TABLE}\n\nbetween\n\n{TABLE}\n"
    assert script.render(made) == made
    assert script.render("no table\n") == "no table\n"


def test_the_script_writes_and_the_check_then_passes(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["readme_tables.py", "--check"])
    assert script.main() == 1
    assert (tmp_path / "README.md").read_text() == README, "--check writes nothing"
    assert capsys.readouterr().out == (
        "README.md is not what bench/results says; run python scripts/readme_tables.py\n"
    )
    monkeypatch.setattr("sys.argv", ["readme_tables.py"])
    assert script.main() == 0
    assert TABLE in (tmp_path / "README.md").read_text()
    monkeypatch.setattr("sys.argv", ["readme_tables.py", "--check"])
    assert script.main() == 0
    assert capsys.readouterr().out == ""


def test_the_check_notices_another_result(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(script.render(README))
    write_json(replace(make_record(), seconds=200.0), tmp_path / "fp8.json")
    text = (tmp_path / "README.md").read_text()
    assert "in 123 s" in text
    assert "in 200 s" in script.render(text)


def test_efforts_become_a_line_each(script: ModuleType, tmp_path: Path) -> None:
    data = {
        "efforts": ["normal", "full"],
        "seconds": [38.4, 335.7],
        "problems": 24,
        "within_2_percent": 23,
        "worst_ratio": 1.0281,
        "commit": "0123456789abcdef",
    }
    (tmp_path / "effort-dense-fp8.json").write_text(json.dumps(data))
    assert script.render("<!-- table: efforts -->\n<!-- end table -->") == (
        "<!-- table: efforts -->\n"
        "* dense-fp8: normal took 38 s, full 336 s for 24 problems; raced in turn, 23 winners of "
        "normal are within 2 % of those of full, the worst is 2.8 % slower (commit 0123456789ab)\n"
        "<!-- end table -->"
    )


def test_kernels_become_a_line_each(script: ModuleType, tmp_path: Path) -> None:
    write_kernels(make_kernels(), tmp_path / "kernels.json")
    assert script.render("<!-- table: kernels -->\n<!-- end table -->") == (
        "<!-- table: kernels -->\n"
        "| kernel | K | pattern | M = 16 | M = 4096 |\n"
        "| --- | ---: | --- | ---: | ---: |\n"
        "| quantize | 3584 | 6:8 | 4.0, 4 %, 0.75x | 50.0, 82 %, 1.20x |\n"
        "| dequantize | 3584 | - | failed | - |\n"
        "\n"
        "Microseconds; percent of the bandwidth of a large copy; time of the fastest alternative "
        "(vllm, torch.compile) over ours. tiny, fp8_e4m3, NVIDIA H200, a copy runs at 4,000 GB/s, "
        "an empty kernel takes 1.50 us; 1 of 3 kernels tuned; ours is more than 5 % slower than an "
        "alternative in 1 of 3 cells; the worst: quantize M=16 K=3584 bf16->fp8_e4m3 6:8, vllm "
        "takes 0.75 of our time. Measured in 62 s on 2026-03-03 (commit 0123456789ab).\n"
        "<!-- end table -->"
    )


def test_the_committed_pages_say_what_the_committed_results_say(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(root / "scripts" / "readme_tables.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_committed_search_is_whole(root: Path) -> None:
    files = sorted((root / "bench" / "results").glob("*/*-[fi][pn]*8.json"))
    searches = [file for file in files if not file.name.startswith(("effort-", "kernels"))]
    assert len(searches) >= 4
    for file in searches:
        record = read_json(file)
        assert not record.skipped, file
        assert len(record.commit) == 40, file
        assert {item.problem for item in record.layers} <= set(record.results), file


def test_every_committed_benchmark_of_kernels_is_whole(root: Path) -> None:
    files = sorted((root / "bench" / "results").glob("*/kernels*.json"))
    assert len(files) >= 2
    for file in files:
        record = read_kernels(file)
        assert not record.skipped, file
        assert len(record.commit) == 40, file
        assert all(row.error is None and row.tuned for row in record.rows), file
        assert all(row.alternatives for row in record.rows), file


def test_the_bundled_cache_is_read_without_a_warning(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = root / "slidesparse" / "data" / "caches" / "nvidia-h200.json"
    fingerprint = from_plain(Fingerprint, json.loads(file.read_text())["fingerprint"])
    cache = TuningCache(tmp_path, fingerprint)
    assert len(cache.bundled_entries()) >= 480
    assert len(cache.bundled_kernels()) >= 418
    assert not caplog.records
