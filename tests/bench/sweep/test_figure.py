"""The figure of a sweep: what it shows follows from the record, and it is a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_records import BLOCK, OURS, make_heading, make_record, outcome

from slidesparse.bench.sweep.book import SweepBook
from slidesparse.bench.sweep.figure import Line, Point, panels, write_figure
from slidesparse.errors import UsageError
from slidesparse.pattern import DENSE, Pattern

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_line_per_pattern_with_its_bound() -> None:
    (panel,) = panels(make_record())
    assert panel.block == BLOCK
    assert panel.lines == (
        Line(DENSE, 1.0, (Point(512, 1050 / 1000, False), Point(4096, 8000 / 9000, True))),
        Line(Pattern.parse("6:8"), 4 / 3, (Point(512, 1050 / 870, True),)),
    )


def test_the_file_is_a_picture_with_the_lines(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "sweep.png"
    write_figure(make_record(), path)
    assert path.read_bytes().startswith(PNG)
    drawing = tmp_path / "sweep.svg"
    write_figure(make_record(), drawing)
    text = drawing.read_text()
    for label in ("6:8 (bound 1.33)", "qwen2.5-7b fp8_e4m3 graphs", "4096", "tokens of a step"):
        assert f"<!-- {label} -->" in text, label


def test_nothing_to_compare_is_an_error_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    book = SweepBook(make_heading())
    book.add(outcome(OURS, 512, 10.0))
    with pytest.raises(UsageError, match="no cell has a time for both stock and ours"):
        write_figure(book.record(False), tmp_path / "sweep.png")
    assert not (tmp_path / "sweep.png").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match=r"cannot write .*No such file"):
        write_figure(make_record(), tmp_path / "no" / "sweep.png")
