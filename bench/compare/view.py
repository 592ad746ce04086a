"""A comparison as tables of text, which the terminal and Markdown print alike."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from slidesparse.bench.compare.align import describe
from slidesparse.bench.compare.differs import difference_section
from slidesparse.bench.compare.lines import Comparison, Line
from slidesparse.bench.compare.text import (
    Section,
    column_labels,
    figure,
    letters,
    others_of,
    varying,
)
from slidesparse.bench.rows import Row, Value

_MOST_BESIDE = 3
"""Columns that stand beside each other; more of them stand below each other."""

_BACKEND = re.compile(r"[A-Za-z][\w.]*")


def make_view(compared: Comparison, every: bool = False) -> list[Section]:
    """The sections of a comparison: what differs, figures, quality, what has no partner.

    Args:
        compared: what was found.
        every: whether to list each workload that one column has.
    """
    figures = [part for part in _parts(compared.lines) if not part[0].quality]
    quality = [part for part in _parts(compared.lines) if part[0].quality]
    return [
        difference_section(compared),
        *(_figures(compared, part) for part in figures),
        *(_quality(compared, part) for part in quality),
        _alone(compared, every),
        *([] if not figures else [Section("", lines=tuple(_legend(compared)))]),
    ]


def _parts(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines of one metric and one kind of workload each."""
    parts: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        parts.setdefault((line.metric, str(line.workload.get("what", ""))), []).append(line)
    return list(parts.values())


def _figures(compared: Comparison, lines: Sequence[Line]) -> Section:
    """Figures with their spread, who did it, ratios over the base."""
    shared, names = varying(lines)
    first = lines[0]
    better = next(cell.better for cell in first.cells if cell is not None)
    unit = f"{first.unit}, " if first.unit else ""
    paired = any(line.variant for line in lines)
    columns = [[line.cells[index] for line in lines] for index in range(len(compared.columns))]
    always = [{} if paired else _always(cells) for cells in columns]
    heads = (*names, *(["variant"] if paired else []))
    labels = column_labels(compared, lines)
    found = [_column(cells, said, paired) for cells, said in zip(columns, always, strict=True)]
    named = [
        (
            *(str(line.workload.get(name, "")) for name in names),
            *([describe(line.variant)] if paired else []),
        )
        for line in lines
    ]
    ratios = [["" if it is None else str(it) for it in line.ratios] for line in lines]
    layout = _long if len(labels) > _MOST_BESIDE else _wide
    headings, rows, words = layout(heads, named, labels, found, ratios, compared)
    title = f"{first.metric} ({unit}{better} is better): {describe(shared)}"
    notes = (*_said_once(compared, always), *_summaries(compared, lines))
    return Section(title, headings, rows, notes, words)


Texts = tuple[str, ...]
Layout = tuple[Texts, list[Texts], frozenset[int]]


def _wide(
    heads: Texts,
    named: Sequence[Texts],
    labels: Sequence[str],
    found: Sequence[Sequence[tuple[str, str]]],
    ratios: Sequence[Sequence[str]],
    compared: Comparison,
) -> Layout:
    """A row per workload, columns beside each other; "by" only where it says something."""
    marks, others = letters(compared), others_of(compared)
    headings, rows = list(heads), [list(row) for row in named]
    for label, cells in zip(labels, found, strict=True):
        told = any(by for _, by in cells)
        headings += [label, "by"] if told else [label]
        for row, (value, by) in zip(rows, cells, strict=True):
            row += [value, by] if told else [value]
    headings += [f"{marks[index]} vs {marks[compared.base]}" for index in others]
    for row, mine in zip(rows, ratios, strict=True):
        row += [mine[index] or "-" for index in others]
    words = {i for i, name in enumerate(headings) if i < len(heads) or name == "by"}
    return tuple(headings), [tuple(row) for row in rows], frozenset(words)


def _long(
    heads: Texts,
    named: Sequence[Texts],
    labels: Sequence[str],
    found: Sequence[Sequence[tuple[str, str]]],
    ratios: Sequence[Sequence[str]],
    compared: Comparison,
) -> Layout:
    """A row per workload and column: more columns than fit beside each other."""
    rows = [
        (*names, label, value, by, ratios[index][column])
        for index, names in enumerate(named)
        for column, label in enumerate(labels)
        for value, by in [found[column][index]]
        if value != "-"
    ]
    told = any(row[-2] for row in rows)
    headings = (*heads, "column", "figure", "by", f"vs {letters(compared)[compared.base]}")
    if not told:
        rows = [(*row[:-2], row[-1]) for row in rows]
        headings = (*headings[:-2], headings[-1])
    words = {*range(len(heads) + 1), *([len(heads) + 2] if told else [])}
    return headings, rows, frozenset(words)


def _column(
    cells: Sequence[Row | None], said: Mapping[str, Value], paired: bool
) -> list[tuple[str, str]]:
    """Figure and who did it, per line; the line itself says who where it is of one variant."""
    return [(_value(row, cells), "" if paired else _by(row, said)) for row in cells]


def _always(cells: Sequence[Row | None]) -> dict[str, Value]:
    """What the variants of all these cells share, where there are several."""
    variants = [cell.variant for cell in cells if cell is not None]
    if len(variants) < 2:
        return {}
    items = set(variants[0].items()).intersection(*(it.items() for it in variants[1:]))
    return {name: value for name, value in variants[0].items() if (name, value) in items}


def _said_once(compared: Comparison, always: Sequence[Mapping[str, Value]]) -> Iterator[str]:
    for mark, said in zip(letters(compared), always, strict=True):
        if said:
            yield f"{mark} is {describe(said)} in all of it."


def _value(row: Row | None, column: Sequence[Row | None]) -> str:
    """A figure, half its interquartile range as a share, and its provenance where it is rare."""
    if row is None:
        return "-"
    text = figure(row.value)
    if row.spread is not None and row.value:
        text += f" ±{50 * row.spread / abs(row.value):.1f}%"
    kinds = Counter(it.provenance for it in column if it is not None)
    usual = kinds.most_common(1)[0][0]
    return text if row.provenance is usual else f"{text} ({row.provenance})"


def _by(row: Row | None, said: Mapping[str, Value]) -> str:
    """Who did it: the variant, and the backend where that alone does not say it."""
    if row is None:
        return ""
    backend = row.how.split(" ", 1)[0]
    named = describe({name: it for name, it in row.variant.items() if name not in said})
    if "backend" in row.variant or not _BACKEND.fullmatch(backend) or backend in named.split():
        return named
    return f"{named}, {backend}" if named else backend


def _summaries(compared: Comparison, lines: Sequence[Line]) -> Iterator[str]:
    """Per column: in how many workloads it is better, and the geometric mean of the ratios."""
    marks = letters(compared)
    base = marks[compared.base]
    for index, mark in enumerate(marks):
        ratios = [it for line in lines if (it := line.ratios[index]) is not None]
        if not ratios:
            continue
        verdicts = Counter(it.verdict for it in ratios)
        words = ("better", "no difference", "worse", "spread unknown")
        counts = ", ".join(f"{word} in {verdicts[word]}" for word in words if verdicts[word])
        values = [it.value for it in ratios]
        mean = math.exp(sum(map(math.log, values)) / len(values))
        yield (
            f"{mark} vs {base}: {counts} of {len(ratios)}; geometric mean {mean:.2f} "
            f"({min(values):.2f} to {max(values):.2f})"
        )
    yield from _other_models(compared, lines)


def _other_models(compared: Comparison, lines: Sequence[Line]) -> Iterator[str]:
    """A warning where the best were chosen among patterns: the sparsest would win unnoticed."""
    rows = [row for column in compared.columns for row in column.rows]
    choice = {str(row.variant["pattern"]) for row in rows if "pattern" in row.variant}
    best = {
        str(cell.variant["pattern"])
        for line in lines
        if not line.variant
        for cell in line.cells
        if cell is not None and "pattern" in cell.variant
    }
    remedy = "--where pattern=6:8 keeps one, --by variant shows all."
    if len(best) > 1:
        yield (
            f"The best are of different patterns ({', '.join(sorted(best))}), whose models "
            f"answer differently: {remedy}"
        )
    elif best - {"dense"} and len(choice) > 1:
        others = ", ".join(sorted(choice - best))
        yield (
            f"The best are all of pattern {''.join(best)}, whose model answers differently than "
            f"those of {others}: {remedy}"
        )


def _quality(compared: Comparison, lines: Sequence[Line]) -> Section:
    """One line per variant: what the model says, and whether it is the same."""
    shared, names = varying(lines)
    marks, others = letters(compared), others_of(compared)
    versus = [f"{marks[index]} vs {marks[compared.base]}" for index in others]
    headings = (*names, "variant", *column_labels(compared, lines), *versus)
    rows, verdicts = [], Counter[str]()
    for line in lines:
        shifts = line.shifts
        verdicts.update(it.verdict for it in shifts if it is not None)
        rows.append(
            (
                *(str(line.workload.get(name, "")) for name in names),
                describe(line.variant),
                *("-" if cell is None else f"{cell.value:.6g}" for cell in line.cells),
                *("-" if (it := shifts[index]) is None else str(it) for index in others),
            )
        )
    metric = lines[0].metric
    unit = f" ({lines[0].unit})" if lines[0].unit else ""
    counts = ", ".join(f"{count} {word}" for word, count in verdicts.most_common())
    should = f"{metric} should be the same on every machine: {counts}."
    words = frozenset(range(len(names) + 1))
    return Section(f"{metric}{unit}: {describe(shared)}", headings, rows, (should,), words)


def _alone(compared: Comparison, every: bool) -> Section:
    """What one column has and no other."""
    marks = letters(compared)
    found: dict[int, list[Line]] = {}
    for line in compared.alone:
        index = next(i for i, cell in enumerate(line.cells) if cell is not None)
        found.setdefault(index, []).append(line)
    partial = sum(None in line.cells for line in compared.lines)
    lines = [f"{len(compared.lines)} workloads and metrics are in at least two columns."]
    if partial and len(marks) > 2:
        lines.append(f"{partial} of them are not in all ('-').")
    for index in others_of(compared):
        if not any(line.cells[index] and line.cells[compared.base] for line in compared.lines):
            lines.append(f"{marks[index]} has nothing in common with {marks[compared.base]}.")
    for index, mine in found.items():
        file = compared.files[compared.columns[index].file]
        text = f"{len(mine)} only in {marks[index]} ({file.path})"
        if every:
            lines += [f"{text}:", *(f"  {_spelled(line)}" for line in mine)]
        else:
            lines.append(f"{text}; --all lists them.")
    return Section("", lines=tuple(lines))


def _spelled(line: Line) -> str:
    return " ".join(filter(None, [line.metric, describe(line.workload), describe(line.variant)]))


def _legend(compared: Comparison) -> Iterator[str]:
    base = letters(compared)[compared.base]
    yield (
        f"Ratios over {base}: above 1 the other is better, whichever way the metric improves; ± is "
        "half the interquartile range. 'no difference': 1 is inside it. '~': no spread is known. "
        "A spread is that of one session; what a machine drifts between sessions is not in it."
    )
