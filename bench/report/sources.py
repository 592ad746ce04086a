"""The end of a report: every file with its machine, versions, settings, and what was measured."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from slidesparse.bench.report.format import cell
from slidesparse.bench.report.view import Cell, Group, Section, Table
from slidesparse.bench.rows import ResultFile
from slidesparse.candidate import Provenance

TITLE = "Environment and provenance"

MEANINGS: Mapping[Provenance, str] = {
    Provenance.MEASURED: "measured in this run, on this machine",
    Provenance.CACHED: "measured before on this machine, with the same library versions",
    Provenance.BUNDLED: "measured by this project on such a machine and shipped with it",
    Provenance.DERIVED: "computed from measured or published figures",
    Provenance.ESTIMATED: "a model's estimate, not checked by a measurement",
    Provenance.PUBLISHED: "as others published it; not measured by this project",
}

LONGEST_SETTING = 400
"""Characters of one setting's value; a file with more has it whole."""


def sources_section(files: Sequence[ResultFile]) -> Section:
    """Where all figures come from."""
    groups = [
        Group("Files", (), tables=(_files_table(files), _provenance_table(files))),
        *_machines(files),
        Group("Settings", (), tables=tuple(_settings_table(file) for file in files)),
    ]
    about = "Every figure above is from these files, which the tool itself wrote."
    return Section("sources", TITLE, about, tuple(groups))


def machines_of(files: Sequence[ResultFile]) -> tuple[str, ...]:
    """The machines of the files, in order."""
    return tuple(dict.fromkeys(file.machine for file in files))


def ended_early(file: ResultFile) -> bool:
    """Whether the run that wrote a file was interrupted; files of no run were not."""
    return bool(getattr(file.record, "interrupted", False))


def _files_table(files: Sequence[ResultFile]) -> Table:
    rows = tuple(
        (
            Cell(file.path.name),
            Cell(file.command),
            Cell(file.machine),
            Cell(_date(file.created)),
            Cell(file.versions.get("slidesparse", "unknown")),
            Cell(file.commit[:12] + ("-dirty" if file.commit.endswith("-dirty") else "")),
            cell(len(file.rows), f"{len(file.rows):,}"),
            Cell("ended early" if ended_early(file) else "whole"),
        )
        for file in files
    )
    return Table(
        "Result files",
        ("file", "written by", "machine", "date, UTC", "version", "commit", "figures", "run"),
        rows,
    )


def _date(created: str) -> str:
    return created[:16].replace("T", " ")


def _provenance_table(files: Sequence[ResultFile]) -> Table:
    counts: Counter[Provenance] = Counter()
    names: dict[Provenance, dict[str, None]] = {}
    for file in files:
        for row in file.rows:
            counts[row.provenance] += 1
            names.setdefault(row.provenance, {})[file.path.name] = None
    rows = tuple(
        (
            Cell(str(kind)),
            cell(counts[kind], f"{counts[kind]:,}"),
            Cell(meaning),
            Cell(", ".join(names[kind])),
        )
        for kind, meaning in MEANINGS.items()
        if counts[kind]
    )
    return Table("Where the figures come from", ("word", "figures", "meaning", "files"), rows)


def _machines(files: Sequence[ResultFile]) -> list[Group]:
    """One table per machine: what its files agree on, and what they do not, file by file."""
    groups = []
    for machine in machines_of(files):
        these = [file for file in files if file.machine == machine]
        fields: dict[str, dict[str, list[str]]] = {}
        for file in these:
            for name, value in _environment(file).items():
                fields.setdefault(name, {}).setdefault(value, []).append(file.path.name)
        rows = tuple(
            (Cell(name), Cell(value), Cell("all" if len(names) == len(these) else ", ".join(names)))
            for name, values in fields.items()
            for value, names in values.items()
        )
        table = Table(f"{machine}: hardware and software", ("what", "value", "files"), rows)
        groups.append(Group(machine, (), tables=(table,)))
    return groups


def _environment(file: ResultFile) -> dict[str, str]:
    found = {}
    if file.fingerprint is not None:
        found = {name.replace("_", " "): str(v) for name, v in asdict(file.fingerprint).items()}
    return found | {name: str(version) for name, version in file.versions.items()}


def _settings_table(file: ResultFile) -> Table:
    rows = tuple((Cell(name), Cell(_shown(value))) for name, value in file.settings.items())
    return Table(f"Settings of {file.path.name}", ("setting", "value"), rows, folded=True)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        text = value
    elif isinstance(value, list) and all(isinstance(it, str | int | float) for it in value):
        text = ", ".join(map(str, value))
    else:
        text = json.dumps(value)
    return text if len(text) <= LONGEST_SETTING else text[: LONGEST_SETTING - 3] + "..."
