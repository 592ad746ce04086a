"""`slidesparse compare` on real files: what it prints and writes, and every refusal in one line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from compare_cases import H100, H200, write_sweep
from run_tool import run_tool

from slidesparse.bench.compare.record import read_json
from slidesparse.bench.published.record import write_json as write_published
from slidesparse.bench.published.tables import import_table
from slidesparse.cli.main import cli

TABLE = "gpu,stage,model,dtype,m,pattern,tokens_per_s\n" + "".join(
    f"H100,prefill,Qwen2.5-7B,FP8,{m},{pattern},{rate}\n"
    for m, pattern, rate in ((512, "dense", 400000.0), (512, "6:8", 500000.0), (4096, "dense", 4e5))
)


@pytest.fixture
def results(root: Path) -> Path:
    return root / "bench" / "results" / "nvidia-h200"


@pytest.fixture
def sweeps(tmp_path: Path) -> tuple[str, str]:
    here = write_sweep(tmp_path / "h200.json", H200, 1.0)
    there = write_sweep(tmp_path / "h100.json", H100, 1.5, seed=8)
    return str(here), str(there)


def compare(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["compare", *map(str, arguments)], env={"COLUMNS": "160"})


def assert_refused(result: Result, *texts: str) -> None:
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: "), result.stderr
    for text in texts:
        assert text in line, line


def test_two_gpus_with_prices_as_a_user_runs_it(sweeps: tuple[str, str], tmp_path: Path) -> None:
    file, table = tmp_path / "out.json", tmp_path / "out.csv"
    text = run_tool(
        *("compare", *sweeps, "--price", "h200=4.10/h,h100=2.70/h", "--tokens", "1e9"),
        *("--json", str(file), "--csv", str(table)),
        cache=tmp_path / "cache",
        seconds=60,
    )
    lines = text.splitlines()
    assert lines[0].rstrip() == "What differs"
    heading = next(i for i, line in enumerate(lines) if line.startswith("throughput (tok/s, "))
    (name,) = [i for i, line in enumerate(lines) if line.startswith("machine: name")]
    assert name < heading
    assert "B vs A: worse in 2 of 2; geometric mean 0.67 (0.67 to 0.67)" in lines
    assert "Prices as given, per GPU and hour: h200 4.1, h100 2.7." in text
    record = read_json(file)
    assert [cell.ratio for cell in record.lines[0].cells if cell] == [
        None,
        pytest.approx(2 / 3),
    ]
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 4
    assert {row["verdict"] for row in rows} == {"", "worse"}


def test_committed_results_of_two_searches(results: Path) -> None:
    files = results / "native_qwen2.5-7b_fp8.json", results / "qwen2.5-7b-fp8.json"
    assert_refused(compare(*files), "settings differ: backends cublaslt,cusparselt,torch,native")
    result = compare(*files, "--phase", "adapted", "--where", "pattern=6:8,2:4")
    assert result.exit_code == 0, result.output
    assert "setting: backends *" in result.stdout
    assert "B vs A: better in 4, no difference in 8, worse in 4 of 16" in result.stdout
    assert "What the tool would adapt to each GPU for qwen2.5-7b" in result.stdout


def test_a_committed_file_against_itself_by_pattern(results: Path) -> None:
    result = compare(
        *(results / "qwen2.5-7b-fp8.json", "--split", "pattern", "--where", "layer=qkv"),
        *("--where", "m=4096", "--format", "md"),
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "**What differs**"
    (row,) = [line for line in lines if line.startswith("| B 2:4 (measured) |")]
    assert row.endswith("| best sparse, cusparselt | 1.36 ±0.03 |")


def test_a_published_column_beside_a_measured_one(sweeps: tuple[str, str], tmp_path: Path) -> None:
    table, file = tmp_path / "published.csv", tmp_path / "published.json"
    table.write_text(TABLE, encoding="utf-8")
    write_published(import_table(table, "H100").record, file)
    result = compare(sweeps[0], file, "--by", "variant", "--price", "h100=2.7/h")
    assert result.exit_code == 0, result.output
    assert "B H100 (published)" in result.stdout
    assert "(not measured here)" in result.stdout
    assert " n/a" in result.stdout  # No price for the H200, no energy for the H100.


@pytest.mark.parametrize("flag", [(), ("--all",)])
def test_what_one_file_has_alone_is_counted_or_listed(
    sweeps: tuple[str, str], results: Path, flag: tuple[str, ...]
) -> None:
    files = results / "qwen2.5-7b-fp8.json", results / "native_qwen2.5-7b_fp8.json"
    result = compare(*files, "--phase", "adapted", *flag)
    assert result.exit_code == 0, result.output
    listed = "  time gemm qwen2.5-7b qkv tokens=16 m=16 n=4608 k=3584 dense" in (
        result.stdout.splitlines()
    )
    assert listed == bool(flag)


def test_quiet_writes_and_says_nothing(sweeps: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    result = compare(*sweeps, "--quiet", "--json", file)
    assert (result.exit_code, result.output) == (0, "")
    assert read_json(file).settings["phase"] == "baseline"


def test_the_base_can_be_chosen(sweeps: tuple[str, str]) -> None:
    result = compare(*sweeps, "--base", sweeps[1])
    assert "A vs B: better in 2 of 2; geometric mean 1.50 (1.50 to 1.50)" in result.stdout


def test_settings_that_differ_are_refused(sweeps: tuple[str, str], tmp_path: Path) -> None:
    other = write_sweep(tmp_path / "longer.json", H100, 1.0, repeats=5)
    assert_refused(
        compare(sweeps[0], other), "settings differ: repeats 3 in", "5 in", "--phase adapted"
    )


def test_files_that_share_nothing(results: Path) -> None:
    files = results / "qwen2.5-7b-fp8.json", results / "llama3.2-1b-fp8.json"
    assert_refused(
        compare(*files), "have no workload in common: model is qwen2.5-7b against llama3.2-1b"
    )
    assert_refused(compare(files[0], results / "linear.json"), "what is gemm, gemms of the model")


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("--price", "h20=4/h"), ("unknown GPU 'h20'; nearest: h200",)),
        (("--price", "h200=-4/h"), ("price -4 of h200 is not positive",)),
        (("--price", "b200=4/h"), ("no file is of b200", "NVIDIA H200, NVIDIA H100 80GB HBM3")),
        (("--price", ""), ("cannot read price ''; write GPU=PRICE/h: h200=4.10/h",)),
        (("--tokens", "some"), ("'some' is not a number of tokens; write 1e9",)),
        (("--where", "pattern"), ("cannot read --where 'pattern'; write NAME=VALUE: pattern=6:8",)),
        (("--where", "pattern=8:8"), ("has no row with pattern=8:8; it has 6:8, dense",)),
        (("--metric", "speed"), ("has no metric speed; it has throughput",)),
        (("--split", "colour"), ("has no 'colour' to split by",)),
        (("--adapt", "m"), ("--adapt is for --phase adapted",)),
        (("--base", "else.json"), ("--base else.json is none of the files",)),
        (("--json", "no/such/folder/x.json"), ("cannot write no/such/folder/x.json",)),
    ],
)
def test_bad_options_are_refused_in_one_line(
    sweeps: tuple[str, str], arguments: tuple[str, ...], texts: tuple[str, ...]
) -> None:
    assert_refused(compare(*sweeps, *arguments), *texts)


def test_a_file_given_twice(sweeps: tuple[str, str]) -> None:
    assert_refused(compare(sweeps[0], sweeps[0]), "is given twice; compare two files, or --split")


def test_an_input_is_never_overwritten(sweeps: tuple[str, str]) -> None:
    before = Path(sweeps[1]).read_bytes()
    assert_refused(
        compare(*sweeps, "--json", sweeps[1]), "is one of the files to read; name another"
    )
    assert_refused(
        compare(*sweeps, "--csv", sweeps[0]), "is one of the files to read; name another"
    )
    assert Path(sweeps[1]).read_bytes() == before


def test_one_file_alone(sweeps: tuple[str, str]) -> None:
    assert_refused(compare(sweeps[0]), "name a second file, or a --split")


def test_files_that_are_none(sweeps: tuple[str, str], tmp_path: Path) -> None:
    assert_refused(compare(sweeps[0], tmp_path / "missing.json"), "cannot read", "missing.json")
    broken = tmp_path / "broken.json"
    broken.write_text(Path(sweeps[0]).read_text(encoding="utf-8")[:500], encoding="utf-8")
    assert_refused(compare(sweeps[0], broken), "broken.json is not JSON")
    other = tmp_path / "other.json"
    other.write_text('{"kind": "slidesparse-sweap", "schema_version": 1}', encoding="utf-8")
    assert_refused(compare(sweeps[0], other), "unknown kind", "'slidesparse-sweep'")
    newer = tmp_path / "newer.json"
    text = Path(sweeps[0]).read_text(encoding="utf-8")
    newer.write_text(text.replace('"schema_version": 1', '"schema_version": 99', 1), "utf-8")
    assert_refused(compare(sweeps[0], newer), "schema version 99")
