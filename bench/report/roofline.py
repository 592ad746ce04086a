"""The report's roofline: GEMMs and linears by arithmetic intensity, under the GPU's ceilings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from slidesparse.bench.report.format import cell, number, pattern_look, slug
from slidesparse.bench.report.view import (
    Axis,
    Cell,
    Group,
    Guide,
    LineChart,
    Mark,
    Section,
    Series,
    Table,
)
from slidesparse.bench.roofline import SPEC_NAMES, Machine, Place, machines_of, places_of
from slidesparse.bench.rows import ResultFile
from slidesparse.candidate import Provenance
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, GemmProblem

TITLE = "Roofline"
REMEDY = "slidesparse search or slidesparse bench linear, on a GPU of the table in slidesparse.gpus"

ABOUT = (
    "Intensity: multiplications and additions of the dense product, 2 M N K, over the bytes that "
    "must move at least: input and output once, the non-zero weights once with 2 bits of position "
    "each. Rates are of the dense product, too, so a pattern's ceiling is its bound times the "
    "dense peak. Hollow marks: a dense algorithm ran on the pruned weights."
)

CEILINGS = (
    "Ceilings are the maker's figures, at the clock that the maker counts with; the dashed slope "
    "is the copy that was measured, if any was. They are not reached, least of all where a GPU "
    "lowers its clock for its power. A whole linear reads BF16 and quantises it; an input "
    "that a library has to repeat for 2:4 tensor cores moves more, and that counts against it. Of "
    "a problem in several files the fastest is shown."
)


class Ceiling(NamedTuple):
    """What one machine can do at best.

    Args:
        name: of the ceiling.
        value: in the unit of its name.
        provenance: published or measured.
        source: where it is from.
    """

    name: str
    value: float
    provenance: Provenance
    source: str


def roofline_section(files: Sequence[ResultFile]) -> Section | None:
    """What searches and benchmarks of linears reach of the GPU's ceilings; None without any."""
    groups, findings = [], []
    for machine in machines_of(files):
        charts, tables = [], [_ceilings_table(machine)]
        for what, dtype, places in _sets(machine, files):
            if machine.spec.tflops.get(SPEC_NAMES[dtype]) is None:
                continue
            charts.append(_chart(machine, what, dtype, places))
            tables.append(_places_table(machine, what, dtype, places))
            findings.append(_finding(machine, what, dtype, places))
        if charts:
            name = machine.fingerprint.name
            groups.append(Group(name, (), tuple(charts), tuple(tables)))
    if not groups:
        return None
    return Section(
        "roofline",
        TITLE,
        "How near each GEMM comes to what the GPU can do, and whether memory or arithmetic is "
        "what limits it.",
        tuple(groups),
        (ABOUT, CEILINGS),
        tuple(findings),
    )


def _sets(
    machine: Machine, files: Iterable[ResultFile]
) -> Iterator[tuple[str, DType, list[Place]]]:
    """Places of a machine by what was timed and dtype; of a problem in two files, the faster."""
    best: dict[tuple[str, DType], dict[tuple[str, GemmProblem], Place]] = {}
    for file in files:
        if file.fingerprint is None or file.fingerprint.name != machine.fingerprint.name:
            continue
        for what, place in places_of(file):
            group = best.setdefault((what, place.problem.dtype), {})
            key = (place.name, place.problem)
            if key not in group or place.us < group[key].us:
                group[key] = place
    for (what, dtype), group in sorted(best.items()):
        yield what, dtype, list(group.values())


def _patterns(places: Iterable[Place]) -> list[Pattern]:
    found = {place.problem.pattern for place in places}
    return sorted(found, key=lambda pattern: (not pattern.dense, -float(pattern.bound)))


def _chart(machine: Machine, what: str, dtype: DType, places: list[Place]) -> LineChart:
    series = []
    for pattern in _patterns(places):
        these = [place for place in places if place.problem.pattern == pattern]
        marks = tuple(
            Mark(place.intensity, place.tflops, _fell_back(place), _tip(machine, place))
            for place in sorted(these, key=lambda place: place.intensity)
        )
        series.append(Series(str(pattern), pattern_look(pattern), marks, line=False))
    name = machine.fingerprint.name
    shares = [share for place in places if (share := machine.share(place)) is not None]
    return LineChart(
        slug(f"roofline {name} {what} {dtype}"),
        f"{what}, {dtype}, {name}",
        f"TFLOP/s against arithmetic intensity of {len(places)} problems ({what}, {dtype}) on "
        f"{name}, below its maker's ceilings of memory and tensor cores. They reach "
        f"{min(shares):.0%} to {max(shares):.0%} of their ceiling.",
        Axis("FLOP per byte that must move", "log10"),
        Axis("TFLOP/s of the dense product", "log10"),
        tuple(series),
        tuple(_guides(machine, dtype, places)),
    )


def _fell_back(place: Place) -> bool:
    """Whether a dense algorithm ran on pruned weights."""
    return not place.sparse and not place.problem.pattern.dense


def _guides(machine: Machine, dtype: DType, places: Sequence[Place]) -> Iterator[Guide]:
    peak = machine.spec.tflops[SPEC_NAMES[dtype]]
    bandwidth = machine.spec.bandwidth_gbs / 1e3
    sparse = [place.problem.pattern for place in places if place.sparse]
    widest = max(sparse, key=lambda pattern: pattern.bound, default=DENSE)
    top = peak * float(widest.bound)
    ridge = top / bandwidth
    left = min(place.intensity for place in places) / 1.5
    right = max(max(place.intensity for place in places), ridge)
    # Room for the names at the right end.
    right *= (right / left) ** 0.4
    middle = math.sqrt(left * ridge)
    slope = ((left, left * bandwidth), (ridge, top))
    yield Guide(f"{bandwidth:.2f} TB/s", slope, (middle, middle * bandwidth), "muted")
    level = ((peak / bandwidth, peak), (right, peak))
    yield Guide(f"dense {number(peak)}", level, hue="muted", below=True)
    if top > peak:
        name = f"{widest} {number(top)}"
        yield Guide(name, ((ridge, top), (right, top)), hue="muted", dashed=True)
    if machine.copy_gbs is not None:
        copy = machine.copy_gbs / 1e3
        yield Guide("", ((left, left * copy), (peak / copy, peak)), hue="sky", dashed=True)


def _tip(machine: Machine, place: Place) -> str:
    share = machine.share(place)
    reached = "" if share is None else f", {share:.0%} of its ceiling"
    it = place.problem
    return f"{place.name}, M={it.m}, {it.pattern}: {number(place.tflops)} TFLOP/s{reached}"


def _ceilings(machine: Machine) -> Iterator[Ceiling]:
    spec, published = machine.spec, Provenance.PUBLISHED
    source = spec.sources.get("bandwidth_gbs", "")
    yield Ceiling("memory bandwidth, GB/s", spec.bandwidth_gbs, published, source)
    if machine.copy_gbs is not None:
        told = "large copy, slidesparse bench kernels; the dashed slope"
        yield Ceiling("memory bandwidth, GB/s", machine.copy_gbs, Provenance.MEASURED, told)
    for dtype, key in SPEC_NAMES.items():
        if key in spec.tflops:
            source = spec.sources.get(f"tflops.{key}", "")
            name = f"dense tensor cores, {dtype}, TFLOP/s"
            yield Ceiling(name, spec.tflops[key], published, source)


def _ceilings_table(machine: Machine) -> Table:
    rows = [
        (Cell(it.name), cell(it.value), Cell(str(it.provenance)), Cell(it.source))
        for it in _ceilings(machine)
    ]
    return Table(
        f"Ceilings of {machine.spec.name}",
        ("ceiling", "value", "provenance", "source"),
        tuple(rows),
    )


def _places_table(machine: Machine, what: str, dtype: DType, places: Sequence[Place]) -> Table:
    rows = []
    for place in places:
        it, share = place.problem, machine.share(place)
        rows.append(
            (
                Cell(place.name),
                cell(it.m, str(it.m)),
                Cell(str(it.pattern)),
                Cell("sparse" if place.sparse else "dense"),
                cell(place.us),
                cell(place.intensity),
                cell(place.tflops),
                cell(share, None if share is None else f"{share:.1%}"),
            )
        )
    return Table(
        f"{what}, {dtype}, {machine.fingerprint.name}: rates are derived from measured times",
        ("linear", "M", "pattern", "ran", "us", "FLOP per byte", "TFLOP/s", "of its ceiling"),
        tuple(rows),
        folded=True,
    )


def _finding(machine: Machine, what: str, dtype: DType, places: Sequence[Place]) -> str:
    found = [(share, place) for place in places if (share := machine.share(place)) is not None]
    share, place = max(found, key=lambda pair: pair[0])
    it = place.problem
    return (
        f"Roofline, {what}, {dtype}, {machine.fingerprint.name}: at most {share:.0%} of the "
        f"maker's ceiling ({place.name}, M={it.m}, {it.pattern}, {number(place.tflops)} TFLOP/s)."
    )
