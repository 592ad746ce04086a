"""README's figures come from the result files: rendered exactly, and --check notices a change."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from bench_records import make_record as make_kernels
from effort_records import make_record as make_efforts

from slidesparse.bench.kernels.record import read_json as read_kernels
from slidesparse.bench.kernels.record import write_json as write_kernels
from slidesparse.bench.search.effort_record import write_json as write_efforts
from slidesparse.bench.search.record import SearchRecord, read_json, write_json
from slidesparse.bench.workload import LayerProblem
from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, Measurement, ProblemResult, Provenance
from slidesparse.devices import Fingerprint
from slidesparse.errors import UsageError
from slidesparse.models import LinearLayer
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem, Scales
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
def script(
    readme_tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    monkeypatch.setattr(readme_tables, "ROOT", tmp_path)
    monkeypatch.setattr(readme_tables, "PAGES", ("README.md",))
    (tmp_path / "README.md").write_text(README)
    write_json(make_record(), tmp_path / "fp8.json")
    monkeypatch.setattr("sys.argv", ["readme_tables.py"])
    return readme_tables


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
    record = replace(
        make_efforts(),
        seconds=(38.4, 335.7),
        problems=24,
        within_2_percent=23,
        worst_ratio=1.0281,
        commit="0123456789abcdef",
    )
    write_efforts(record, tmp_path / "effort-dense-fp8.json")
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


NativeTimes = dict[tuple[str, int, str], dict[str, float]]
"""Microseconds of each backend in the races, by layer, M and pattern."""

NATIVE_FP8: NativeTimes = {
    ("o", 16, "2:4"): {"torch": 9.0, "native": 4.0, "torchao": 5.0},
    ("o", 16, "6:8"): {"torch": 9.0, "native": 6.0},
    ("down", 16, "2:4"): {"torch": 10.0, "torchao": 7.0, "native": 8.0},
    ("down", 16, "6:8"): {"torch": 10.0, "native": 12.0, "torchao": 16.0},
    ("o", 64, "2:4"): {"torch": 9.0, "native": 4.5},
    ("down", 64, "2:4"): {"torch": 12.0, "native": 6.0},
    ("o", 64, "6:8"): {"torch": 9.0, "native": 4.5},
}
"""6:8 at M=64 lacks the second layer."""


def native_record(times: NativeTimes, dtype: DType = DType.FP8) -> SearchRecord:
    """Two layers (x2 and x3) in bf16 with both scales, two M, two patterns."""
    layers = {"o": LinearLayer("o", 64, 64, 2), "down": LinearLayer("down", 64, 128, 3)}
    items, results = [], {}
    for layer in layers.values():
        for m in (16, 64):
            dense = GemmProblem(m, layer.n, layer.k, dtype, DType.BF16, Scales.ROWCOL)
            items.append(LayerProblem(layer, m, dense))
            if any("torch" in race for race in times.values()):
                best = replace(measured(1000.0, False), candidate=Candidate("torch"))
                results[dense] = (ProblemResult(dense, (best,)), Provenance.MEASURED)
            for text in ("2:4", "6:8"):
                sparse = replace(dense, pattern=Pattern.parse(text))
                items.append(LayerProblem(layer, m, sparse))
                race = times.get((layer.name, m, text))
                if race is None:
                    continue
                ranked = sorted(
                    (
                        replace(measured(us, False), candidate=Candidate(name, {}, name != "torch"))
                        for name, us in race.items()
                    ),
                    key=lambda m: m.median_us,
                )
                baseline = next((m for m in ranked if not m.candidate.sparse), None)
                result = ProblemResult(sparse, tuple(ranked), baseline=baseline)
                results[sparse] = (result, Provenance.MEASURED)
    return replace(make_record(), layers=tuple(items), results=results)


FUSED = """\
| M | best dense, ms | 2:4 (bound 2.00) | 6:8 (bound 1.33) |
| ---: | ---: | ---: | ---: |
| 16 | 5.00 | 1.66, native 1, torchao 1 | 1.00, native 2 |
| 64 | 5.00 | 2.00, native 2 | - |

Best dense over best sparse, of one race on the same pruned weights (milliseconds of the best \
sparse where nothing dense applies these scales); then, in how many linears which sparse backend \
is the fastest. The column of dense times is on full weights.
"""
# 2:4 at M=16: (2 * 4 + 3 * 8) / (2 * 5 + 3 * 7). In 6:8 torchao was measured for down only.
RIVALS = """\
| M | 2:4 (bound 2.00) | 6:8 (bound 1.33) |
| ---: | ---: | ---: |
| 16 | 1.03 (torchao) | 0.75 (torchao, 1 of 2 linears) |
| 64 | - | - |

Native's time over that of the fastest other sparse backend in the same races, linears weighted \
by their count: below 1, native is faster.
"""
# o, 2:4, M=16: 0.625 * 64 * 64 + 16 * 64 + 16 * 64 * 2 bytes in 4 ns. 6:8 runs 96 and 192 columns.
BANDWIDTH = """\
| linear | N | K | M | 2:4 (bound 2.00) | 6:8 (bound 1.33) |
| --- | ---: | ---: | ---: | ---: | ---: |
| o | 64 | 64 | 16 | 0.0 us, 1,408 | 0.0 us, 1,237 |
| o | 64 | 64 | 64 | 0.0 us, 3,300 | 0.0 us, 4,039 |
| down | 64 | 128 | 16 | 0.0 us, 1,152 | 0.0 us, 1,067 |
| down | 64 | 128 | 64 | 0.0 us, 3,584 | - |

Native's time, and the GB/s (1e9 bytes) of what it has to move, from memory and to it: 0.625 N K' \
of packed weight, M K' of tokens, 2 M N of output.
"""


def source(dtype: str, count: int) -> str:
    return (
        f"Scales rowcol: tiny, {dtype} to bf16, GEMM only, NVIDIA H200, cuBLASLt 13.1.0, "
        f"cuSPARSELt 0.8.1; {count} problems searched at normal effort in 123 s on 2026-03-03 "
        "(commit 0123456789ab).\n"
    )


def block(name: str, text: str = "") -> str:
    return f"<!-- table: {name} -->\n{text}<!-- end table -->"


def test_native_is_compared_with_dense_and_with_other_sparse_backends(
    script: ModuleType, tmp_path: Path
) -> None:
    write_json(native_record(NATIVE_FP8), tmp_path / "native_tiny_fp8.json")
    made = f"{FUSED}\n{RIVALS}\n{source('fp8_e4m3', 11)}"
    assert script.render(block("native_tiny_fp8")) == block("native_tiny_fp8", made)


def test_few_tokens_have_their_bandwidth_too(script: ModuleType, tmp_path: Path) -> None:
    """The layers are tiny, so each time is a thousandth."""
    times = {key: {n: us / 1000 for n, us in race.items()} for key, race in NATIVE_FP8.items()}
    write_json(native_record(times), tmp_path / "native_tiny_fp8_decode.json")
    made = script.render(block("native_tiny_fp8_decode"))
    assert f"\n\n{BANDWIDTH}\n{source('fp8_e4m3', 11)}" in made


def test_native_without_anything_dense_or_other_is_given_in_milliseconds(
    script: ModuleType, tmp_path: Path
) -> None:
    """INT8 with both scales: no library does it."""
    times = {key: {"native": 1000 * race["native"]} for key, race in NATIVE_FP8.items()}
    write_json(native_record(times, DType.INT8), tmp_path / "native_int8.json")
    fused = FUSED.replace("5.00", "-").replace("2.00, n", "27.00 ms, n")
    fused = fused.replace("1.66, native 1, torchao 1", "32.00 ms, native 2")
    fused = fused.replace("1.00, native 2", "48.00 ms, native 2")
    made = f"{fused}\n{source('int8', 7)}"
    assert script.render(block("native_int8")) == block("native_int8", made)


def test_a_missing_result_file_is_named(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "native_missing.json"
    text = f"cannot read {file}: No such file or directory"
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        script.render(block("native_missing"))
    (tmp_path / "README.md").write_text(block("native_missing"))
    assert script.main() == 1
    assert capsys.readouterr().err == f"README.md: {text}\n"
    assert (tmp_path / "README.md").read_text() == block("native_missing")


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


def test_every_committed_search_with_the_native_kernel_is_whole(root: Path) -> None:
    """Where nothing dense applies both scales, as in INT8, dense problems have no result."""
    for file in sorted((root / "bench" / "results").glob("*/native_*.json")):
        record = read_json(file)
        assert all(problem.pattern.dense for problem in record.skipped), file
        assert len(record.commit) == 40, file
        assert {item.problem.scales for item in record.layers} == {Scales.ROWCOL}, file
        sparse = {i.problem for i in record.layers if not i.problem.pattern.dense}
        assert sparse <= set(record.results), file
        assert "native" in record.settings["backends"], file


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
