"""The progress of a long command: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from slidesparse.cli import progress as module
from slidesparse.cli.progress import ProgressLine


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def make(total: int, terminal: bool = False) -> tuple[ProgressLine, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=60, highlight=False)
    return ProgressLine(total, console), stream


def test_without_a_terminal_a_line_every_ten_seconds(clock: Clock) -> None:
    line, stream = make(4)
    with line:
        line.say("at once")
        clock.now += 9.9
        line.say("too early")
        clock.now += 0.2
        line.say("first [of all]")
        line.say("too early again")
        line.advance()
        clock.now += 29.9
        line.say("second")
    # One of four took 40 s.
    assert stream.getvalue() == "0/4 first [of all]\n1/4 second, about 120 s left\n"


def test_a_long_line_is_not_folded_and_a_note_is_printed_at_once(clock: Clock) -> None:
    line, stream = make(1)
    with line:
        line.note("skipped " + "x" * 100 + " [b]")
        clock.now += 60
        line.say("y" * 100)
    assert stream.getvalue() == f"skipped {'x' * 100} [b]\n0/1 {'y' * 100}\n"


def test_nothing_is_left_when_all_is_done(clock: Clock) -> None:
    line, stream = make(1)
    line.advance()
    clock.now += 60
    line.say("end")
    assert stream.getvalue() == "1/1 end, about 0 s left\n"


def test_on_a_terminal_a_bar_that_goes_away() -> None:
    line, stream = make(3, terminal=True)
    with line:
        line.say("quantize [M] = 16")
        line.advance()
        assert line._bar is not None
        line._bar.refresh()
        shown = stream.getvalue()
        line.note("a note [stays]")
    assert "1/3" in shown
    assert "quantize [M] = 16" in shown
    assert "a note [stays]" in stream.getvalue()
    # The cursor is shown again and the bar's line erased.
    assert "\x1b[?25h" in stream.getvalue()
    assert "\x1b[2K" in stream.getvalue()


def test_threads_count_every_step(clock: Clock) -> None:
    line, stream = make(400)

    def work() -> None:
        for _ in range(100):
            line.advance()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clock.now += 60
    line.say("all")
    assert stream.getvalue().startswith("400/400 all")
