"""What a kind of result file is: the record that it holds, written, read and described."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import TypeAdapter

from slidesparse.bench.result_file import FileKind, read_record, source_commit, write_data
from slidesparse.bench.schema import record_schema
from slidesparse.candidate import timestamp

R = TypeVar("R")
S = TypeVar("S", bound="Stamped")


class Stamped:
    """A record that says in `commit` and `created` which source made it and when."""

    def stamped(self: S) -> S:
        """The record with commit and time of now."""
        # The fields are the subclasses' own: they come last in each file.
        made: S = replace(cast(Any, self), commit=source_commit(), created=timestamp())
        return made


@dataclass(frozen=True)
class RecordForm(Generic[R]):
    """The files of one kind.

    Args:
        kind: that heads them.
        record: what they hold behind it, a dataclass or model that pydantic reads.
    """

    kind: FileKind
    record: type[R]

    def write(self, record: R, path: Path) -> None:
        """Write the result file; the folder must exist.

        Raises:
            UsageError: the file cannot be written.
        """
        write_data(path, self.kind, self._adapter.dump_python(record, mode="json"))

    def read(self, path: Path) -> R:
        """Read a result file back.

        Raises:
            UsageError: it is missing, truncated, of another kind or schema, or holds wrong values.
        """
        return read_record(path, self.kind, self._adapter)

    def schemas(self) -> dict[int, dict[str, Any]]:
        """JSON Schema of the file behind its kind, by every schema version that can be read."""
        found = {self.kind.schema_version: record_schema(self.record)}
        for version, missing in self.kind.older.items():
            older = record_schema(self.record)
            for name in missing:
                del older["properties"][name]
                older["required"].remove(name)
            found[version] = older
        return found

    @cached_property
    def _adapter(self) -> TypeAdapter[R]:
        # Built when it is first needed: that takes milliseconds, and imports are many.
        return TypeAdapter(self.record)
