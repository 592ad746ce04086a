"""Write the figures of README.md and docs/ from the committed result files.

Each block between <!-- table: NAME --> and <!-- end table --> is replaced. With --check nothing is
written and the exit code is 1 if a block is not what the result files say.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from pathlib import Path

from slidesparse.bench.kernel_record import KernelRecord, Row
from slidesparse.bench.kernel_record import read_json as read_kernels
from slidesparse.bench.record import SearchRecord, read_json
from slidesparse.cli.bench_table import verdict
from slidesparse.cli.search_table import (
    dense_total,
    patterns_of,
    planned_total,
    print_record,
    totals,
)

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/search.md", "docs/kernels.md")
RESULTS = ROOT / "bench" / "results" / "nvidia-h200"
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end table -->)", re.DOTALL)


def totals_table(record: SearchRecord) -> str:
    """One row per M, one column per pattern: best sparse, and what is planned, over best dense."""
    patterns = patterns_of(record)
    heads = [f"{p} (bound {float(p.bound):.2f})" for p in patterns]
    lines = [
        f"| M | best dense, ms | {' | '.join(heads)} |",
        f"| ---: | ---: |{' ---: |' * len(patterns)}",
    ]
    for tokens in dict.fromkeys(item.tokens for item in record.layers):
        cells, dense_ms = [], "-"
        for pattern in patterns:
            both, planned = totals(record, tokens, pattern), planned_total(record, tokens, pattern)
            if both is None or planned is None:
                cells.append("-")
                continue
            cells.append(f"{both[0] / both[1]:.2f}, planned {both[0] / planned:.2f}")
        dense = dense_total(record, tokens)
        dense_ms = "-" if dense is None else f"{dense / 1e3:.2f}"
        lines.append(f"| {tokens} | {dense_ms} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", source_line(record)])


def source_line(record: SearchRecord) -> str:
    """Where the figures come from."""
    print_ = record.fingerprint
    count = len(record.results)
    return (
        f"{record.model}, {record.layers[0].problem.dtype} to {record.layers[0].problem.out}, GEMM "
        f"only, {print_.name}, cuBLASLt {print_.cublaslt}, cuSPARSELt {print_.cusparselt}; {count} "
        f"problems searched at {record.settings['effort']} effort in {record.seconds:.0f} s on "
        f"{record.created[:10]} (commit {record.commit[:12]})."
    )


def output(record: SearchRecord) -> str:
    """What the search printed at its end, made again from its result file."""
    from rich.console import Console

    text = io.StringIO()
    print_record(record, Console(file=text, width=118, highlight=False))
    lines = (line.rstrip() for line in text.getvalue().splitlines())
    return "\n".join(["```", *lines, "```"])


def efforts_line(path: Path) -> str:
    """What the comparison of two efforts found, as one list item."""
    data = json.loads(path.read_text(encoding="utf-8"))
    name = path.stem.removeprefix("effort-")
    short, long = data["efforts"]
    return (
        f"* {name}: {short} took {data['seconds'][0]:.0f} s, {long} {data['seconds'][1]:.0f} s for "
        f"{data['problems']} problems; raced in turn, {data['within_2_percent']} winners of "
        f"{short} are within 2 % of those of {long}, the worst is "
        f"{100 * data['worst_ratio'] - 100:.1f} % slower (commit {data['commit'][:12]})"
    )


def kernels_table(record: KernelRecord) -> str:
    """One line per kernel, one column per M: time, share of copy bandwidth, best alternative."""
    counts = sorted({row.problem.m for row in record.rows})
    lines = [
        f"| kernel | K | pattern | {' | '.join(f'M = {m}' for m in counts)} |",
        f"| --- | ---: | --- |{' ---: |' * len(counts)}",
    ]
    kernels: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in record.rows:
        it = row.problem
        name = (str(it.op), str(it.k), str(it.pattern) if it.op.quantizes else "-")
        kernels.setdefault(name, {})[it.m] = row
    for name, rows in kernels.items():
        cells = [_kernel_cell(record, rows[m]) if m in rows else "-" for m in counts]
        lines.append(f"| {' | '.join(name)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", kernels_source(record)])


def kernels_source(record: KernelRecord) -> str:
    """How to read the table of the kernels, and where its figures come from."""
    dtype, ceilings = record.settings["dtype"], record.ceilings
    names = ", ".join(record.names) or "none"
    tuned = sum(row.tuned for row in record.rows)
    return (
        "Microseconds; percent of the bandwidth of a large copy; time of the fastest alternative "
        f"({names}) over ours. {record.model}, {dtype}, {record.fingerprint.name}, a copy runs at "
        f"{ceilings.copy_gbs:,.0f} GB/s, an empty kernel takes {ceilings.empty_us:.2f} us; "
        f"{tuned} of {len(record.rows)} kernels tuned; {verdict(record)}. Measured in "
        f"{record.seconds:.0f} s on {record.created[:10]} (commit {record.commit[:12]})."
    )


def _kernel_cell(record: KernelRecord, row: Row) -> str:
    if row.median_us is None or row.percent_of_copy is None:
        return "failed"
    time = f"{row.median_us:,.0f}" if row.median_us >= 1000 else f"{row.median_us:.1f}"
    ratios = [ratio for name in record.names if (ratio := row.ratio(name)) is not None]
    best = f", {min(ratios):.2f}x" if ratios else ""
    return f"{time}, {row.percent_of_copy:.0f} %{best}"


def render(text: str) -> str:
    """A page with every block made anew."""

    def block(match: re.Match[str]) -> str:
        name = match[2]
        if name == "efforts":
            made = "\n".join(map(efforts_line, sorted(RESULTS.glob("effort-*.json"))))
        elif name.startswith("kernels"):
            made = kernels_table(read_kernels(RESULTS / f"{name}.json"))
        elif name.startswith("output-"):
            made = output(read_json(RESULTS / f"{name.removeprefix('output-')}.json"))
        else:
            made = totals_table(read_json(RESULTS / f"{name}.json"))
        return f"{match[1]}{made}\n{match[3]}"

    return BLOCK.sub(block, text)


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    arguments = parser.parse_args()
    stale = False
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        made = render(text)
        if made == text:
            continue
        stale = True
        if arguments.check:
            print(f"{page} is not what bench/results says; run python scripts/readme_tables.py")
        else:
            path.write_text(made, encoding="utf-8")
    return int(stale and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
