"""JSON Schema of result files: the envelope, and behind it one definition per kind.

`scripts/result_schema.py` writes it to `result.schema.json` in this folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from slidesparse.bench.result_file import STAMPS
from slidesparse.serialize import plain_form

DRAFT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class PlainSchema:
    """Mark a field of a record as what `slidesparse.serialize.to_plain` makes of a class.

    Use: Annotated[GemmProblem, ..., PlainSchema(GemmProblem)].

    Args:
        of: the class.
    """

    of: type[Any]

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema of the class's plain form, instead of none for a validator function."""
        return handler(plain_form(self.of).__pydantic_core_schema__)


def record_schema(record: type[Any]) -> dict[str, Any]:
    """JSON Schema of what a file holds of a record: all behind "kind" and "schema_version".

    Args:
        record: a dataclass or model that pydantic reads. Its commit, version and time, which have
            defaults in memory, are required in a file.
    """
    schema: dict[str, Any] = _plainer(TypeAdapter(record).json_schema())
    required = schema.get("required", ())
    schema["required"] = list(dict.fromkeys([*required, *STAMPS]))
    return schema


@dataclass(frozen=True)
class Definition:
    """What a file of one kind and schema version holds.

    Args:
        kind: in its field "kind".
        schema_version: in its field of that name.
        record: JSON Schema of the rest, as `record_schema` gives it.
    """

    kind: str
    schema_version: int
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Among the definitions of the whole schema."""
        return f"{self.kind}-{self.schema_version}"

    def schema(self) -> dict[str, Any]:
        """The record's schema with the two fields that head the file."""
        head = {
            "kind": {"const": self.kind},
            "schema_version": {"const": self.schema_version},
        }
        moved: dict[str, Any] = _moved(self.record, f"#/$defs/{self.name}/$defs/")
        return {
            **moved,
            "properties": {**head, **moved["properties"]},
            "required": [*head, *moved["required"]],
        }

    def choice(self) -> dict[str, Any]:
        """The rule that a file of this kind and version is as the definition says."""
        head = {
            "kind": {"const": self.kind},
            "schema_version": {"const": self.schema_version},
        }
        return {"if": {"properties": head}, "then": {"$ref": f"#/$defs/{self.name}"}}


def whole_schema(definitions: Sequence[Definition]) -> dict[str, Any]:
    """The schema of a result file of any kind.

    Args:
        definitions: of every kind and version that can be read.
    """
    versions: dict[str, list[int]] = {}
    for it in definitions:
        versions.setdefault(it.kind, []).append(it.schema_version)
    known = [
        {"properties": {"kind": {"const": kind}, "schema_version": {"enum": sorted(numbers)}}}
        for kind, numbers in versions.items()
    ]
    return {
        "$schema": DRAFT,
        "title": "Result file of slidesparse",
        "description": "The envelope; the definition that kind and version choose says the rest.",
        "type": "object",
        "properties": {
            "kind": {"enum": list(versions)},
            "schema_version": {"type": "integer"},
            "version": {"type": "string", "description": "Of slidesparse."},
            "commit": {"type": "string", "description": "Of its source."},
            "created": {"type": "string", "description": "UTC time, ISO 8601."},
            "fingerprint": {"type": ["object", "null"], "description": "Of the machine."},
            "settings": {"type": "object", "description": "The options of the command."},
        },
        "required": ["kind", "schema_version", "commit", "fingerprint"],
        "anyOf": known,
        "allOf": [it.choice() for it in definitions],
        "$defs": {it.name: it.schema() for it in definitions},
    }


def _plainer(value: Any) -> Any:
    """Without the titles that pydantic makes up, and with the first line of each docstring."""
    if isinstance(value, list):
        return [_plainer(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, item in value.items():
        if key == "title" and isinstance(item, str):
            continue
        if key == "description" and isinstance(item, str):
            item = item.partition("\n")[0]
        if key in ("properties", "$defs"):
            # Here the keys are names, "title" and "description" among them.
            kept[key] = {name: _plainer(inner) for name, inner in item.items()}
        else:
            kept[key] = _plainer(item)
    return kept


def _moved(value: Any, place: str) -> Any:
    """With references to definitions pointing to where the definitions are now."""
    if isinstance(value, list):
        return [_moved(item, place) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: item.replace("#/$defs/", place)
        if key == "$ref" and isinstance(item, str)
        else _moved(item, place)
        for key, item in value.items()
    }
