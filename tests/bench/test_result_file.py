"""What all result files share: written whole or not at all, and by which source."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slidesparse.bench import result_file as module
from slidesparse.bench.result_file import as_cell, source_commit, write_rows, write_text
from slidesparse.errors import UsageError


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a longer text than the new one")
    write_text(path, "new\n")
    assert path.read_bytes() == b"new\n"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        write_text(tmp_path / "no" / "file", "text")
    assert (
        str(caught.value) == f"cannot write {tmp_path / 'no' / 'file'}: No such file or directory"
    )
    with pytest.raises(UsageError, match="Is a directory"):
        write_text(tmp_path, "text")
    assert not list(tmp_path.iterdir())


def test_a_link_keeps_pointing_and_its_target_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_pipe_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(pipe.read_text)
        write_text(pipe, "new")
        assert text.result(timeout=30) == "new"
    assert pipe.is_fifo()


def test_a_pipe_without_a_name_is_written_to() -> None:
    """As /dev/stdout is one where a command's output is piped."""
    reader, writer = os.pipe()
    write_text(Path(f"/dev/fd/{writer}"), "new")
    os.close(writer)
    with open(reader) as file:
        assert file.read() == "new"


def test_a_table_has_a_header_and_quotes_what_needs_it(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_rows(path, ("a", "b"), [(1, as_cell(None)), ("x,y", as_cell(2 / 3))])
    assert path.read_bytes() == b'a,b\r\n1,\r\n"x,y",0.666667\r\n'


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


def test_the_environment_names_the_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDESPARSE_COMMIT", "abc123")
    assert source_commit() == "abc123"


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
