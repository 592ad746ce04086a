"""`slidesparse report`: what it writes where, and bad input in one line each."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from report_records import write_results

from slidesparse.cli.main import cli

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

PNG = b"\x89PNG\r\n\x1a\n"
SECONDS = 10.0
"""Of processor time that a page of every committed result file may take."""

BYTES = 3_000_000
"""Of that page, so that it can be mailed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_results(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


def refusal(*arguments: object, code: int = 2) -> str:
    """The one line that bad input ends in."""
    result = report(*arguments)
    assert result.exit_code == code, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def test_a_page_and_its_figures(here: Path, folder: Path) -> None:
    result = report(folder / "sweep.json", folder / "linear.json", "-o", "out.html")
    assert result.exit_code == 0, result.output
    page = (here / "out.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    pictures = sorted((here / "out_figures").iterdir())
    assert len(pictures) == page.count("<figure>") == 6
    assert all(path.read_bytes().startswith(PNG) for path in pictures)
    assert result.output.startswith("out.html: 3 sections, 6 figures (PNG files in out_figures), ")
    assert "no data for: Utilisation over concurrency, Accuracy against speed" in result.output


def test_the_default_is_a_page_of_that_name(here: Path, folder: Path) -> None:
    assert report(folder / "kernels.json", "--title", "Mine & yours").exit_code == 0
    assert "<h1>Mine &amp; yours</h1>" in (here / "report.html").read_text(encoding="utf-8")
    # Without a figure there is no folder for any.
    assert [path.name for path in here.iterdir()] == ["report.html"]


@pytest.mark.parametrize("arguments", [["-o", "sub/README.md"], ["--format", "md"]])
def test_markdown_links_its_figures(here: Path, folder: Path, arguments: list[str]) -> None:
    (here / "sub").mkdir()
    assert report(folder / "sweep.json", *arguments, "--figures", "pictures").exit_code == 0
    path = here / ("sub/README.md" if "-o" in arguments else "report.md")
    links = re.findall(r"^!\[.*\]\(<(.*)>\)$", path.read_text(), flags=re.MULTILINE)
    assert len(links) == 4
    assert all((path.parent / link).read_bytes().startswith(PNG) for link in links)


def test_standard_output_gets_the_text_alone(here: Path, folder: Path) -> None:
    result = report(folder / "sweep.json", "-o", "-", "--format", "md")
    assert result.exit_code == 0
    assert result.stdout.startswith("# SlideSparse report\n")
    assert "![" not in result.stdout
    assert list(here.iterdir()) == []
    page = report(folder / "kernels.json", "-o", "-").stdout
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>\n") or page.endswith("</html>")


def test_what_is_no_file_gets_no_figures_beside_it(here: Path, folder: Path) -> None:
    result = report(folder / "sweep.json", "-o", "/dev/stdout", "--format", "md")
    assert result.exit_code == 0
    assert result.stdout.startswith("# SlideSparse report\n")
    os.mkfifo(here / "pipe.md")
    # Open for reading, too, so that writing waits for nobody.
    pipe = os.open(here / "pipe.md", os.O_RDWR | os.O_NONBLOCK)
    try:
        assert report(folder / "accuracy.json", "-o", "pipe.md").exit_code == 0
        assert os.read(pipe, 21) == b"# SlideSparse report\n"
    finally:
        os.close(pipe)
    assert [path.name for path in here.iterdir()] == ["pipe.md"]


def test_no_figures_are_none(here: Path, folder: Path) -> None:
    assert report(folder / "sweep.json", "--no-figures", "-q").output == ""
    assert [path.name for path in here.iterdir()] == ["report.html"]


def test_a_folder_is_searched_and_others_are_passed_over(
    here: Path, folder: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    (mixed / "deep").mkdir(parents=True)
    for name in ("kernels", "linear"):
        (mixed / "deep" / f"{name}.json").write_bytes((folder / f"{name}.json").read_bytes())
    (mixed / "other.json").write_text("[]")
    # A file that is named and found, too, counts once.
    result = report(mixed, mixed / "deep" / "linear.json", "--no-figures")
    assert result.exit_code == 0, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"left out: {mixed / 'other.json'} is not a result file")
    assert "from 2 result files" in (here / "report.html").read_text(encoding="utf-8")


def damaged(folder: Path, target: Path, **changes: Any) -> Path:
    data = json.loads((folder / "linear.json").read_text())
    target.write_text(json.dumps({**data, **changes}))
    return target


def test_bad_result_files(here: Path, folder: Path) -> None:
    bad = here / "bad.json"
    assert refusal(bad) == f"cannot read {bad}: No such file or directory"
    damaged(folder, bad, schema_version=99)
    assert refusal(bad).startswith(f"{bad} has schema version 99, this is ")
    damaged(folder, bad, kind="slidesparse-linear-bensh")
    assert "did you mean 'slidesparse-linear-bench'?" in refusal(bad)
    bad.write_text((folder / "linear.json").read_text()[:-200])
    assert refusal(bad).startswith(f"{bad} is not JSON: ")
    damaged(folder, bad, rows=[3])
    assert refusal(bad).startswith(f"{bad} is damaged: rows.0")
    assert [path.name for path in here.iterdir()] == ["bad.json"]


@pytest.mark.parametrize("name", ["page.html", "page.md"])
def test_a_name_that_no_text_may_hold(here: Path, folder: Path, name: str) -> None:
    data = json.loads((folder / "search.json").read_text())
    odd = here / "odd.json"
    odd.write_text(json.dumps({**data, "model": "a\x00\x1bb"}))
    result = report(odd, "-o", name)
    assert result.exit_code == 0, result.output
    assert "a\ufffd\ufffdb" in (here / name).read_text(encoding="utf-8")


def test_nothing_to_show(here: Path, folder: Path) -> None:
    (here / "empty").mkdir()
    assert refusal("empty") == "the folder empty holds no .json file; name result files"
    (here / "empty" / "x.json").write_text("{}")
    result = report("empty")
    assert result.exit_code == 2
    assert "nothing to show: no result file among 1; " in result.stderr.splitlines()[-1]
    bare = damaged(folder, here / "bare.json", rows=[], ways=[], skipped=[])
    assert refusal(bare).startswith("nothing to show: bare.json hold no figure; ")
    assert "Missing argument" in report().stderr


def test_outputs_that_cannot_be_written(here: Path, folder: Path) -> None:
    file = folder / "kernels.json"
    assert refusal(file, "-o", "no/r.html") == (
        f"cannot write no/r.html: the folder {here / 'no'} does not exist"
    )
    (here / "r.html").mkdir()
    assert refusal(file, "-o", "r.html") == "cannot write r.html: it is a folder; name a file"
    (here / "taken").write_text("")
    message = "cannot write figures into taken: it is a file; use --figures FOLDER"
    assert refusal(file, "--figures", "taken") == message
    assert "no/pictures" in refusal(file, "--figures", "no/pictures")
    copy = here / "kernels.json"
    copy.write_bytes(file.read_bytes())
    assert refusal(copy, "-o", copy, "--format", "html") == (
        f"-o {copy} is one of the result files; name another file"
    )
    assert copy.read_bytes() == file.read_bytes()


def test_options_that_contradict_each_other(here: Path, folder: Path) -> None:
    file = folder / "kernels.json"
    assert "--figures and --no-figures" in refusal(file, "--figures", "f", "--no-figures")
    assert refusal(file, "-o", "r.md", "--format", "html") == (
        "--format html does not go with -o r.md; name one of the two anew"
    )
    assert refusal(file, "--title", " ") == "--title is empty; name the report"
    result = report(file, "--format", "pdf")
    assert result.exit_code == 2
    assert "'pdf' is not one of 'html', 'md'" in result.stderr


@pytest.mark.parametrize(
    ("missing", "arguments", "named"),
    [
        ({"jinja2"}, [], "jinja2"),
        ({"matplotlib"}, [], "matplotlib"),
        ({"jinja2", "matplotlib"}, [], "jinja2 and matplotlib"),
        ({"matplotlib"}, ["--format", "md"], "matplotlib"),
    ],
)
def test_missing_libraries(
    here: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: set[str],
    arguments: list[str],
    named: str,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "slidesparse.cli.report.find_spec", lambda name: None if name in missing else find(name)
    )
    message = f"a report needs {named}; pip install 'slidesparse[report]'"
    assert refusal(folder / "kernels.json", *arguments) == message


def test_markdown_without_figures_needs_no_library(
    here: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slidesparse.cli.report.find_spec", lambda name: None)
    for library in ("matplotlib", "jinja2"):
        monkeypatch.setitem(sys.modules, library, None)
    assert report(folder / "sweep.json", "--format", "md", "--no-figures").exit_code == 0
    assert "# SlideSparse report" in (here / "report.md").read_text(encoding="utf-8")


def test_all_committed_results_in_a_few_seconds(root: Path, here: Path) -> None:
    """Of processor time: a machine that does other things, too, takes longer."""
    before = time.process_time()
    result = report(root / "bench" / "results", "--no-figures")
    taken = time.process_time() - before
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert taken < SECONDS, f"{taken:.1f} s of processor time"
    page = (here / "report.html").read_bytes()
    assert b"speedup" in page
    assert len(page) < BYTES
