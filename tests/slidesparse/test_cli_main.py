"""How every command ends: a full disk, a reader that leaves, no standard output at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")
COMMAND = (sys.executable, "-m", "slidesparse")


def run(*arguments: str, stdout: int, unbuffered: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""},
        check=False,
    )


@pytest.mark.skipif(not FULL.exists(), reason=f"there is no {FULL}")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("models",), 1), (("--version",), 1), (("--help",), 1), (("models", "nosuch"), 2)],
    ids=["models", "version", "help", "a usage error"],
)
@pytest.mark.parametrize("unbuffered", [False, True], ids=["at the end", "at once"])
def test_a_full_disk_is_one_line(arguments: tuple[str, ...], code: int, unbuffered: bool) -> None:
    with FULL.open("w") as full:
        done = run(*arguments, stdout=full.fileno(), unbuffered=unbuffered)
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    if code == 1:
        assert line.endswith("not all of it was printed: No space left on device")


def test_a_reader_that_leaves_costs_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run("models", stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_closed_standard_output_is_nobody_reading() -> None:
    shell = f"{' '.join(COMMAND)} models >&-"
    done = subprocess.run(
        ["sh", "-c", shell], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
