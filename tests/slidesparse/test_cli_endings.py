"""How a benchmark ends: the exit code, and what is said in which case."""

from __future__ import annotations

import click
import pytest

from slidesparse.bench.fault import DeviceLost
from slidesparse.cli.endings import finish

FULL = ["cannot write out.json: no space left on device"]


def nothing_there() -> str:
    """A record of a run that measured nothing has no first row to name."""
    raise IndexError("list index out of range")


def test_an_interrupted_run_exits_with_130_and_is_not_asked_what_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        finish(KeyboardInterrupt(), FULL, nothing_there)
    assert ended.value.code == 130
    said = capsys.readouterr().err.splitlines()
    assert said == [f"Error: {FULL[0]}", "interrupted; what was measured is above"]


def test_a_lost_device_is_said_before_anything_else_that_failed() -> None:
    lost = DeviceLost(None, "the GPU is gone")
    with pytest.raises(click.ClickException, match="is lost: the GPU is gone; what was"):
        finish(lost, [], nothing_there)


def test_what_failed_is_said_last_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.ClickException, match=r"^2 of 3 cells failed$") as ended:
        finish(None, FULL, lambda: "2 of 3 cells failed")
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == f"Error: {FULL[0]}\n"


def test_a_file_that_is_not_written_exits_with_1() -> None:
    with pytest.raises(SystemExit) as ended:
        finish(None, FULL, lambda: None)
    assert ended.value.code == 1
    finish(None, [], lambda: None)
