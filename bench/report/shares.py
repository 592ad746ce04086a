"""The report's section on where a step's time goes: GEMMs, fused kernels, attention, the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from slidesparse.bench.report.format import cell, slug
from slidesparse.bench.report.view import Axis, Bar, BarChart, Cell, Group, Look, Section, Table
from slidesparse.bench.rows import ResultFile
from slidesparse.bench.sweep.compare import KINDS, Comparison
from slidesparse.bench.sweep.plan import Block
from slidesparse.bench.sweep.record import Cell as SweepCell
from slidesparse.bench.sweep.record import SweepRecord

TITLE = "Where the time goes"
REMEDY = "slidesparse bench prefill or decode"

LOOKS = {
    "gemm": Look("blue", "s"),
    "fused": Look("orange", "s"),
    "attention": Look("green", "s"),
    "other": Look("muted", "s"),
}

MOST_CHARTS = 3
"""Of a block: the smallest, the middle and the largest M."""

HOW_TO_READ = (
    "A bar is as long as the step takes, as a share of stock's time at that M, and is split as the "
    "GPU's busy time is: GEMMs; fused quantisation, norms and activations; attention; all else."
)


def shares_section(files: Sequence[ResultFile]) -> Section | None:
    """What the sweeps say of their steps' parts; None if no cell of any has shares."""
    groups = []
    for file in files:
        if isinstance(file.record, SweepRecord):
            groups += [it for block in file.record.blocks for it in _groups(file, block)]
    if not groups:
        return None
    about = "Which kinds of kernels fill a step, with stock and with ours."
    return Section("shares", TITLE, about, tuple(groups), (HOW_TO_READ,))


def _groups(file: ResultFile, block: Block) -> Iterator[Group]:
    record: SweepRecord = file.record
    compared = Comparison(record, block)
    cells = [it for it in record.of(block) if it.figures is not None and it.figures.shares]
    ms = sorted({it.m for it in cells if compared.baseline(it.m).us})
    if not ms:
        return
    chosen = sorted({ms[0], ms[len(ms) // 2], ms[-1]})[:MOST_CHARTS]
    title = f"{record.stage} step, {block}, {file.machine}"
    yield Group(
        title,
        (),
        tuple(_chart(file, block, m, [it for it in cells if it.m == m]) for m in chosen),
        (_table(file, block, cells),),
    )


def _chart(file: ResultFile, block: Block, m: int, cells: Sequence[SweepCell]) -> BarChart:
    record: SweepRecord = file.record
    stock = Comparison(record, block).baseline(m).us or 1.0
    bars = [_bar(it, stock) for it in cells]
    unit = "tokens" if str(record.stage) == "prefill" else "sequences"
    alt = f"Parts of a {record.stage} step of {m} {unit}, {block} on {file.machine}. " + " ".join(
        f"{bar.tip}." for bar in bars
    )
    return BarChart(
        slug(f"shares {file.path.stem} {block} m{m}"),
        f"M={m} {unit}, {record.stage} step, {block}, {file.machine}",
        alt,
        Axis("step time over stock's", level=1.0),
        tuple((kind, LOOKS[kind]) for kind in KINDS),
        tuple(bars),
    )


def _bar(it: SweepCell, stock: float) -> Bar:
    figures = it.figures
    assert figures is not None
    length = figures.median_us / stock
    parts = tuple(length * figures.shares.get(kind, 0.0) for kind in KINDS)
    told = ", ".join(f"{kind} {figures.shares.get(kind, 0.0):.0%}" for kind in KINDS)
    return Bar(it.key.label, parts, f"{it.key.label}: {length:.2f} of stock's time, {told}")


def _table(file: ResultFile, block: Block, cells: Sequence[SweepCell]) -> Table:
    rows = []
    for it in cells:
        figures = it.figures
        assert figures is not None
        shares = [figures.shares.get(kind) for kind in KINDS]
        rows.append(
            (
                Cell(it.key.label),
                cell(it.m, str(it.m)),
                cell(figures.median_us),
                cell(figures.tokens_per_s),
                *(cell(share, None if share is None else f"{share:.1%}") for share in shares),
                cell(figures.power_w),
                cell(figures.joules_per_token),
            )
        )
    return Table(
        f"{block}, {file.machine}: shares of the GPU's busy time, measured, {file.path.name}",
        ("system", "M", "step, us", "tokens/s", *KINDS, "power, W", "J/token"),
        tuple(rows),
        folded=len(rows) > 24,
    )
