"""Result files with one thing wrong, and what their reader says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from slidesparse.errors import UsageError

Change = Callable[[Any], object]
"""Changes what a file holds, in place."""


def change_file(path: Path, change: Change) -> None:
    """Change what a JSON file holds."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def put(value: object, *place: str | int) -> Change:
    """The change that puts a value where names and indices lead to."""

    def change(data: Any) -> None:
        for part in place[:-1]:
            data = data[part]
        data[place[-1]] = value

    return change


def refusal(read: Callable[[Path], object], path: Path) -> str:
    """Why a file is refused, in one line."""
    with pytest.raises(UsageError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def damage_said(record_module: ModuleType, record: object, folder: Path, change: Change) -> str:
    """What is said to be wrong with a record's file after a change, behind the file's name.

    Args:
        record_module: with `write_json` and `read_json`.
        record: that is written.
        folder: for the file.
        change: to the file.
    """
    path = folder / "damaged.json"
    record_module.write_json(record, path)
    change_file(path, change)
    said = refusal(record_module.read_json, path)
    assert said.startswith(f"{path} is damaged: ")
    return said.removeprefix(f"{path} is damaged: ")
