"""The form that all kinds of result files share, on a small kind of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import pytest
from damage import change_file, put, refusal
from pydantic import ConfigDict

from slidesparse.bench.fields import STRICT, Duration, Name, Text
from slidesparse.bench.record_form import RecordForm, Stamped
from slidesparse.bench.result_file import FileKind
from slidesparse.errors import UsageError


@dataclass(frozen=True)
class Part:
    """One part of a record."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Name
    us: Duration


@dataclass(frozen=True)
class Made(Stamped):
    """A record."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    settings: dict[Name, Any]
    parts: tuple[Part, ...]
    commit: Text = ""
    version: Text = "1.0"
    created: Text = ""

    def __post_init__(self) -> None:
        if len(self.parts) > 2:
            raise ValueError("Three are too many")


KIND = FileKind("made", 3, "slidesparse make", older={2: {"created": "never", "settings": {}}})
FORM = RecordForm(KIND, Made)
RECORD = Made({"seed": 1}, (Part("a", 1.0), Part("b", 2.5)), "abc", created="today")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "made.json"
    FORM.write(RECORD, path)
    return path


def test_a_record_comes_back_whole(written: Path) -> None:
    assert FORM.read(written) == RECORD
    assert [path.name for path in written.parent.iterdir()] == ["made.json"]


def test_the_file_is_plain_and_says_first_what_it_is(written: Path) -> None:
    data = json.loads(written.read_text())
    assert list(data.items()) == [
        ("kind", "made"),
        ("schema_version", 3),
        ("settings", {"seed": 1}),
        ("parts", [{"name": "a", "us": 1.0}, {"name": "b", "us": 2.5}]),
        ("commit", "abc"),
        ("version", "1.0"),
        ("created", "today"),
    ]


def test_a_stamp_says_when_and_of_which_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDESPARSE_COMMIT", "abc123")
    stamped = Made({}, ()).stamped()
    assert stamped.commit == "abc123"
    assert stamped.created.endswith("+00:00")
    assert (stamped.settings, stamped.version) == ({}, "1.0")


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "no.json"
    assert refusal(FORM.read, path) == f"cannot read {path}: No such file or directory"
    assert refusal(FORM.read, tmp_path) == f"cannot read {tmp_path}: Is a directory"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file(written: Path, share: float) -> None:
    content = written.read_bytes().rstrip()
    written.write_bytes(content[: int(share * len(content))])
    assert refusal(FORM.read, written).startswith(f"{written} is not JSON: ")


def test_bytes_that_are_no_text(written: Path) -> None:
    written.write_bytes(b"\xff\xfe\x00")
    assert refusal(FORM.read, written).startswith(f"{written} is not JSON: ")


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"kind": "slidesparse-cache"}', "null"])
def test_a_file_of_another_kind(written: Path, content: str) -> None:
    written.write_text(content)
    assert refusal(FORM.read, written) == f"{written} is not a result file of slidesparse make"


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (1, "measure again with slidesparse make"),
        (4, "update slidesparse"),
        (None, "measure again with slidesparse make"),
        ("3", "measure again with slidesparse make"),
        (True, "measure again with slidesparse make"),
    ],
)
def test_another_schema(written: Path, version: object, remedy: str) -> None:
    change_file(written, put(version, "schema_version"))
    said = refusal(FORM.read, written)
    assert said == f"{written} has schema version {version}, this is 3; {remedy}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.pop("parts"), "it lacks 'parts'"),
        (lambda d: d.pop("commit"), "it lacks 'commit'"),
        (lambda d: d.pop("version"), "it lacks 'version'"),
        (lambda d: d.pop("created"), "it lacks 'created'"),
        (lambda d: d["parts"][1].pop("us"), "it lacks 'parts.1.us'"),
        (put(-1.0, "parts", 0, "us"), "parts.0.us: input should be greater than 0"),
        (put("fast", "parts", 0, "us"), "parts.0.us: input should be a valid number"),
        (put(float("nan"), "parts", 0, "us"), "parts.0.us: input should be"),
        (put("", "parts", 0, "name"), "parts.0.name: string should have at least 1 character"),
        (put("red", "parts", 0, "colour"), "parts.0.colour: unexpected keyword argument"),
        (put("red", "colour"), "colour: unexpected keyword argument"),
        (put(3, "parts"), "parts: input should be a valid array"),
        (lambda d: d["parts"].append(d["parts"][0]), "the record: three are too many"),
    ],
)
def test_damage_is_named(written: Path, change: Any, reason: str) -> None:
    change_file(written, change)
    assert refusal(FORM.read, written).startswith(f"{written} is damaged: {reason}")


def test_not_finite_times_are_never_read(tmp_path: Path) -> None:
    path = tmp_path / "made.json"
    FORM.write(Made({}, (Part("a", float("nan")),)), path)
    assert refusal(FORM.read, path).startswith(f"{path} is damaged: parts.0.us: ")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "no" / "file"
    with pytest.raises(UsageError) as caught:
        FORM.write(RECORD, path)
    assert str(caught.value) == f"cannot write {path}: No such file or directory"


def as_version_2(data: dict[str, Any]) -> None:
    data.update(schema_version=2)
    del data["created"], data["settings"]


def test_an_older_file_is_read_with_what_it_lacks(written: Path) -> None:
    change_file(written, as_version_2)
    found = FORM.read(written)
    assert (found.created, found.settings, found.parts) == ("never", {}, RECORD.parts)


def test_an_older_file_needs_the_rest(written: Path) -> None:
    change_file(written, as_version_2)
    change_file(written, lambda data: data.pop("commit"))
    assert refusal(FORM.read, written) == f"{written} is damaged: it lacks 'commit'"


def test_every_version_has_a_schema(written: Path) -> None:
    schemas = FORM.schemas()
    assert list(schemas) == [3, 2]
    assert schemas[3]["required"] == ["settings", "parts", "commit", "version", "created"]
    assert schemas[2]["required"] == ["parts", "commit", "version"]
    data = json.loads(written.read_text())
    del data["kind"], data["schema_version"]
    assert jsonschema.Draft202012Validator(schemas[3]).is_valid(data)
    assert not jsonschema.Draft202012Validator(schemas[2]).is_valid(data)
