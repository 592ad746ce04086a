"""The JSON Schema accepts every result file there is and refuses damaged ones, as the reader does.

The schema is checked with a library that is not ours.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from result_files import KINDS, write_kind

from slidesparse.bench.kinds import MODULES, read_results, result_schema
from slidesparse.bench.schema import DRAFT
from slidesparse.errors import UsageError

Place = tuple[str | int, ...]

OPEN = ("settings", "tasks", "params", "fields")
"""Objects that take any content."""


@pytest.fixture(scope="module")
def schema(root: Path) -> dict[str, Any]:
    loaded = json.loads((root / "bench" / "result.schema.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> Draft202012Validator:
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_file_is_what_the_records_say(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, root / "scripts" / "result_schema.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_kind_has_a_definition(schema: dict[str, Any]) -> None:
    assert schema["$schema"] == DRAFT
    kinds = schema["properties"]["kind"]["enum"]
    assert len(kinds) == len(MODULES) == len(set(kinds))
    assert {name.rpartition("-")[0] for name in schema["$defs"]} == set(kinds)
    assert {"slidesparse-effort-comparison-1", "slidesparse-effort-comparison-2"} <= set(
        schema["$defs"]
    )
    assert result_schema() == schema


def committed(root: Path) -> list[Path]:
    return sorted((root / "bench" / "results").rglob("*.json"))


def test_every_committed_result_is_valid(root: Path, validator: Draft202012Validator) -> None:
    found = committed(root)
    assert len(found) >= 13, "a wheel has no results; run the tests in a checkout"
    for path in found:
        faults = [f"{it.json_path}: {it.message}" for it in validator.iter_errors(load(path))]
        assert not faults, f"{path}: {faults[0]}"


def load(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text())
    assert isinstance(data, dict)
    return data


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Every place below a value: all names of objects, the first entry of lists."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict) and not (at and at[-1] in OPEN):
        items = list(value.items())
    elif isinstance(value, list) and value:
        items = [(0, value[0])]
    for key, item in items:
        yield (*at, key)
        yield from places(item, (*at, key))


def with_change(data: Any, at: Place, value: Any) -> Any:
    """A copy in which the value at a place is another one, or gone where that is Ellipsis."""
    changed = copy.deepcopy(data)
    inner = changed
    for key in at[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[at[-1]]
    else:
        inner[at[-1]] = value
    return changed


def value_at(data: Any, at: Place) -> Any:
    for key in at:
        data = data[key]
    return data


def damaged(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Copies with one thing wrong each: of a wrong type, missing, too much."""
    yield "of a later schema", {**data, "schema_version": 3}
    yield "of another kind", {**data, "kind": "slidesparse-other"}
    for at in list(places(data)):
        name = ".".join(map(str, at))
        value = value_at(data, at)
        # A list or object where a word or number belongs, and the other way round.
        wrong = "word" if isinstance(value, dict | list) else {"some": ["thing"]}
        yield f"{name} of a wrong type", with_change(data, at, wrong)
        if isinstance(at[-1], str) and not optional(data, at):
            yield f"without {name}", with_change(data, at, ...)
        if isinstance(value, dict) and not set(OPEN) & set(at) and not table(at):
            yield f"more in {name}", with_change(data, (*at, "more"), 1)
    yield "more in the file", {**data, "more": 1}


def optional(data: dict[str, Any], at: Place) -> bool:
    """Whether a reader does without it: entries of tables, and fields with a default."""
    parent = at[-2] if len(at) > 1 else ""
    defaulted = DEFAULTED.get(str(parent), ())
    if data["kind"] == "slidesparse-effort-comparison":
        defaulted = ("us", "ratio", "failure")
    return at[-1] in defaulted or table(at[:-1])


DEFAULTED = {
    "limits": ("agreement", "perplexity", "load"),
    "row": ("spread", "tokens_per_s", "joules_per_token", "power_w", "how"),
}
"""Fields with a default, by the name of what holds them."""

TABLES = (
    *("versions", "models", "shares", "ran", "seconds", "provenance", "us", "kl", "increases"),
    *("config", "left_out", "counters", "quantities", "workload", "variant"),
)
"""Objects whose names are free."""


def table(at: Place) -> bool:
    return any(key in TABLES for key in at)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_each_kind_is_valid(
    kind: str, tmp_path: Path, validator: Draft202012Validator
) -> None:
    data = load(write_kind(kind, tmp_path))
    assert [f"{it.json_path}: {it.message}" for it in validator.iter_errors(data)] == []


def refusal(path: Path) -> str:
    """Why a file is refused, "" where it is not."""
    try:
        read_results(path)
    except UsageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_by_the_schema_and_the_reader(
    kind: str, tmp_path: Path, validator: Draft202012Validator
) -> None:
    path = write_kind(kind, tmp_path)
    accepted = []
    count = 0
    for what, data in damaged(load(path)):
        count += 1
        path.write_text(json.dumps(data))
        if validator.is_valid(data):
            accepted.append(f"schema: {what}")
        reason = refusal(path)
        if not reason.startswith(str(path)) or "\n" in reason:
            accepted.append(f"reader: {what}: {reason}")
    assert count > 30
    assert not accepted, accepted


def test_a_file_of_the_first_schema_has_no_time(
    root: Path, validator: Draft202012Validator
) -> None:
    data = load(next(path for path in committed(root) if path.name.startswith("effort-")))
    assert data["schema_version"] == 1
    assert validator.is_valid(data)
    assert not validator.is_valid({**data, "created": "2026-03-03T10:00:00+00:00"})
    assert not validator.is_valid({**data, "schema_version": 2})
