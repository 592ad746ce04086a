"""What `slidesparse tune` prints: the winner of every kernel problem beside the default."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidesparse.candidate import Provenance
from slidesparse.kernels.config import Config
from slidesparse.kernels.tune import gain

if TYPE_CHECKING:
    from rich.console import Console

    from slidesparse.kernel_problem import KernelResult
    from slidesparse.kernels.tune import TuneOutcome

MARK = {Provenance.MEASURED: "", Provenance.CACHED: "*", Provenance.BUNDLED: "+"}
LEGEND = {Provenance.CACHED: "* from the cache", Provenance.BUNDLED: "+ from the bundled cache"}


def print_outcome(outcome: TuneOutcome, console: Console) -> None:
    """One row per problem, then what failed and what the tuning brought over the defaults."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("operation", "K", "pattern", "M", "us", "spread", "over default"):
        table.add_column(name, justify="left" if name in ("operation", "pattern") else "right")
    table.add_column("configuration")
    for problem, tuned in outcome.found.items():
        result = tuned.result
        best = result.best
        if best is None:
            continue
        ratio = gain(result)
        table.add_row(
            str(problem.op),
            str(problem.k),
            str(problem.pattern),
            str(problem.m),
            f"{best.median_us:,.2f}{MARK[tuned.provenance]}",
            f"{best.spread_us:,.2f}",
            "-" if ratio is None else f"{ratio:.2f}",
            describe(Config.of(best.candidate)),
        )
    console.print(table)
    present = {tuned.provenance for tuned in outcome.found.values()}
    for provenance, text in LEGEND.items():
        if provenance in present:
            console.print(text)
    for problem, reason in outcome.skipped.items():
        console.print(f"without {problem}: {reason}", soft_wrap=True, markup=False)
    failures = [f for tuned in outcome.found.values() for f in tuned.result.failures]
    if failures:
        worst = failures[0]
        console.print(
            f"{len(failures)} configurations are out; for example {worst.candidate.label}: "
            f"{worst.kind}, {worst.reason}",
            soft_wrap=True,
            markup=False,
        )
    results = [tuned.result for tuned in outcome.found.values()]
    console.print(summary(results), soft_wrap=True, markup=False)


def summary(results: list[KernelResult]) -> str:
    """What tuning brought over the defaults, on average and at best."""
    ratios = sorted(ratio for result in results if (ratio := gain(result)) is not None)
    if not ratios:
        return "no default was timed beside a winner"
    product = 1.0
    for ratio in ratios:
        product *= ratio
    mean = product ** (1 / len(ratios))
    return f"default over tuned time: {mean:.2f} (geometric mean), at most {ratios[-1]:.2f}"


def describe(config: Config) -> str:
    """A configuration in a few words, what is usual left out."""
    parts = [f"block {config.block}", f"{config.warps} warps"]
    if config.rows > 1:
        parts.append(f"{config.rows} rows")
    if config.per_sm:
        parts.append(f"{config.per_sm} programs per SM")
    if config.stages > 1:
        parts.append(f"{config.stages} stages")
    if config.registers:
        parts.append(f"{config.registers} registers")
    if config.overlap:
        parts.append("overlapped")
    return ", ".join(parts)
