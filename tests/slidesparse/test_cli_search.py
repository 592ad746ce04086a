"""`slidesparse search` on a tiny model on the CPU: what it prints and what it writes agree."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result

from slidesparse.bench.search.record import CSV_COLUMNS, SearchRecord, read_json
from slidesparse.bench.search.totals import planned_total, totals
from slidesparse.candidate import Provenance
from slidesparse.cli.main import cli
from slidesparse.devices import CPU, detect
from slidesparse.pattern import DENSE, Pattern
from slidesparse.plan import choose

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny" / "config.json"
CONFIG = json.loads(TINY.read_text())
LAYERS = {"qkv": (192, 64), "o": (64, 64), "gate_up": (192, 64), "down": (64, 96)}
TOKENS = (7, 33)
PATTERNS = ("2:4", "6:8")


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def search(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, ["search", *arguments], env={"COLUMNS": None, **environment})


class Searched(NamedTuple):
    result: Result
    record: SearchRecord
    folder: Path
    arguments: tuple[str, ...]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder = tmp_path_factory.mktemp("search")
    model = make_model(folder / "tiny")
    arguments = (
        *("--model", str(model), "--dtype", "fp8", "--device", "cpu", "--effort", "quick"),
        *("--m", "7,33", "--patterns", "2:4,2:8", "--seed", "5", "--cache-dir", str(folder / "c")),
    )
    files = ("--json", str(folder / "out.json"), "--csv", str(folder / "out.csv"))
    result = search(*arguments, *files)
    assert result.exit_code == 0, result.output
    return Searched(result, read_json(folder / "out.json"), folder, arguments)


def table(output: str, title: str) -> list[list[str]]:
    """The lines below a table's title, up to the empty one at its end, split at two spaces."""
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title))
    rows = []
    for line in lines[start + 1 :]:
        if rows and not line.strip():
            break
        if line.strip() and not set(line.strip()) <= {"\N{BOX DRAWINGS LIGHT HORIZONTAL}", " "}:
            rows.append(re.split(r"\s{2,}", line.strip()))
    return rows


def cell_time(us: float) -> str:
    return f"{us:,.0f}" if us >= 1000 else f"{us:.1f}"


def test_the_first_line_says_that_there_is_no_gpu(searched: Searched) -> None:
    first = searched.result.stdout.splitlines()[0]
    assert first == (
        f"No GPU in use: searching {searched.record.model} on the CPU ({detect(CPU).name}) with "
        "reference backends and small defaults. These figures say nothing about a GPU and are "
        "filed apart."
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_every_cell_of_a_layer_is_what_was_measured(searched: Searched, layer: str) -> None:
    n, k = LAYERS[layer]
    rows = table(searched.result.stdout, f"{layer}  N={n} K={k}  x1")
    assert rows[0] == ["2:4", "6:8"]
    assert rows[1] == ["M", "best dense", "us", "TFLOP/s", "bound 2.00x", "bound 1.33x"]
    assert len(rows) == 2 + 2 * len(TOKENS)
    results = searched.record.results
    at = {
        (item.tokens, str(item.problem.pattern)): results[item.problem][0]
        for item in searched.record.layers
        if item.layer.name == layer
    }
    for number, tokens in enumerate(TOKENS):
        first, second = rows[2 + 2 * number : 4 + 2 * number]
        dense = at[tokens, "dense"].best
        rate = 2 * tokens * n * k / dense.median_us / 1e6
        assert first[:4] == [
            str(tokens),
            f"cpu {dense.candidate.params['path']}",
            cell_time(dense.median_us),
            f"{rate:.2f}",
        ]
        for column, pattern in enumerate(PATTERNS):
            choice = choose(at[tokens, pattern])
            sure = "" if choice.clear else "~"
            time = cell_time(choice.sparse.median_us)
            planned = {"sparse": "S", "dense": "D"}[choice.verdict]
            assert first[4 + column] == f"{time} {sure}{choice.gain:.2f}x {planned}"
            assert second[column] == "cpu-slid"


def test_the_totals_are_the_sums_of_the_layers(searched: Searched) -> None:
    record = searched.record
    rows = table(searched.result.stdout, "all layers, weighted by their count")
    for number, tokens in enumerate(TOKENS):
        first, second = rows[2 + 2 * number : 4 + 2 * number]
        dense = sum(
            record.results[item.problem][0].best.median_us
            for item in record.layers
            if item.tokens == tokens and item.problem.pattern == DENSE
        )
        assert first[:2] == [str(tokens), f"{dense / 1e3:.3f}"]
        for column, name in enumerate(PATTERNS):
            choices = [
                choose(record.results[item.problem][0])
                for item in record.layers
                if item.tokens == tokens and str(item.problem.pattern) == name
            ]
            assert len(choices) == 4
            base = sum(c.baseline.median_us for c in choices)
            sparse = sum(c.sparse.median_us for c in choices)
            planned = sum(c.chosen.median_us for c in choices)
            pattern = Pattern.parse(name)
            assert totals(record, tokens, pattern) == pytest.approx((base, sparse))
            assert planned_total(record, tokens, pattern) == pytest.approx(planned)
            assert first[2 + column] == f"{sparse / 1e3:.3f} ms {base / sparse:.2f}x"
            assert second[column] == f"planned {base / planned:.2f}x"
            assert planned <= base * 1.0001, "nobody gets slower"


def test_the_notes_say_what_was_compared(searched: Searched) -> None:
    output = " ".join(searched.result.stdout.split())
    assert (
        "GEMM only (fp8_e4m3 to bf16, scales tensor), microseconds, medians of interleaved runs; "
        "ratio = best dense on the same pruned weights / best sparse; ~ inside the spread; S or D: "
        "sparse or dense is planned."
    ) in output
    seconds, cache = searched.record.seconds, searched.folder / "c"
    assert f"18 of 18 problems in {seconds:.1f} s, seed 5; cache: {cache}/" in output
    assert "from the cache" not in output


def test_the_json_file_holds_the_whole_search(searched: Searched) -> None:
    record = searched.record
    assert record.model == "tiny"
    assert (record.tp, record.interrupted, record.skipped) == (1, False, {})
    assert record.fingerprint == detect(CPU)
    assert record.settings == {
        "effort": "quick",
        "budget_s": None,
        "fresh": False,
        "backends": ["cpu", "cpu-slid"],
        "seed": 5,
        "devices": ["cpu"],
    }
    asked = [(i.layer.name, str(i.problem.pattern), i.tokens) for i in record.layers]
    assert asked == [(n, p, m) for n in LAYERS for p in ("dense", *PATTERNS) for m in TOKENS]
    # qkv and gate_up have one shape: 3 shapes, 2 M, 3 patterns.
    assert len(record.results) == 18
    for problem, (result, provenance) in record.results.items():
        assert provenance is Provenance.MEASURED
        assert result.problem == problem
        assert result.seed == 5
        assert [m.median_us for m in result.ranked] == sorted(m.median_us for m in result.ranked)
        assert not any(m.cold_l2 for m in result.ranked), "the CPU's caches are warm"


def test_the_csv_file_says_the_same(searched: Searched) -> None:
    with (searched.folder / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_COLUMNS
    expected = []
    for item in searched.record.layers:
        result, _ = searched.record.results[item.problem]
        for rank, measurement in enumerate(result.ranked, start=1):
            expected.append((item.layer.name, str(item.tokens), str(item.problem.pattern), rank))
            row = rows[len(expected) - 1]
            assert row["median_us"] == f"{measurement.median_us:.3f}"
            assert row["backend"] == measurement.candidate.backend
            assert row["ratio_to_dense"] == (
                f"{result.baseline.median_us / measurement.median_us:.4f}"
            )
            assert row["provenance"] == "measured"
    assert [(r["layer"], r["m"], r["pattern"], int(r["rank"])) for r in rows] == expected


def test_the_second_time_everything_is_cached_and_marked(searched: Searched) -> None:
    again = search(*searched.arguments, "--json", str(searched.folder / "again.json"))
    assert again.exit_code == 0
    record = read_json(searched.folder / "again.json")
    kinds = Counter(provenance for _, provenance in record.results.values())
    assert kinds == {Provenance.CACHED: 18}
    assert {p: r for p, (r, _) in record.results.items()} == {
        p: r for p, (r, _) in searched.record.results.items()
    }
    assert "* from the cache" in again.stdout
    for row in table(again.stdout, "down  N=64 K=96  x1")[2::2]:
        assert row[2].endswith("*")
        assert "* " in row[4]


def test_a_pipe_gets_no_colour_and_no_bar(searched: Searched) -> None:
    assert "\x1b" not in searched.result.output
    again = search(*searched.arguments, NO_COLOR="1", FORCE_COLOR="")
    assert "\x1b" not in again.output
    assert again.stderr == ""


def test_quiet_prints_nothing(searched: Searched) -> None:
    path = searched.folder / "quiet.json"
    result = search(*searched.arguments, "--quiet", "--json", str(path))
    assert (result.exit_code, result.output) == (0, "")
    assert len(read_json(path).results) == 18


def test_a_dry_run_lists_and_runs_nothing(tmp_path: Path) -> None:
    model = make_model(tmp_path / "tiny")
    result = search(
        *("--model", str(model), "--dtype", "int8", "--m", "7", "--patterns", "6:8", "--dry-run"),
        *("--cache-dir", str(tmp_path / "cache"), "--json", str(tmp_path / "offers.json")),
        *("--device", "cpu"),
    )
    assert result.exit_code == 0
    lines = result.stdout.splitlines()[1:]
    assert lines == [
        "M=7 N=192 K=64 int8->int32 none dense: 1 cpu",
        "M=7 N=192 K=64 int8->int32 none 6:8: 1 cpu-slid",
        "M=7 N=64 K=64 int8->int32 none dense: 1 cpu",
        "M=7 N=64 K=64 int8->int32 none 6:8: 1 cpu-slid",
        "M=7 N=64 K=96 int8->int32 none dense: 1 cpu",
        "M=7 N=64 K=96 int8->int32 none 6:8: 1 cpu-slid",
        "6 problems, 6 candidates before neighbours; nothing was run",
    ]
    assert not (tmp_path / "cache").exists()
    offers = json.loads((tmp_path / "offers.json").read_text())
    assert [o["problem"]["pattern"] for o in offers] == ["dense", "6:8"] * 3
    assert offers[0]["candidates"][0]["params"] == {"path": "int_mm"}


def test_what_failed_and_was_left_out_keeps_its_brackets(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    """rich reads [cuda13] as markup and drops it, which would break the command that mends."""
    from dataclasses import replace

    from slidesparse.candidate import Candidate, Failure
    from slidesparse.cli.console import make_console
    from slidesparse.cli.search_table import print_record

    record = searched.record
    problem, (result, provenance) = next(iter(record.results.items()))
    remedy = "not installed; pip install 'slidesparse[cuda13]' (or [cuda12] with [/] a CUDA 12)"
    failure = Failure(Candidate("torch", {"i": 1}), "refused", "shape [M, K] of [/usr/lib]")
    changed = replace(result, left_out={"cublaslt": remedy}, failures=(failure, failure))
    skipped = {replace(problem, m=999): "no [memory] at all"}
    results = {**record.results, problem: (changed, provenance)}
    print_record(replace(record, results=results, skipped=skipped), make_console())
    output = capsys.readouterr().out
    assert f"left out: cublaslt in 1 problems: {remedy}\n" in output
    assert "failed: 2 x torch (refused): shape [M, K] of [/usr/lib]\n" in output
    assert f"skipped {replace(problem, m=999)}: no [memory] at all\n" in output


def test_a_partial_search_shows_dashes_and_exits_well(tmp_path: Path) -> None:
    """Dense backends alone: the sparse problems are skipped and say why."""
    model = make_model(tmp_path / "tiny")
    result = search(
        *("--model", str(model), "--dtype", "fp8", "--m", "7", "--patterns", "6:8"),
        *("--backends", "cpu", "--effort", "quick", "--cache-dir", str(tmp_path / "cache")),
        *("--device", "cpu"),
    )
    assert result.exit_code == 0
    assert table(result.stdout, "down  N=64 K=96  x1")[2][-1] == "-"
    reason = "no candidate supports it (no backend takes part)"
    assert f"skipped M=7 N=64 K=96 fp8_e4m3->bf16 tensor 6:8: {reason}" in result.stdout
    assert f"skipped M=7 N=64 K=96 fp8_e4m3->bf16 tensor 6:8: {reason}" in result.stderr
    assert "3 of 6 problems in" in result.stdout
