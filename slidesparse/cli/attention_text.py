"""The table of `slidesparse bench attention` in Markdown, for pages that show a result file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidesparse.cli.attention_table import left_out, notes, verdicts

if TYPE_CHECKING:
    from slidesparse.bench.attention.problem import AttentionProblem
    from slidesparse.bench.attention.record import AttentionRecord, AttentionRow

NOT_YET = (
    "Not measured yet: `slidesparse bench attention --targets 3.82,3.0,2.0 --json {}` on the GPU "
    "makes this table."
)

HEAD = (
    "| mask | backend | ms | us per head (total / H) | us per batch and head (total / (B H)) | "
    "TFLOP/s | compulsory GB/s | % of bound | tensor pipe % | DRAM % | MHz | W |"
)


def markdown(record: AttentionRecord) -> str:
    """The times of a record with their bound, what was left out, the targets and the source."""
    lines = [HEAD, "| --- | --- |" + " ---: |" * 10]
    for known in record.bounds:
        for row in record.of(known.problem):
            lines.append(_line(known.problem, row.backend, row.median_us, _seen(record, row)))
        if known.bound is not None:
            name = f"bound ({known.bound.resource})"
            lines.append(_line(known.problem, name, known.bound.us, ["100", *["-"] * 4]))
    items = [f"* {line}" for line in (*notes(record), *left_out(record), *verdicts(record))]
    parts = ["\n".join(lines), "\n".join(items), source(record)]
    return "\n\n".join(part for part in parts if part)


def source(record: AttentionRecord) -> str:
    """How to read the table, and where its figures come from."""
    it = record.bounds[0].problem
    machine = record.machine
    if record.fingerprint is not None:
        machine += f", torch {record.fingerprint.torch}"
    return (
        f"B={it.batch} H={it.heads} K/V heads {it.kv_heads} S={it.seq} D={it.head_dim} {it.dtype}; "
        "medians of one race, cold L2, CUDA graphs; counters, clock and power of each backend "
        f"alone. {machine}; measured in {record.seconds:.0f} s on {record.created[:10]} "
        f"(commit {record.commit[:12]})."
    )


def _line(problem: AttentionProblem, name: str, us: float, rest: list[str]) -> str:
    cells = [
        problem.mask,
        name,
        f"{us / 1e3:,.3f}",
        f"{problem.per_head(us):,.2f}",
        f"{problem.per_batch_head(us):,.3f}",
        f"{problem.tflops(us):,.0f}",
        f"{problem.gbs(us):,.0f}",
        *rest,
    ]
    return f"| {' | '.join(cells)} |"


def _seen(record: AttentionRecord, row: AttentionRow) -> list[str]:
    long = row.sustained
    given = [record.percent_of_bound(row), None, None, None, None]
    if long is not None:
        counters = long.counters
        given[1:] = [counters.get("tensor_active"), counters.get("dram_active")]
        given += [long.clock_mhz, long.power_w]
    return ["-" if value is None else f"{value:.0f}" for value in given]
