"""The report's section on accuracy against speed: what each pattern costs and what it gains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from slidesparse.bench.accuracy.record import AccuracyRecord, AccuracyRow
from slidesparse.bench.allocation.record import AllocationRecord
from slidesparse.bench.report.curves import Curves, curves_of
from slidesparse.bench.report.format import HUES, cell, ratio_cell, slug
from slidesparse.bench.report.view import (
    Axis,
    Cell,
    Group,
    Guide,
    LineChart,
    Look,
    Mark,
    Section,
    Series,
    Table,
)
from slidesparse.bench.rows import ResultFile
from slidesparse.problem import DType

TITLE = "Accuracy against speed"
REMEDY = "slidesparse eval or slidesparse allocate"

_BEST_FIRST = ("prefill step", "decode step", "whole linears", "GEMM only")
"""Which speedup stands for a pattern where several were measured; published ones never do."""

HOW_TO_READ = (
    "Right and down is better; the dashed line joins what nothing beats in both. Bars are one "
    "standard error of the loss increase to either side. Hollow marks: the speedup is within the "
    "spread, so there is none."
)

_LOSS = "loss increase, nats per token"

_WIDE = 10.0
"""Losses that are further apart than this factor are drawn over decades."""

_DENSE_LOOK = Look("ink", "o")


class Speed(NamedTuple):
    """Where speedups are taken from.

    Args:
        file: that has them.
        curves: of it.
        m: at which.
    """

    file: ResultFile
    curves: Curves
    m: int

    @property
    def named(self) -> str:
        """What was timed, of which model, how, over what, where."""
        it = self.curves
        detail = f" ({it.detail})" if it.detail else ""
        return (
            f"{it.what} of {it.model}{detail} at M={self.m} over {it.against} on "
            f"{self.file.machine}"
        )


def pareto_section(files: Sequence[ResultFile]) -> Section | None:
    """What evaluations and allocations say; None if there is none of them."""
    groups: list[Group] = []
    for file in files:
        if isinstance(file.record, AllocationRecord):
            groups.append(_allocation(file, file.record))
        elif isinstance(file.record, AccuracyRecord) and file.record.rows:
            groups.append(_accuracy(file, file.record, files))
    if not groups:
        return None
    about = "What pruning and quantising cost in accuracy, and what speed they buy."
    return Section("pareto", TITLE, about, tuple(groups), (HOW_TO_READ,), tuple(_findings(files)))


def frontier(marks: Iterable[Mark]) -> tuple[tuple[float, float], ...]:
    """Corners of the line that joins what nothing else beats in both speed and loss, as steps."""
    corners: list[tuple[float, float]] = []
    best = float("inf")
    # From the fastest down: only what loses less than all that is faster remains.
    for mark in sorted(marks, key=lambda mark: (-mark.x, mark.y)):
        if mark.y < best:
            if corners:
                corners.append((mark.x, corners[-1][1]))
            corners.append((mark.x, mark.y))
            best = mark.y
    return tuple(corners)


def speed_for(model: str, dtype: DType, files: Iterable[ResultFile]) -> Speed | None:
    """The speedups that fit an evaluation: of its model if there are any, of whole models first.

    Args:
        model: that was evaluated.
        dtype: W8A8 in this dtype.
        files: to look in.
    """
    found = [
        (file, it)
        for file in files
        for it in curves_of(file.record)
        if it.dtype is dtype
        and it.what in _BEST_FIRST
        and any(not curve.pattern.dense for curve in it.curves)
    ]
    if not found:
        return None
    file, it = min(
        found,
        key=lambda pair: (_plain(pair[1].model) != _plain(model), _BEST_FIRST.index(pair[1].what)),
    )
    # The largest M that all patterns have: there the arithmetic bounds, not the launches.
    sets = [{point.m for point in curve.points} for curve in it.curves]
    return Speed(file, it, max(set.intersection(*sets) or set.union(*sets)))


def _plain(model: str) -> str:
    return slug(model.rstrip("/").rsplit("/", 1)[-1])


def _allocation(file: ResultFile, record: AllocationRecord) -> Group:
    marks = [
        Mark(
            it.speedup,
            it.increase,
            tip=f"{it.name}: {it.speedup:.3f}x, loss {it.increase:+.4f}",
            error=it.error,
            label=it.name,
        )
        for it in record.outcomes
    ]
    looks = [_DENSE_LOOK, *(HUES[1 if it.name == "chosen" else 0] for it in record.outcomes[1:])]
    kinds: dict[str, tuple[Look, list[Mark]]] = {}
    for it, look, mark in zip(record.outcomes, looks, marks, strict=True):
        kind = it.name if it.name in ("dense", "chosen") else "others"
        kinds.setdefault(kind, (look, []))[1].append(mark)
    series = [Series(kind, look, tuple(m), line=False) for kind, (look, m) in kinds.items()]
    words = ". ".join(mark.tip for mark in marks)
    chart = LineChart(
        slug(f"pareto {file.path.stem} allocation"),
        f"{record.model}, allocation, {file.machine}",
        f"Loss increase against speedup of {record.model}. {words}.",
        Axis("speedup of the linears over dense"),
        _loss_axis(marks),
        tuple(series),
        (Guide("", frontier(marks), hue="muted", dashed=True),),
    )
    rows = tuple(
        (
            Cell(it.name),
            ratio_cell(it.speedup),
            cell(it.increase, f"{it.increase:+.4f} ± {it.error:.4f}"),
            cell(it.perplexity, f"{it.perplexity:.2f}"),
            cell(it.zeros, f"{it.zeros:.1%}"),
            cell(it.predicted, f"{it.predicted:.4f}"),
        )
        for it in record.outcomes
    )
    table = Table(
        f"{record.model}: whole models that were pruned and measured, {file.path.name}. Speedups "
        f"are of the searched GEMMs ({record.gemm}), losses are measured, predictions estimated.",
        ("model", "speedup", "loss increase", "perplexity", "zeros", "predicted"),
        rows,
    )
    return Group(f"Allocation of {record.model}", record.verdicts, (chart,), (table,))


def _accuracy(file: ResultFile, record: AccuracyRecord, files: Sequence[ResultFile]) -> Group:
    notes = []
    charts = []
    for dtype in dict.fromkeys(row.dtype for row in record.rows if row.dtype is not None):
        speed = speed_for(record.model, dtype, files)
        chart = _accuracy_chart(file, record, dtype, speed) if speed is not None else None
        if speed is None or chart is None:
            which = dtype if speed is None else f"the evaluated patterns in {dtype}"
            notes.append(f"No speedups of {which} are among these files, so it has no figure.")
            continue
        charts.append(chart)
        other = _plain(speed.curves.model) != _plain(record.model)
        warning = f" That is not the model whose loss this is, {record.model}." if other else ""
        notes.append(f"Speedups of {dtype}: {speed.named}, {speed.file.path.name}.{warning}")
    if charts and any(row.recipe for row in record.rows):
        notes.append("Recipes mix patterns, of which no one speedup is known: they have no mark.")
    title = f"Evaluation of {record.model}"
    return Group(title, tuple(notes), tuple(charts), (_accuracy_table(file, record),))


def _accuracy_chart(
    file: ResultFile, record: AccuracyRecord, dtype: DType, speed: Speed
) -> LineChart | None:
    kinds: dict[str, list[Mark]] = {}
    for row in record.rows:
        if row.dtype is dtype and not row.recipe:
            mark = _accuracy_mark(row, speed)
            if mark is not None:
                kinds.setdefault(str(row.method or "dense"), []).append(mark)
    if not any(name != "dense" for name in kinds):
        return None
    looks = iter(HUES)
    series = [
        Series(name, _DENSE_LOOK if name == "dense" else next(looks), tuple(marks), line=False)
        for name, marks in kinds.items()
    ]
    every = [mark for marks in kinds.values() for mark in marks]
    words = ". ".join(mark.tip for mark in every)
    return LineChart(
        slug(f"pareto {file.path.stem} {record.model} {dtype}"),
        f"{record.model}, {dtype}, loss against speedup",
        f"Loss increase of {record.model} against the speedup of {speed.named}. {words}.",
        Axis(f"speedup, {speed.curves.what} at M={speed.m}", level=1.0),
        _loss_axis(every),
        tuple(series),
        (Guide("", frontier(every), hue="muted", dashed=True),),
    )


def _loss_axis(marks: Iterable[Mark]) -> Axis:
    """Of losses: those of magnitude pruning are a hundred times those of the best."""
    losses = [abs(mark.y) for mark in marks if mark.y]
    wide = bool(losses) and max(losses) > _WIDE * min(losses)
    return Axis(_LOSS, "symlog" if wide else "linear", level=0.0)


def _accuracy_mark(row: AccuracyRow, speed: Speed) -> Mark | None:
    point = speed.curves.at(row.pattern, speed.m)
    if point is not None:
        value, hollow = point.value, not point.clear
    elif row.pattern.dense:
        value, hollow = 1.0, False
    else:
        return None
    name = str(row.pattern)
    tip = f"{name} {row.method or ''}: {value:.2f}x, loss {row.increase:+.4f} ± {row.error:.4f}"
    tip = tip.replace(" :", ":")
    return Mark(value, row.increase, hollow, tip, error=row.error, label=name)


def _accuracy_table(file: ResultFile, record: AccuracyRecord) -> Table:
    rows = tuple(
        (
            Cell(f"recipe, {row.pattern}" if row.recipe else str(row.pattern)),
            Cell(str(row.method or "-")),
            Cell(str(row.dtype or "-")),
            cell(row.zeros, f"{row.zeros:.1%}"),
            _perplexity(row),
            cell(row.increase, f"{row.increase:+.4f} ± {row.error:.4f}"),
            cell(row.agreement, f"{row.agreement:.2%}"),
            cell(row.kl, f"{row.kl:.4f}"),
        )
        for row in record.rows
    )
    return Table(
        f"{record.model} on {record.evaluation.name}, {record.rows[0].tokens:,} tokens, measured, "
        f"{file.path.name}",
        ("pattern", "method", "W8A8", "zeros", "perplexity", "loss increase", "same token", "KL"),
        rows,
    )


def _perplexity(row: AccuracyRow) -> Cell:
    if row.perplexity is None:
        # More than a float holds, so it is sorted as the largest that there is.
        return Cell("> 1e300", 1e300)
    return cell(row.perplexity, f"{row.perplexity:,.2f}")


def _findings(files: Sequence[ResultFile]) -> Iterator[str]:
    for file in files:
        record = file.record
        if isinstance(record, AllocationRecord):
            it = record.chosen
            yield (
                f"Allocation of {record.model}, {file.machine}: {it.speedup:.2f}x for a loss of "
                f"{it.increase:+.4f} ± {it.error:.4f} nats per token."
            )
