"""What differs between the files of a comparison, as a table: it is said first."""

from __future__ import annotations

from collections.abc import Iterator

from slidesparse.bench.compare.lines import Comparison
from slidesparse.bench.compare.select import Phase
from slidesparse.bench.compare.text import Section, letters, machine_name, provenance_of

_LONGEST = 80
"""Letters of a setting that are shown; result files hold all."""


def difference_section(compared: Comparison) -> Section:
    """What differs between the files, which is said first."""
    names = letters(compared)
    heads = []
    for index in range(len(compared.files)):
        mine = [n for n, it in zip(names, compared.columns, strict=True) if it.file == index]
        heads.append(f"{mine[0]}" if len(mine) == 1 else f"{mine[0]} to {mine[-1]}")
    rows = [
        ("file", *(str(file.path) for file in compared.files)),
        ("made by", *(file.command for file in compared.files)),
        (
            "figures",
            *(f"{machine_name(it)} {provenance_of(it, it.rows)}".strip() for it in compared.files),
        ),
        ("created", *(file.created for file in compared.files)),
    ]
    for it in compared.differences:
        mark = " *" if it.matters else ""
        name = f"{it.group}: {it.name.replace('_', ' ')}{mark}"
        rows.append((name, *(_short(value) for value in it.values)))
    words = frozenset(range(1 + len(heads)))
    return Section("What differs", ("", *heads), rows, tuple(_said(compared)), words)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _said(compared: Comparison) -> Iterator[str]:
    if not compared.differences:
        yield "Machine, software, commit and settings are the same."
    if compared.options.phase is Phase.ADAPTED:
        free = ", ".join(compared.options.adapt)
        yield f"Phase adapted: each file's best over {free}; settings (*) may differ."
    elif len(compared.files) - len(compared.exempt) >= min(2, len(compared.files)):
        yield "Phase baseline: settings that decide a measurement are the same."
    if compared.exempt:
        paths = ", ".join(str(compared.files[index].path) for index in compared.exempt)
        yield f"Settings are not known, and not held to this phase: {paths} (not measured here)."
