"""`slidesparse results`: what a user sees of good files, bad files and published tables."""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from published_tables import GEMMS, STEPS, write_table
from result_files import KINDS, write_kind

from slidesparse.cli.main import cli


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["results", *map(str, arguments)])


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return write_kind("slidesparse-sweep", tmp_path)


def test_show_says_what_each_file_is(tmp_path: Path) -> None:
    paths = [write_kind(kind, tmp_path) for kind in KINDS]
    result = run("show", *paths)
    assert result.exit_code == 0, result.output
    for kind, path in zip(KINDS, paths, strict=True):
        assert f"{path}: {kind} (" in result.output
    assert "H100 (published)" in result.output


def test_show_writes_all_rows(sweep: Path, tmp_path: Path) -> None:
    table, data = tmp_path / "rows.csv", tmp_path / "rows.json"
    result = run("show", sweep, "-q", "--csv", table, "--json", data)
    assert (result.exit_code, result.output) == (0, "")
    with table.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 5
    (found,) = json.loads(data.read_text())
    assert found["rows"][0]["workload"]["what"] == "step"


def test_show_refuses_what_it_could_not_write(sweep: Path, tmp_path: Path) -> None:
    result = run("show", sweep, "--csv", tmp_path / "no" / "rows.csv")
    assert result.exit_code == 2
    assert f"the folder {tmp_path / 'no'} does not exist" in result.output
    result = run("show", sweep, "--csv", tmp_path / "x", "--json", tmp_path / "x")
    assert result.exit_code == 2
    assert "--json and --csv both name" in result.output


def test_a_pipe_behind_stdout_is_written_to(sweep: Path, tmp_path: Path) -> None:
    show = ("results", "show", str(sweep), "-q", "--json", "/dev/stdout")
    done = subprocess.run(
        [sys.executable, "-m", "slidesparse", *show],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[0]["kind"] == "slidesparse-sweep"


def test_a_socket_is_refused(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # The path of a socket has few characters.
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("it")
        result = run("show", sweep, "--json", "it")
    assert result.exit_code == 2
    assert result.output == "Error: cannot write it: it is a socket; name a file or a pipe\n"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["show"], "--json"),
        (["show"], "--csv"),
        (["validate"], "--json"),
        (["import", "--gpu", "H100"], "-o"),
    ],
)
def test_what_is_read_is_never_written_over(
    sweep: Path, tmp_path: Path, arguments: list[str], option: str
) -> None:
    before, link = sweep.read_bytes(), tmp_path / "link"
    link.symlink_to(sweep)
    result = run(*arguments, sweep, option, link)
    assert result.exit_code == 2
    assert result.output == f"Error: {option} {link} is one of the files to read; name another\n"
    assert sweep.read_bytes() == before


def test_show_refuses_a_bad_file_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"kind": "slidesparse-sweeps"}')
    result = run("show", path)
    assert result.exit_code == 2
    assert result.output == (
        f"Error: {path} is of an unknown kind 'slidesparse-sweeps'; "
        "did you mean 'slidesparse-sweep'?\n"
    )


def test_validate_of_good_files(root: Path, sweep: Path) -> None:
    committed = sorted((root / "bench" / "results").rglob("*.json"))
    result = run("validate", sweep, *committed)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == f"{sweep}: valid, slidesparse-sweep"
    assert len(result.output.splitlines()) == 1 + len(committed)


def test_validate_names_the_first_fault_of_each(sweep: Path, tmp_path: Path) -> None:
    data = json.loads(sweep.read_text())
    data["cells"][1]["figures"]["median_us"] = 1.0
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(data))
    missing, report = tmp_path / "no.json", tmp_path / "report.json"
    result = run("validate", wrong, sweep, missing, "--json", report)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    lines = result.output.splitlines()
    assert f"{sweep}: valid, slidesparse-sweep" in lines
    assert (
        f"{wrong} is damaged: cells.1.figures: median_us 1.0 is not 8000.0, that of the samples"
        in lines
    )
    assert f"cannot read {missing}: No such file or directory" in lines
    assert lines[-1] == "Error: 2 of 3 files are not valid"
    found = json.loads(report.read_text())
    assert [item["valid"] for item in found] == [False, True, False]
    assert [item["kind"] for item in found] == [None, "slidesparse-sweep", None]


def test_validate_quietly(sweep: Path) -> None:
    result = run("validate", "-q", sweep)
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize(("text", "count", "left"), [(STEPS, 3, 1), (GEMMS, 5, 3)])
def test_import_makes_a_valid_file(tmp_path: Path, text: str, count: int, left: int) -> None:
    table, path = write_table(tmp_path, text), tmp_path / "h100.json"
    result = run("import", table, "--gpu", "h100", "-o", path)
    assert result.exit_code == 0, result.output
    first, *rest = result.output.splitlines()
    assert first == f"imported {count} figures of H100 (published) to {path}"
    assert len(rest) == left
    assert all(line.startswith("left out 1 line: ") for line in rest)
    assert run("validate", path).exit_code == 0
    assert run("import", table, "--gpu", "H100", "-o", path, "-q").output == ""


def test_import_refuses_bad_tables_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "h100.json"
    table = write_table(tmp_path, STEPS.replace("60000.0", "many"))
    result = run("import", table, "--gpu", "H100", "-o", path)
    assert result.exit_code == 2
    assert result.output == (
        f"Error: {table}: line 3, column 'tokens_per_s': 'many' is not a positive number\n"
    )
    assert not path.exists()
    table = write_table(tmp_path, STEPS)
    result = run("import", table, "--gpu", "H200", "-o", path)
    assert result.exit_code == 2
    assert "has no GPU 'H200'; did you mean H100? It has H100, A100" in result.output
    result = run("import", table, "--gpu", "H100", "-o", tmp_path)
    assert result.exit_code == 2
    assert "it is a folder; name a file" in result.output
    result = run("import", table, "--gpu", "H100", "-o", path, "--source", " ")
    assert result.exit_code == 2
    assert "--source is empty" in result.output


@pytest.mark.parametrize("arguments", [["show"], ["validate"], ["import"], ["shwo"]])
def test_usage(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_show_needs_no_torch(sweep: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from slidesparse.cli.main import cli
cli(["results", "show", {str(sweep)!r}], standalone_mode=False)
print([name for name in ("torch", "numpy", "triton") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
