"""What differs between result files: the machines, the software, the settings, the source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from slidesparse.bench.rows import ResultFile
from slidesparse.candidate import Provenance
from slidesparse.errors import UsageError

Group = Literal["machine", "software", "setting"]

UNSAID = "-"
"""Stands for what a file does not say."""

INCIDENTAL = frozenset(
    {
        *("seed", "seeds", "device", "devices", "host", "hosts", "date", "started", "seconds"),
        *("budget", "budget_s", "fresh", "resume", "json", "csv", "figure", "output", "cache_dir"),
        *("interrupted", "quiet", "note", "gpu", "gpus", "machine"),
    }
)
"""Settings that do not decide what is measured: seeds, places, devices, limits of the run."""

COVERAGE = frozenset(
    {
        *("m", "n", "k", "tokens", "layers", "patterns", "dtypes", "models", "modes", "ops"),
        *("stage", "stages", "concurrency", "targets", "methods"),
    }
)
"""Settings that say which rows there are: rows are compared one by one, so these may differ."""

_MACHINE = ("name", "sm", "sm_count", "memory_mib")
_SOFTWARE = ("driver", "cublaslt", "cusparselt", "torch", "triton")
_PATHS = ("/", "./", "../", "~")
_MOST_NAMED = 3


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same in all files.

    Args:
        group: of what it is.
        name: as the files call it.
        values: one per file, in their order; "-" where a file does not say.
        matters: whether it must be the same in the baseline phase.
    """

    group: Group
    name: str
    values: tuple[str, ...]
    matters: bool


def differences(files: Sequence[ResultFile]) -> tuple[Difference, ...]:
    """Everything that is not the same in all files: machine first, then software, then settings."""
    said = [_said(file) for file in files]
    names = dict.fromkeys(key for each in said for key in each)
    found = []
    for group, name in names:
        values = tuple(each.get((group, name), UNSAID) for each in said)
        if len(set(values)) > 1:
            matters = group == "setting" and bool(_mismatch(name, files))
            found.append(Difference(group, name, values, matters))
    order = ("machine", "software", "setting")
    return tuple(sorted(found, key=lambda it: order.index(it.group)))


def require_same_settings(files: Sequence[ResultFile]) -> None:
    """Refuse files whose settings differ in what decides the measurement.

    A setting counts where it is neither incidental nor told by the rows themselves. Files of one
    kind must have the same ones; those of two kinds agree in the ones that both have. Published
    figures say nothing of how they were measured and are exempt: `unknown_settings` names them.

    Raises:
        UsageError: names what differs, with the values, and the remedy.
    """
    names = dict.fromkeys(name for file in files for name in flat(file.settings))
    wrong = [text for name in names if (text := _mismatch(name, files))]
    if not wrong:
        return
    rest = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
    raise UsageError(
        f"settings differ: {'; '.join(wrong[:_MOST_NAMED])}{rest}; the baseline phase compares "
        "identical settings: measure again with one of them, or use --phase adapted"
    )


def unknown_settings(files: Sequence[ResultFile]) -> list[ResultFile]:
    """Files whose settings cannot be held to the baseline phase: nobody here measured them."""
    return [
        file for file in files if any(row.provenance is Provenance.PUBLISHED for row in file.rows)
    ]


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings by dotted name: {"a": {"b": 1}} is {"a.b": 1}."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value
    return found


def spell(value: Any) -> str:
    """A setting as messages print it: lists with commas, None as "none"."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(map(spell, value)) or "none"
    return str(value)


def _mismatch(name: str, files: Sequence[ResultFile]) -> str:
    """How files disagree in a setting that counts, or ""."""
    unknown = unknown_settings(files)
    known = [file for file in files if not any(file is it for it in unknown)]
    if not _counts(name, known):
        return ""
    kinds_with = {file.kind for file in known if name in flat(file.settings)}
    values: dict[str, ResultFile] = {}
    for file in known:
        settings = flat(file.settings)
        if name in settings or file.kind in kinds_with:
            values.setdefault(spell(settings[name]) if name in settings else "unset", file)
    if len(values) < 2:
        return ""
    return f"{name} " + ", ".join(f"{value} in {file.path}" for value, file in values.items())


def _counts(name: str, files: Sequence[ResultFile]) -> bool:
    """Whether a setting decides the measurement beyond what the workloads say."""
    last = name.rpartition(".")[2]
    if {name, last} & (INCIDENTAL | COVERAGE):
        return False
    rows = [row for file in files for row in file.rows]
    in_workloads = {_plain(key) for row in rows for key in row.workload}
    told = in_workloads | {_plain(key) for row in rows for key in row.variant}
    if _plain(last) in told or _plain(last).removesuffix("s") in in_workloads:
        return False
    values = [flat(file.settings).get(name) for file in files]
    return not any(isinstance(value, str) and value.startswith(_PATHS) for value in values)


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _said(file: ResultFile) -> dict[tuple[Group, str], str]:
    """All that a file says of itself, by group and name."""
    return dict(_parts(file))


def _parts(file: ResultFile) -> Iterator[tuple[tuple[Group, str], str]]:
    if file.fingerprint is None:
        yield ("machine", "name"), file.machine
    else:
        for name in _MACHINE:
            yield ("machine", name), str(getattr(file.fingerprint, name))
        for name in _SOFTWARE:
            yield ("software", name), str(getattr(file.fingerprint, name))
    for name, version in file.versions.items():
        yield ("software", name), str(version)
    yield ("software", "commit"), file.commit[:12]
    for name, value in flat(file.settings).items():
        yield ("setting", name), spell(value)
