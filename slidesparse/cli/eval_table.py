"""The table of `slidesparse eval`, for a terminal and as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidesparse.recipe import Method

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from slidesparse.bench.accuracy.record import AccuracyRecord, AccuracyRow
    from slidesparse.pattern import Pattern
    from slidesparse.problem import DType

COLUMNS = ("pattern", "method", "W8A8", "zeros", "perplexity", "loss increase", "same token", "KL")
LEGEND = (
    "loss increase: nats per token over the dense model, +- one standard error over windows; same "
    "token: the share of tokens whose most likely successor is the dense model's; KL: of the dense "
    "model's distribution from this one, nats per token"
)
TITLES = {Method.MAGNITUDE: "magnitude", Method.WANDA: "Wanda", Method.SPARSEGPT: "SparseGPT"}


def print_accuracy(record: AccuracyRecord, console: Console) -> None:
    """Print the table of an evaluation and what belongs below it."""
    if record.rows:
        console.print(_table(record))
        console.print(LEGEND, soft_wrap=True, markup=False)
    for line in (*_tasks(record), source_line(record)):
        console.print(line, soft_wrap=True, markup=False)


def cells(row: AccuracyRow) -> tuple[str, ...]:
    """One variant in the order of COLUMNS."""
    spread = f" +- {row.error:.4f}" if row.error else ""
    return (
        f"recipe, {row.pattern}" if row.recipe else str(row.pattern),
        str(row.method or "-"),
        str(row.dtype or "-"),
        f"{100 * row.zeros:.1f} %",
        perplexity(row),
        f"{row.increase:.4f}{spread}",
        f"{100 * row.agreement:.2f} %",
        f"{row.kl:.4f}",
    )


def perplexity(row: AccuracyRow | None) -> str:
    """With four digits or more: a difference of a hundredth counts where it is small."""
    if row is None:
        return "-"
    if row.perplexity is None:
        return "> 1e300"
    return f"{row.perplexity:,.0f}" if row.perplexity >= 1000 else f"{row.perplexity:.2f}"


def source_line(record: AccuracyRecord) -> str:
    """Where the figures come from."""
    text, used = record.evaluation, record.calibration
    calibrated = (
        f"calibrated on {used.tokens:,} tokens of {used.name}" if used else "without calibration"
    )
    return (
        f"{record.model} in {record.settings['precision']} on {record.fingerprint.name}; "
        f"{text.tokens:,} tokens of {text.name}, windows of {record.settings['length']}; "
        f"{calibrated}; measured in {record.seconds:.0f} s on {record.created[:10]} "
        f"(commit {record.commit[:12]})"
    )


def summary(record: AccuracyRecord) -> str:
    """A Markdown table: a line per pattern, a column per method, perplexities by dtype."""
    dtypes = _dtypes(record)
    methods = [m for m in Method if any(row.method is m for row in record.rows)]
    heads = " | ".join(TITLES[method] for method in methods)
    lines = [f"| pattern | zeros | {heads} |", f"| --- | ---: |{' ---: |' * len(methods)}"]
    for pattern in dict.fromkeys(row.pattern for row in record.rows if not row.recipe):
        found = [_cell(record, pattern, method, dtypes) for method in methods]
        if pattern.dense:
            # One model, whatever the method.
            found = [found[0], *("" for _ in found[1:])] if found else []
        zeros = f"{100 * float(pattern.zeros):.0f} %"
        lines.append(f"| {pattern} | {zeros} | {' | '.join(found)} |")
    kinds = " / ".join("pruned only" if dtype is None else f"W8A8 {dtype}" for dtype in dtypes)
    return "\n".join([*lines, "", f"Perplexity, {kinds}. {source_line(record)}."])


def details(record: AccuracyRecord) -> str:
    """A Markdown table with a line per variant and everything that was measured."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"| --- | --- | --- |{' ---: |' * (len(COLUMNS) - 3)}"]
    lines.extend(f"| {' | '.join(cells(row))} |" for row in record.rows)
    return "\n".join([*lines, "", f"{LEGEND[0].upper()}{LEGEND[1:]}. {source_line(record)}."])


def _cell(
    record: AccuracyRecord, pattern: Pattern, method: Method, dtypes: list[DType | None]
) -> str:
    return " / ".join(perplexity(record.row(pattern, method, dtype)) for dtype in dtypes)


def _dtypes(record: AccuracyRecord) -> list[DType | None]:
    return list(dict.fromkeys(row.dtype for row in record.rows))


def _tasks(record: AccuracyRecord) -> list[str]:
    """What lm-evaluation-harness found, a line per variant and task."""
    lines = []
    for row in record.rows:
        for task, found in row.tasks.items():
            numbers = ", ".join(f"{k} {v:.4f}" for k, v in found.items() if isinstance(v, float))
            name = " ".join(cell for cell in cells(row)[:3] if cell != "-")
            lines.append(f"{name}: {task}: {numbers}")
    return lines


def _table(record: AccuracyRecord) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index < 3 else "right", no_wrap=True)
    group: Pattern | None = None
    for row in record.rows:
        if group is not None and group != row.pattern:
            table.add_section()
        group = row.pattern
        table.add_row(*cells(row))
    return table
