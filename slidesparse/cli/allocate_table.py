"""What `slidesparse allocate` prints: the choice block by block, and how it compares."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from slidesparse.pattern import Pattern

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from slidesparse.bench.allocation.record import AllocationRecord, OutcomeRow


def print_allocation(record: AllocationRecord, console: Console) -> None:
    """Print both tables and what has to be known to read them."""
    console.print(choice_table(record))
    console.print(outcome_table(record))
    for line in (*notes(record), *record.verdicts):
        console.print(line, soft_wrap=True, markup=False)


def choice_table(record: AllocationRecord) -> Table:
    """One line per block, one column per group of linears."""
    names = list(dict.fromkeys(row.name for row in record.groups))
    shapes = {row.name: f"{row.name}\n{row.n} x {row.k}" for row in reversed(record.groups)}
    table = _table("block", *(shapes[name] for name in names))
    cells = {(row.block, row.name): row.chosen for row in record.groups}
    for block in dict.fromkeys(row.block for row in record.groups):
        table.add_row(str(block), *(_cell(cells.get((block, name))) for name in names))
    return table


def _cell(pattern: str | None) -> str:
    return "-" if pattern is None or Pattern.parse(pattern).dense else pattern


def outcome_table(record: AllocationRecord) -> Table:
    """One line per pruned model that was measured."""
    table = _table(
        "",
        "GEMMs\nms",
        "speedup",
        "zeros\n%",
        "predicted\nnats",
        "measured\nnats",
        "+-",
        "perplexity",
        "",
    )
    for row in record.outcomes:
        table.add_row(
            row.name,
            f"{row.us / 1e3:.3f}",
            f"{row.speedup:.3f}x",
            f"{100 * row.zeros:.1f}",
            f"{row.predicted:+.4f}",
            f"{row.increase:+.4f}",
            f"{row.error:.4f}",
            f"{row.perplexity:.2f}",
            f"{100 * math.expm1(row.increase):+.1f} %",
        )
    return table


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def notes(record: AllocationRecord) -> list[str]:
    """What has to be known to read the tables, a sentence or two each."""
    settings = record.settings
    sources = ", ".join(f"{count} {source}" for source, count in record.provenance.items())
    lines = [
        f"Times: GEMMs {record.gemm} of all groups at M = {', '.join(settings['m'])}, from the "
        f"tuning cache ({sources}); only what is faster than dense in its own race counts as such.",
        f"Predicted: the sum over groups of KL(dense || that one pruned) on {record.tokens:,} "
        f"tokens; measured: the loss of the whole model pruned ({settings['method']}), on "
        f"{settings['held_out_tokens']:,} held-out tokens, +- one standard error. Weights are not "
        "quantised for either.",
        _additivity(record.chosen),
    ]
    if record.left_out:
        count, first = len(record.left_out), record.left_out[0]
        lines.append(f"{count} linears stay dense and are in no time, first {first}")
    if not record.chosen.proved:
        lines.append("The solver stopped at its limit of states: another choice may be better.")
    if all(row.chosen == "dense" for row in record.groups):
        lines.append(_nothing(record))
    return lines


def _additivity(chosen: OutcomeRow) -> str:
    if chosen.predicted <= 0:
        return f"The choice was predicted to cost nothing and costs {chosen.increase:.4f} nats."
    ratio = chosen.increase / chosen.predicted
    return f"The choice costs {ratio:.2f} of what was predicted, with text and interaction in it."


def _nothing(record: AllocationRecord) -> str:
    gains = any(us < row.us["dense"] for row in record.groups for us in row.us.values())
    if gains:
        return "Nothing is pruned: every faster pattern costs more than what is allowed."
    return "Nothing is pruned: no pattern is faster than dense on these shapes; try a larger --m."
