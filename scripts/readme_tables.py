"""Write the figures of README.md and docs/ from the committed result files.

Each block between <!-- table: NAME --> and <!-- end table --> is replaced. With --check nothing is
written and the exit code is 1 if a block is not what the result files say. A block whose result
file is missing is an error.

NAME is of a result file. Its beginning says what is made of it: "output-" what the search printed,
"kernels" the kernels around the GEMM, "native_" how the native GEMM did against dense and against
the other sparse backends (and, ending in "_decode", the bandwidth it reached), "linear" whole
linears against torch's (linear by linear after "every-"), "accuracy" perplexities and, after
"details-", all that was measured with them; "allocation-" what a choice of patterns costs beside
uniform ones; "attention" the backends of attention, which may be
missing and then says so; "counters-" a load with document B's rows beside it, or these alone as
long as there is no result file; all else the totals of a search. "efforts" is made of
all effort-*.json.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from slidesparse.bench.accuracy.record import read_json as read_accuracy
from slidesparse.bench.allocation.record import AllocationRecord
from slidesparse.bench.allocation.record import read_json as read_allocation
from slidesparse.bench.attention.record import read_json as read_attention
from slidesparse.bench.counters.published import beside_published, published_alone
from slidesparse.bench.counters.record import read_json as read_counters
from slidesparse.bench.kernels.record import KernelRecord, Row
from slidesparse.bench.kernels.record import read_json as read_kernels
from slidesparse.bench.linear.record import LinearRecord
from slidesparse.bench.linear.record import read_json as read_linears
from slidesparse.bench.search.effort_record import read_json as read_efforts
from slidesparse.bench.search.record import SearchRecord, read_json
from slidesparse.bench.search.totals import dense_total, patterns_of, planned_total, totals
from slidesparse.candidate import Measurement, ProblemResult
from slidesparse.cli.allocate_table import notes
from slidesparse.cli.attention_text import NOT_YET, markdown
from slidesparse.cli.bench_table import verdict
from slidesparse.cli.eval_table import details, summary
from slidesparse.cli.linear_table import verdict as linear_verdict
from slidesparse.cli.search_table import print_record
from slidesparse.errors import UsageError
from slidesparse.models import LinearLayer
from slidesparse.pattern import Pattern
from slidesparse.problem import DType

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/search.md",
    "docs/kernels.md",
    "docs/native_kernel.md",
    "docs/accuracy.md",
    "docs/linear.md",
    "docs/counters.md",
    "docs/allocation.md",
    "docs/attention.md",
)
RESULTS = ROOT / "bench" / "results" / "nvidia-h200"
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end table -->)", re.DOTALL)
NATIVE = "native"
"""The backend that the blocks "native_..." are about."""


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


def native_tables(record: SearchRecord, decode: bool) -> str:
    """What the native GEMM is worth: against dense, against other sparse backends, in GB/s.

    Args:
        record: of a search whose GEMMs apply both scales.
        decode: whether few tokens were searched, where the bandwidth is what counts.
    """
    parts = [fused_table(record), rivals_table(record), bandwidth_table(record) if decode else ""]
    made = "\n\n".join(part for part in parts if part)
    return f"{made}\n\nScales {record.layers[0].problem.scales}: {source_line(record)}"


def fused_table(record: SearchRecord) -> str:
    """One row per M: best dense over best sparse, and how many linears each backend is best in."""
    lines = _native_head(record, "| M | best dense, ms |", "| ---: | ---: |")
    for tokens in _tokens(record):
        cells = []
        for pattern in patterns_of(record):
            both = totals(record, tokens, pattern)
            fastest = [(layer, _fastest(r)) for layer, r in _results(record, tokens, pattern)]
            if not fastest or any(best is None for _, best in fastest):
                cells.append("-")
                continue
            sparse = sum(layer.count * best.median_us for layer, best in fastest if best) / 1e3
            won = Counter(best.candidate.backend for _, best in fastest if best)
            gain = f"{both[0] / both[1]:.2f}" if both else f"{sparse:.2f} ms"
            cells.append(", ".join([gain, *(f"{name} {n}" for name, n in won.most_common())]))
        dense = dense_total(record, tokens)
        dense_ms = "-" if dense is None else f"{dense / 1e3:.2f}"
        lines.append(f"| {tokens} | {dense_ms} | {' | '.join(cells)} |")
    legend = (
        "Best dense over best sparse, of one race on the same pruned weights (milliseconds of the "
        "best sparse where nothing dense applies these scales); then, in how many linears which "
        "sparse backend is the fastest. The column of dense times is on full weights."
    )
    return "\n".join([*lines, "", legend])


def rivals_table(record: SearchRecord) -> str:
    """One row per M: native's time over the fastest other sparse backend's; "" without others."""
    lines = _native_head(record, "| M |", "| ---: |")
    met = False
    for tokens in _tokens(record):
        cells = []
        for pattern in patterns_of(record):
            ours = theirs = 0.0
            names: dict[str, None] = {}
            results = list(_results(record, tokens, pattern))
            pairs = [(layer, _fastest(r, True), _fastest(r, False)) for layer, r in results]
            both = [(layer, own, other) for layer, own, other in pairs if own and other]
            for layer, own, other in both:
                ours += layer.count * own.median_us
                theirs += layer.count * other.median_us
                names[other.candidate.backend] = None
            some = f", {len(both)} of {len(pairs)} linears" if len(both) < len(pairs) else ""
            cells.append(f"{ours / theirs:.2f} ({', '.join(names)}{some})" if both else "-")
            met = met or bool(both)
        lines.append(f"| {tokens} | {' | '.join(cells)} |")
    legend = (
        "Native's time over that of the fastest other sparse backend in the same races, linears "
        "weighted by their count: below 1, native is faster."
    )
    return "\n".join([*lines, "", legend]) if met else ""


def bandwidth_table(record: SearchRecord) -> str:
    """One row per linear and M: native's time, and its rate on the bytes that it has to move."""
    from slidesparse.kernels.native.weight import BLOCK, BLOCK_BYTES, SLAB

    density = BLOCK_BYTES / (SLAB * BLOCK)
    lines = _native_head(record, "| linear | N | K | M |", "| --- | ---: | ---: | ---: |")
    cells: dict[tuple[LinearLayer, int], dict[Pattern, str]] = {}
    for item in record.layers:
        held, problem = record.results.get(item.problem), item.problem
        best = _fastest(held[0], True) if held is not None else None
        row = cells.setdefault((item.layer, item.tokens), {})
        if best is not None:
            weight, k = density * problem.n * problem.k_run, problem.k_run
            moved = weight + problem.m * (k + problem.out.bytes * problem.n)
            row[problem.pattern] = f"{best.median_us:.1f} us, {moved / best.median_us / 1e3:,.0f}"
    for (layer, tokens), row in cells.items():
        head = f"{layer.name} | {layer.n} | {layer.k} | {tokens}"
        listed = " | ".join(row.get(pattern, "-") for pattern in patterns_of(record))
        lines.append(f"| {head} | {listed} |")
    legend = (
        "Native's time, and the GB/s (1e9 bytes) of what it has to move, from memory and to it: "
        f"{density} N K' of packed weight, M K' of tokens, "
        f"{record.layers[0].problem.out.bytes} M N of output."
    )
    return "\n".join([*lines, "", legend])


def _native_head(record: SearchRecord, head: str, rule: str) -> list[str]:
    """The first two lines of a table with a column per pattern."""
    patterns = [f"{pattern} (bound {float(pattern.bound):.2f})" for pattern in patterns_of(record)]
    return [f"{head} {' | '.join(patterns)} |", rule + " ---: |" * len(patterns)]


def _tokens(record: SearchRecord) -> list[int]:
    return list(dict.fromkeys(item.tokens for item in record.layers))


def _results(
    record: SearchRecord, tokens: int, pattern: Pattern
) -> Iterator[tuple[LinearLayer, ProblemResult | None]]:
    """Every linear at one M and pattern, with its result if it has one."""
    for item in record.layers:
        if item.tokens == tokens and item.problem.pattern == pattern:
            held = record.results.get(item.problem)
            yield item.layer, held[0] if held is not None else None


def _fastest(result: ProblemResult | None, native: bool | None = None) -> Measurement | None:
    """The fastest sparse measurement of a race: of all, the native ones, or the others."""
    for measured in result.ranked if result is not None else ():
        candidate = measured.candidate
        if candidate.sparse and native in (None, candidate.backend == NATIVE):
            return measured
    return None


def output(record: SearchRecord) -> str:
    """What the search printed at its end, made again from its result file."""
    from rich.console import Console

    text = io.StringIO()
    print_record(record, Console(file=text, width=118, highlight=False))
    lines = (line.rstrip() for line in text.getvalue().splitlines())
    return "\n".join(["```", *lines, "```"])


def efforts_line(path: Path) -> str:
    """What the comparison of two efforts found, as one list item."""
    record = read_efforts(path)
    name = path.stem.removeprefix("effort-")
    (short, long), (quick_s, long_s) = record.efforts, record.seconds
    return (
        f"* {name}: {short} took {quick_s:.0f} s, {long} {long_s:.0f} s for "
        f"{record.problems} problems; raced in turn, {record.within_2_percent} winners of "
        f"{short} are within 2 % of those of {long}, the worst is "
        f"{100 * record.worst_ratio - 100:.1f} % slower (commit {record.commit[:12]})"
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


def linear_tables(record: LinearRecord) -> str:
    """One table per dtype: a row per M, a column per pattern, torch's time over ours."""
    parts = [linear_table(record, dtype) for dtype in record.dtypes]
    hints = ", ".join(f"M={hint}" for hint in record.settings["autotune"])
    tuned = f", max-autotune at {hints} if faster" if hints else ""
    times = sum("parts" in row.torch_how for row in record.rows)
    parted = f", {times} times on parts of the rows" if times else ""
    legend = (
        "Torch's time over ours for all linears of the model, each weighted by its count: "
        f"{record.settings['timed']}, on the same pruned weights, in one race, cold L2; and in how "
        "many linears a sparse GEMM runs. Milliseconds are torch's on "
        f"{record.patterns[0]} weights. Torch is torch.compile of the quantisation with "
        f"torch._scaled_mm row-wise or torch._int_mm{tuned}{parted}. Linear by "
        f"linear, {linear_verdict(record)}. {record.model}, {record.fingerprint.name}, torch "
        f"{record.fingerprint.torch}; measured in "
        f"{record.seconds:.0f} s on {record.created[:10]} (commit {record.commit[:12]})."
    )
    return "\n\n".join([*parts, legend])


def linear_table(record: LinearRecord, dtype: DType) -> str:
    """The table of one dtype."""
    heads = [
        str(pattern) if pattern.dense else f"{pattern} (bound {float(pattern.bound):.2f})"
        for pattern in record.patterns
    ]
    lines = [
        f"| {dtype}, M | torch, ms | {' | '.join(heads)} |",
        f"| ---: | ---: |{' ---: |' * len(heads)}",
    ]
    for tokens in dict.fromkeys(r.tokens for r in record.rows if r.problem.dtype is dtype):
        cells, milliseconds = [], "-"
        for place, pattern in enumerate(record.patterns):
            both, rows = record.totals(dtype, tokens, pattern), record.of(dtype, tokens, pattern)
            if both is None:
                cells.append("-")
                continue
            if not place:
                milliseconds = f"{both[0] / 1e3:.2f}"
            sparse = f", sparse {sum(row.sparse for row in rows)} of {len(rows)}"
            cells.append(f"{both[0] / both[1]:.2f}" + ("" if pattern.dense else sparse))
        lines.append(f"| {tokens} | {milliseconds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def every_linear(record: LinearRecord) -> str:
    """One table per dtype: a row per linear and M, a column per pattern."""
    parts = []
    for dtype in record.dtypes:
        lines = [
            f"| {dtype} | M | {' | '.join(map(str, record.patterns))} |",
            f"| --- | ---: |{' ---: |' * len(record.patterns)}",
        ]
        cells: dict[tuple[str, int], dict[Pattern, str]] = {}
        for row in (row for row in record.rows if row.problem.dtype is dtype):
            kept = cells.setdefault((row.layer.name, row.tokens), {})
            same = "" if row.clear else "="
            runs = ", S" if row.sparse else ""
            kept[row.problem.pattern] = "-" if row.ratio is None else f"{row.ratio:.2f}{same}{runs}"
        for (name, tokens), row in cells.items():
            made = " | ".join(row.get(pattern, "-") for pattern in record.patterns)
            lines.append(f"| {name} | {tokens} | {made} |")
        parts.append("\n".join(lines))
    cut = " The run was cut off: what is missing was not measured." if record.interrupted else ""
    parts.append(
        f"Torch's time over ours, {record.settings['timed']}; = inside the spread; S: a sparse "
        f"GEMM runs; {linear_verdict(record)}.{cut} {record.model}, {record.fingerprint.name}; "
        f"{record.seconds:.0f} s on {record.created[:10]} (commit {record.commit[:12]})."
    )
    return "\n\n".join(parts)


def allocation(record: AllocationRecord) -> str:
    """Chosen and uniform patterns, and whether the choice beats them."""
    lines = [
        "| | GEMMs, ms | speedup | zeros | predicted, nats | measured, nats | perplexity |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in record.outcomes:
        measured = f"{row.increase:+.4f} +- {row.error:.4f}"
        cells = (
            *(row.name, f"{row.us / 1e3:.3f}", f"{row.speedup:.3f}", f"{100 * row.zeros:.1f} %"),
            *(f"{row.predicted:+.4f}", measured, f"{row.perplexity:.2f}"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    parts = ["\n".join(lines), "\n".join(f"* {verdict}" for verdict in record.verdicts)]
    parts.append(
        f"{' '.join(notes(record))} {record.model}, {record.fingerprint.name}; "
        f"{sum(record.seconds.values()):.0f} s on {record.created[:10]} "
        f"(commit {record.commit[:12]})."
    )
    return "\n\n".join(parts)


def attention(path: Path) -> str:
    """The backends of attention, or how to measure them where nobody has."""
    if not path.is_file():
        return NOT_YET.format(path.name)
    return markdown(read_attention(path))


def counters_table(model: str) -> str:
    """A measured load with document B's rows beside it, or these alone."""
    path = RESULTS / f"counters-{model}.json"
    return beside_published(read_counters(path)) if path.is_file() else published_alone(model)


def render(text: str) -> str:
    """A page with every block made anew.

    Raises:
        UsageError: a result file is missing or damaged; names it.
    """

    def block(match: re.Match[str]) -> str:
        name = match[2]
        if name == "efforts":
            made = "\n".join(map(efforts_line, sorted(RESULTS.glob("effort-*.json"))))
        elif name.startswith("accuracy"):
            made = summary(read_accuracy(RESULTS / f"{name}.json"))
        elif name.startswith("details-"):
            made = details(read_accuracy(RESULTS / f"{name.removeprefix('details-')}.json"))
        elif name.startswith("allocation-"):
            made = allocation(read_allocation(RESULTS / f"{name}.json"))
        elif name.startswith("attention"):
            made = attention(RESULTS / f"{name}.json")
        elif name.startswith("counters-"):
            made = counters_table(name.removeprefix("counters-"))
        elif name.startswith("kernels"):
            made = kernels_table(read_kernels(RESULTS / f"{name}.json"))
        elif name.startswith("every-"):
            made = every_linear(read_linears(RESULTS / f"{name.removeprefix('every-')}.json"))
        elif name.startswith("linear"):
            made = linear_tables(read_linears(RESULTS / f"{name}.json"))
        elif name.startswith("native_"):
            record = read_json(RESULTS / f"{name}.json")
            made = native_tables(record, decode=name.endswith("_decode"))
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
        try:
            made = render(text)
        except UsageError as error:
            print(f"{page}: {error}", file=sys.stderr)
            return 1
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
