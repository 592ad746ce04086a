"""How `slidesparse plan` prints: the verdict, the memory, the limits, what bounds the layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from slidesparse.bench.capacity.record import GROUPS, CapacityRecord, PlanEntry, StepEntry
from slidesparse.candidate import Provenance
from slidesparse.capacity.figure import sequences, size, weakest
from slidesparse.capacity.nearest import KNOBS
from slidesparse.capacity.roofline import LINK, MEMORY, TENSOR, UNKNOWN_RATE

if TYPE_CHECKING:
    from rich.console import Console

LIMITATIONS = (
    "Ceilings: what tensor cores, memory and NVLink allow, with measured GEMM times where the "
    "tuning cache has them. Power limits, launches and scheduling are not modelled: no engine "
    "reaches them."
)


WIDE = 110
"""Columns from which a table of layers has room for where each time is from."""

SHORT = {TENSOR: "tensor", MEMORY: "memory", UNKNOWN_RATE: "memory?", LINK: "NVLink"}
"""What binds a layer, in a narrow table."""


def print_plan(record: CapacityRecord, console: Console) -> None:
    """Print one plan."""
    plan = record.plans[0]
    console.print(plan.verdict, markup=False, soft_wrap=True)
    console.print(_heading(plan), markup=False)
    console.print(_memory(plan))
    for line in _limits(plan):
        console.print(line, markup=False)
    _print_changes(plan, console)
    wide = console.width >= WIDE
    for step in plan.steps:
        console.print()
        console.print(_step_line(step, plan.fits), markup=False)
        console.print(_step(step, wide))
        if not wide:
            _print_sources(step, console)
    console.print(f"\n{LIMITATIONS}", markup=False)
    for note in plan.notes:
        console.print(f"Note: {note}.", markup=False)


def print_comparison(record: CapacityRecord, console: Console) -> None:
    """Print two plans side by side; the first line is the verdict on the second."""
    current, proposed = record.plans
    for plan in (proposed, current):
        console.print(f"{plan.name} {plan.verdict}", markup=False, soft_wrap=True)
    console.print()
    console.print(_beside(current, proposed))
    _print_changes(proposed, console)
    console.print(f"\n{LIMITATIONS}", markup=False)
    for plan in (current, proposed):
        for note in plan.notes:
            console.print(f"Note on {plan.name}: {note}.", markup=False)


def _heading(plan: PlanEntry) -> str:
    said = plan.settings
    gpus = f"{plan.gpus} x {plan.gpu}" if plan.gpus > 1 else plan.gpu
    sparse = "" if said["pattern"] == "dense" else f" {said['pattern']}"
    eager = ", eager" if said["eager"] else ""
    return (
        f"{plan.model} ({said['quant']}{sparse}) on {gpus}: {sequences(said['batch'])} of "
        f"{said['context']:,} tokens at once, max-seqs {said['max-seqs']:,}, KV cache "
        f"{said['kv-dtype']}, steps of {said['batched-tokens']:,} tokens at most{eager}\n"
    )


def _memory(plan: PlanEntry) -> Table:
    """Parts under their groups; bytes outside the fraction have no share of it."""
    table = plain_table(
        ("", "left"), ("memory", "right"), ("share", "right"), ("", "left"), ("", "left")
    )
    for group in GROUPS:
        parts = [part for part in plan.parts if part.group == group]
        taken = sum(part.bytes for part in parts)
        inside = all(part.inside for part in parts)
        share = f"{100 * taken / plan.budget:.1f} %" if inside else "beside"
        source = str(weakest(part.provenance for part in parts))
        alone = len(parts) == 1
        table.add_row(group, size(taken), share, source, parts[0].how if alone and parts else "")
        if not alone:
            for part in parts:
                word = str(part.provenance)
                table.add_row(f"  {part.name}", size(part.bytes), "", word, part.how)
    share = f"{100 * plan.needed / plan.budget:.1f} %"
    table.add_section()
    source = str(weakest(part.provenance for part in plan.parts if part.inside))
    table.add_row("total", size(plan.needed), share, source, f"of {size(plan.budget)}")
    return table


def _limits(plan: PlanEntry) -> Iterator[str]:
    said = plan.settings
    word = Provenance.ESTIMATED
    yield f"\nKV cache in what is left: {plan.kv_tokens:,} tokens, as vLLM counts them ({word})"
    yield f"Most concurrent sequences of {said['context']:,} tokens: {plan.sequences:,} ({word})"
    yield (
        f"Largest context with {sequences(said['batch'])}: {plan.longest:,} tokens; with one: "
        f"{plan.alone:,} ({word})"
    )


def _print_changes(plan: PlanEntry, console: Console) -> None:
    if plan.fits:
        return
    if not plan.changes:
        console.print(
            "\nNo change of one or two settings makes it fit, up to 8 GPUs; use a smaller model",
            markup=False,
        )
        return
    table = plain_table(("nearest change", "left"), ("of", "left"), ("to spare", "right"))
    for change in plan.changes:
        table.add_row(change.option, change.knob, size(change.spare))
    told = {knob for change in plan.changes for knob in change.knob.split(" + ")}
    for knob in KNOBS:
        if knob not in told:
            table.add_row("no value of it helps", knob, "")
    console.print("\nWhat fits, each planned again:", markup=False)
    console.print(table)


def _step_line(step: StepEntry, fits: bool) -> str:
    if step.stage == "prefill":
        what = f"a step of {step.tokens:,} tokens amid a prompt of {step.context:,}"
    else:
        what = f"one token for each of {sequences(step.tokens)} of {step.context:,}"
    if not fits:
        what += ", if they fitted"
    return (
        f"{step.stage}: {what}: at most {step.tokens_per_s:,.0f} tok/s, {step.us / 1e3:,.2f} ms, "
        f"bound mostly by {step.bound} ({step.provenance})"
    )


def _step(step: StepEntry, wide: bool) -> Table:
    columns = [
        ("layer", "left"),
        ("count", "right"),
        ("us each", "right"),
        ("share", "right"),
        ("tensor us", "right"),
        ("memory us", "right"),
        ("bound by", "left"),
        ("time is", "left"),
    ]
    table = plain_table(*columns, *([("from", "left")] if wide else []))
    for layer in step.layers:
        tensor = "" if layer.tensor_us is None else _us(layer.tensor_us)
        table.add_row(
            layer.name,
            f"{layer.count:,}",
            _us(layer.us),
            f"{100 * layer.us * layer.count / step.us:.0f} %",
            tensor,
            _us(layer.memory_us),
            layer.bound if wide else SHORT[layer.bound],
            str(layer.provenance),
            *([layer.how] if wide else []),
        )
    return table


def _us(count: float) -> str:
    return f"{count:,.0f}" if count >= 1000 else f"{count:.1f}"


def _print_sources(step: StepEntry, console: Console) -> None:
    """Where the times are from, which a narrow table has no column for."""
    layers: dict[str, list[str]] = {}
    for layer in step.layers:
        layers.setdefault(layer.how, []).append(layer.name)
    for how, names in layers.items():
        console.print(f"from {how}: {', '.join(names)}", markup=False)


def _beside(current: PlanEntry, proposed: PlanEntry) -> Table:
    table = plain_table(
        ("", "left"), ("current", "right"), ("proposed", "right"), ("ratio", "right")
    )
    for name, value in proposed.settings.items():
        before = current.settings[name]
        mark = "" if before == value else "changed"
        table.add_row(name, _word(before), _word(value), mark)
    table.add_section()
    for group in GROUPS:
        table.add_row(group, *_pair(_group(current, group), _group(proposed, group)))
    table.add_row("total", *_pair(current.needed, proposed.needed))
    table.add_row("may use", *_pair(current.budget, proposed.budget))
    share = [f"{100 * plan.needed / plan.budget:.1f} %" for plan in (current, proposed)]
    table.add_row("share", *share, "")
    table.add_section()
    for name, values in (
        ("KV-cache tokens", (current.kv_tokens, proposed.kv_tokens)),
        ("most sequences", (current.sequences, proposed.sequences)),
        ("largest context", (current.longest, proposed.longest)),
    ):
        table.add_row(name, *(f"{value:,}" for value in values), _ratio(*values))
    for one, other in zip(current.steps, proposed.steps, strict=True):
        rates = (one.tokens_per_s, other.tokens_per_s)
        words = (f"{rate:,.0f}" for rate in rates)
        table.add_row(f"{one.stage} ceiling, tok/s", *words, _ratio(*rates))
    table.caption = f"{Provenance.ESTIMATED} as a whole; each plan alone shows its parts"
    table.caption_justify = "left"
    return table


def _group(plan: PlanEntry, group: str) -> int:
    return sum(part.bytes for part in plan.parts if part.group == group)


def _pair(before: int, after: int) -> tuple[str, str, str]:
    return size(before), size(after), _ratio(before, after)


def _ratio(before: float, after: float) -> str:
    return f"{after / before:.2f}x" if before else ""


def _word(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def plain_table(*columns: tuple[str, str]) -> Table:
    """A table without a frame; columns by heading and side."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for heading, side in columns:
        right = side == "right"
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    return table
