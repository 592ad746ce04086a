"""Refusals of comparisons that would mean nothing: mixed units or metrics, nothing in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slidesparse.bench.rows import Row, Value
from slidesparse.errors import UsageError

_MOST_VALUES = 4
_MOST_REASONS = 3


def describe(names: Mapping[str, Value]) -> str:
    """A workload or a variant in a few words: "gemm qkv m=4096 dtype=fp8_e4m3"."""
    words = []
    for name, value in names.items():
        bare = name in ("what", "layer", "model", "system", "way") or value == "dense"
        words.append(str(value) if bare else f"{name}={value}")
    return " ".join(words)


def require_one_unit(labels: Sequence[str], columns: Sequence[Sequence[Row]]) -> None:
    """Refuse columns that give one workload in two units, or in metrics that no two share.

    Args:
        labels: of the columns, for messages.
        columns: rows of each.

    Raises:
        UsageError: names the workload, both units or metrics and both files.
    """
    units: dict[tuple[object, str], tuple[str, str, str]] = {}
    metrics: dict[object, dict[str, set[str]]] = {}
    names: dict[object, Mapping[str, Value]] = {}
    for label, rows in zip(labels, columns, strict=True):
        for row in rows:
            key = frozenset(row.workload.items())
            names.setdefault(key, row.workload)
            metrics.setdefault(key, {}).setdefault(label, set()).add(row.metric)
            said = units.setdefault((key, row.metric), (row.unit, row.better, label))
            if said[:2] != (row.unit, row.better):
                raise UsageError(
                    f"mixed units: {row.metric} of {describe(row.workload)} is in "
                    f"{said[0]!r}, {said[1]} better, in {said[2]} and in {row.unit!r}, "
                    f"{row.better} better, in {label}; bring them to one unit"
                )
    for each, by_label in metrics.items():
        _require_one_metric(names[each], by_label)


def require_common(
    labels: Sequence[str],
    columns: Sequence[Sequence[Row]],
    base: int,
    adapted: Sequence[str] = (),
    by_variant: bool = False,
) -> None:
    """Say why the base has no workload in common with another column.

    Args:
        labels: of the columns, for messages.
        columns: rows of each.
        base: index of the column that the others are compared with.
        adapted: names that the adapted phase would let each file choose; none in that phase.
        by_variant: whether rows of one workload were paired only where their variants are one.

    Raises:
        UsageError: always; names what keeps them apart.
    """
    other = next(index for index in range(len(columns)) if index != base)
    here, there = _values(columns[base]), _values(columns[other])
    apart = {
        name: f"{name} is {_few(here[name])} against {_few(there[name])}"
        for name in here
        if name in there and not here[name] & there[name]
    }
    apart |= {name: f"only the first has {name}" for name in here if name not in there}
    apart |= {name: f"only the second has {name}" for name in there if name not in here}
    reason = "; ".join(list(apart.values())[:_MOST_REASONS]) or "no two rows agree in all of it"
    workloads = [{frozenset(row.workload.items()) for row in rows} for rows in columns]
    if by_variant and workloads[base] & workloads[other]:
        raise UsageError(
            f"{labels[base]} and {labels[other]} have workloads in common, but no variant of one; "
            "leave out --by variant"
        )
    adaptable = bool(apart) and set(apart) <= set(adapted)
    remedy = "use --phase adapted" if adaptable else "compare files of the same workloads"
    raise UsageError(
        f"{labels[base]} and {labels[other]} have no workload in common: {reason}; {remedy}"
    )


def _require_one_metric(workload: Mapping[str, Value], by_label: Mapping[str, set[str]]) -> None:
    (first, here), *others = by_label.items()
    for label, there in others:
        if not here & there:
            raise UsageError(
                f"mixed metrics: {first} gives {', '.join(sorted(here))} of {describe(workload)}, "
                f"{label} gives {', '.join(sorted(there))}; compare files of one metric"
            )


def _values(rows: Sequence[Row]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.workload.items():
            found.setdefault(name, set()).add(str(value))
    return found


def _few(values: set[str]) -> str:
    shown = sorted(values, key=lambda text: (len(text), text))
    rest = f", ... ({len(shown)})" if len(shown) > _MOST_VALUES else ""
    return ", ".join(shown[:_MOST_VALUES]) + rest
