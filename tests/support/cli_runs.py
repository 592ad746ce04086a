"""What tests of the command line look for: errors in one line, early usage errors, whole files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from slidesparse.errors import UsageError

SECONDS = 60.0
"""After which a command that imports no torch has failed."""

COMES = 90.0
"""Seconds after which what a log is watched for will not come."""


def assert_one_line(result: Result, code: int, *texts: str) -> None:
    """The command ended with this exit code, and its last line is an error that holds the texts."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: "), result.stderr
    assert "Traceback" not in result.stderr
    for text in texts:
        assert text in line, line


def gone(pid: int, within: float = 10.0) -> bool:
    """Whether a process that may not be our child ends in time; a zombie is gone."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def run_without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that fails if it imports torch; its exit code is the command's.

    Args:
        arguments: of `slidesparse`.
    """
    script = (
        "import sys\nfrom slidesparse.cli.main import cli\n"
        "try:\n    cli(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\nsys.exit(code)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )


def assert_usage_error_without_torch(*arguments: str) -> None:
    """Torch alone takes longer to import than a usage error may."""
    done = run_without_torch(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Error: " in done.stderr


def assert_each_file_is_written_alone(
    command: Callable[..., Result],
    folder: Path,
    broken: str,
    writer: str,
    patch: pytest.MonkeyPatch,
    printed: str,
) -> None:
    """A file that cannot be written costs neither the table nor the other file.

    Args:
        command: runs, given --json and --csv.
        folder: to write to.
        broken: json or csv, which cannot be written.
        writer: "module.function" that fails.
        patch: undone by the test.
        printed: part of the table.
    """
    files = {name: folder / f"out.{name}" for name in ("json", "csv")}

    def fails(record: object, path: Path) -> None:
        raise UsageError(f"cannot write {path}: No space left on device")

    patch.setattr(writer, fails)
    result = command(*(part for name in files for part in (f"--{name}", str(files[name]))))
    assert_one_line(result, 1, f"cannot write {files[broken]}: No space left on device")
    assert printed in result.stdout
    assert {name for name in files if files[name].exists()} == {*files} - {broken}


def wait_for(log: Path, text: str) -> None:
    """Return once the log holds the text."""
    end = time.monotonic() + COMES
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < end, f"it never came to {text}"
        time.sleep(0.05)


def ended(pid: int) -> bool:
    """Whether the process is gone, or waits for nothing but its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
