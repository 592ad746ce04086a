"""A result file reads back as it was written; a damaged one says what is wrong with it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from search_records import make_record

from slidesparse.bench import result_file as module
from slidesparse.bench.result_file import source_commit
from slidesparse.bench.search.record import CSV_COLUMNS, read_json, write_csv, write_json
from slidesparse.errors import UsageError
from slidesparse.pattern import DENSE


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    write_json(make_record(), path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read_json(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_record_comes_back_whole(written: Path) -> None:
    assert read_json(written) == make_record()
    assert [path.name for path in written.parent.iterdir()] == ["result.json"]


def test_the_file_names_its_kind_and_schema(written: Path) -> None:
    data = json.loads(written.read_text())
    assert (data["kind"], data["schema_version"]) == ("slidesparse-search", 1)
    assert data["results"][0]["provenance"] == "bundled"
    assert data["layers"][1]["problem"]["pattern"] == "6:8"


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "no.json"
    assert refusal(path) == f"cannot read {path}: No such file or directory"
    assert refusal(tmp_path) == f"cannot read {tmp_path}: Is a directory"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file(written: Path, share: float) -> None:
    content = written.read_bytes().rstrip()
    written.write_bytes(content[: int(share * len(content))])
    assert refusal(written).startswith(f"{written} is not JSON: ")


def test_bytes_that_are_no_text(written: Path) -> None:
    written.write_bytes(b"\xff\xfe\x00")
    assert refusal(written).startswith(f"{written} is not JSON: ")


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"kind": "slidesparse-cache"}', "null"])
def test_a_file_of_another_kind(written: Path, content: str) -> None:
    written.write_text(content)
    assert refusal(written) == f"{written} is not a result file of slidesparse search"


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (0, "measure again with slidesparse search"),
        (2, "update slidesparse"),
        (None, "measure again with slidesparse search"),
        ("1", "measure again with slidesparse search"),
        (True, "measure again with slidesparse search"),
    ],
)
def test_another_schema(written: Path, version: Any, remedy: str) -> None:
    data = json.loads(written.read_text())
    data["schema_version"] = version
    written.write_text(json.dumps(data))
    assert refusal(written) == f"{written} has schema version {version}, this is 1; {remedy}"


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("results", 0, "result", "ranked", 0, "median_us"), -1.0, "ranked.0.median_us: "),
        (("results", 0, "result", "ranked", 0, "median_us"), "fast", "ranked.0.median_us: "),
        (("results", 0, "result", "problem", "m"), 0, "problem.m: "),
        (("results", 0, "provenance"), "guessed", "results.0.provenance: input should be"),
        (("results", 0), "x", "results.0: input should be"),
        (("results",), 3, "results: input should be"),
        (("fingerprint", "sm"), "90", "sm: "),
        (("layers", 0, "problem", "pattern"), "2:8", "pattern: "),
        (("layers", 0, "layer", "colour"), "red", "colour: extra inputs are not permitted"),
        (("layers", 0, "colour"), "red", "layers.0.colour: extra inputs are not permitted"),
        (("colour",), "red", "colour: extra inputs are not permitted"),
        (("skipped", 0, "problem", "dtype"), "fp4", "dtype: "),
    ],
)
def test_damaged_fields_are_named(written: Path, path: tuple, value: Any, reason: str) -> None:
    data = json.loads(written.read_text())
    place = data
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    written.write_text(json.dumps(data))
    text = refusal(written)
    assert text.startswith(f"{written} is damaged: ")
    assert reason in text


@pytest.mark.parametrize("field", ["seconds", "layers", "results", "settings", "created"])
def test_missing_fields_are_named(written: Path, field: str) -> None:
    data = json.loads(written.read_text())
    del data[field]
    written.write_text(json.dumps(data))
    assert refusal(written) == f"{written} is damaged: it lacks '{field}'"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for write in (write_json, write_csv):
        path = tmp_path / "no" / "file"
        with pytest.raises(UsageError) as caught:
            write(make_record(), path)
        assert str(caught.value) == f"cannot write {path}: No such file or directory"


def test_csv_has_a_row_per_ranked_candidate(tmp_path: Path) -> None:
    path = tmp_path / "result.csv"
    write_csv(make_record(), path)
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    assert tuple(header) == CSV_COLUMNS
    head = ["expert_down", "28", "64", "16", "64", "96", "fp8_e4m3", "bf16", "tensor"]
    wanted = []
    for pattern, rank, backend, us, ratio in (
        ("dense", 1, "cublaslt", 10.0, ""),
        ("dense", 2, "torch", 12.5, ""),
        ("6:8", 1, "cusparselt", 8.0, "1.2500"),
        ("6:8", 2, "cublaslt", 10.0, "1.0000"),
    ):
        sparse = "1" if backend == "cusparselt" else "0"
        source = "bundled" if pattern == "dense" else "measured"
        rate = f"{2 * 16 * 64 * 96 / us / 1e6:.2f}"
        name = [pattern, str(rank), backend, sparse, f"{backend} tile=128x64"]
        wanted.append([*head, *name, f"{us:.3f}", "0.500", rate, ratio, "1.250e-03", source])
    assert rows == wanted
    assert make_record().layers[2].problem.pattern == DENSE  # Skipped: it has no row.


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up checkout that result_file.py believes to be its own."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.delenv("SLIDESPARSE_COMMIT", raising=False)
    folder = tmp_path / "checkout"
    (folder / "bench").mkdir(parents=True)
    (folder / "bench" / "result_file.py").write_text("# tracked\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    monkeypatch.setattr(module, "__file__", str(folder / "bench" / "result_file.py"))
    return folder


def test_the_commit_of_a_clean_checkout(checkout: Path) -> None:
    (checkout / "untracked").write_text("does not count")
    assert source_commit() == git(checkout, "rev-parse", "HEAD")
    assert len(source_commit()) == 40


def test_the_commit_of_a_changed_checkout(checkout: Path) -> None:
    (checkout / "bench" / "result_file.py").write_text("# changed\n")
    assert source_commit() == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_the_environment_names_the_commit(checkout: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SLIDESPARSE_COMMIT", "abc123")
    assert source_commit() == "abc123"
    stamped = replace(make_record(), commit="", created="").stamped()
    assert stamped.commit == "abc123"
    assert stamped.created.endswith("+00:00")


def test_outside_a_checkout_the_commit_is_unknown(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "__file__", str(tmp_path / "site-packages" / "a" / "result_file.py")
    )
    assert source_commit() == "unknown"


def test_a_broken_checkout_or_no_git_is_unknown(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(checkout / ".git" / "objects")
    assert source_commit() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert source_commit() == "unknown"


def test_a_link_keeps_pointing_and_its_target_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    write_json(make_record(), link)
    assert link.is_symlink()
    assert read_json(target) == make_record()


def test_a_pipe_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(pipe.read_text)
        write_json(make_record(), pipe)
        assert json.loads(text.result(timeout=30))["kind"] == "slidesparse-search"
    assert pipe.is_fifo()
