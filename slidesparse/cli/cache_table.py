"""Tables and JSON of `slidesparse cache`. Times are microseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from slidesparse.candidate import Measurement, ProblemResult
from slidesparse.cli.console import make_console
from slidesparse.problem import bucket_m
from slidesparse.serialize import to_plain

if TYPE_CHECKING:
    from rich.table import Table

    from slidesparse.cache import Hit, StaleCache, TuningCache
    from slidesparse.search.verify_cache import VerifiedEntry


def listing(
    cache: TuningCache, hits: Mapping[str, Hit], stale: Sequence[StaleCache]
) -> dict[str, Any]:
    """What `list --json` prints."""
    return {
        "directory": str(cache.directory),
        "fingerprint": to_plain(cache.fingerprint),
        "entries": [_summary(key, hit) for key, hit in hits.items()],
        "stale": stale_data(stale),
    }


def stale_data(stale: Sequence[StaleCache]) -> list[dict[str, Any]]:
    """Stale caches as JSON data."""
    return [
        {"path": str(item.path), "entries": item.entries, "differences": list(item.differences)}
        for item in stale
    ]


def stale_lines(stale: Sequence[StaleCache]) -> list[str]:
    """One line per stale cache."""
    return [
        f"stale: {item.entries} entries in {item.path} ({'; '.join(item.differences)})"
        for item in stale
    ]


def print_listing(cache: TuningCache, hits: Mapping[str, Hit], stale: Sequence[StaleCache]) -> None:
    """Print the table of all results, then the stale caches."""
    console = make_console()
    console.print(str(cache.fingerprint), markup=False)
    if hits:
        console.print(_result_table(hits))
    else:
        console.print(f"no entries in {cache.path}; run slidesparse search", soft_wrap=True)
    for line in stale_lines(stale):
        console.print(line, markup=False, soft_wrap=True)


def details(key: str, hit: Hit) -> dict[str, Any]:
    """What `show --json` prints of one result."""
    return {"key": key, "from": hit.provenance.value, "result": to_plain(hit.result)}


def print_details(hits: Mapping[str, Hit]) -> None:
    """Print each result with its ranked candidates, defaults, failures and what was left out."""
    console = make_console()
    for key, hit in hits.items():
        result = hit.result
        console.print(f"{key}", markup=False, soft_wrap=True)
        console.print(
            f"{result.problem}; {hit.provenance}, effort {result.effort}, {result.tried} tried, "
            f"seed {result.seed}, {result.searched_at or 'date unknown'}"
            f"{'; the first two are a tie' if result.tie else ''}",
            markup=False,
            soft_wrap=True,
        )
        console.print(_candidate_table(result))
        for failure in result.failures:
            line = f"  failed ({failure.kind}): {failure.candidate.label}: {failure.reason}"
            console.print(line, markup=False, soft_wrap=True)
        for backend, reason in result.left_out.items():
            console.print(f"  left out: {backend}: {reason}", markup=False, soft_wrap=True)


def verification(verified: Sequence[VerifiedEntry]) -> dict[str, Any]:
    """What `verify --json` prints."""
    return {
        "holds": all(item.holds for item in verified),
        "entries": [asdict(item) for item in verified],
    }


def print_verification(verified: Sequence[VerifiedEntry]) -> None:
    """Print the stored and the new time of each result and whether its order holds."""
    from rich.text import Text

    table = _table("key", "stored us", "now us", "order", "note", numbers={"stored us", "now us"})
    for item in verified:
        order = "holds" if item.holds else "changed"
        now = "failed" if item.now_us is None else f"{item.now_us:.2f}"
        table.add_row(item.key, f"{item.stored_us:.2f}", now, order, Text(item.note))
    make_console().print(table)


def _summary(key: str, hit: Hit) -> dict[str, Any]:
    result = hit.result
    best, ratio = result.best, _ratio(result)
    return {
        "key": key,
        "from": hit.provenance.value,
        "best": best.candidate.label if best else None,
        "median_us": best.median_us if best else None,
        "spread_us": best.spread_us if best else None,
        "speedup_over_dense": ratio,
        "tie": result.tie,
        "effort": result.effort,
        "searched_at": result.searched_at,
    }


def _ratio(result: ProblemResult) -> float | None:
    """Best dense time over the winner's, from the same race; above 1 the winner is faster."""
    if result.best is None or result.baseline is None:
        return None
    return result.baseline.median_us / result.best.median_us


def _result_table(hits: Mapping[str, Hit]) -> Table:
    names = ("key", "M", "best", "us", "x dense", "tie", "effort", "from")
    table = _table(*names, numbers={"M", "us", "x dense"})
    for key, hit in hits.items():
        result = hit.result
        best, ratio = result.best, _ratio(result)
        table.add_row(
            key,
            str(bucket_m(result.problem.m)),
            best.candidate.backend if best else "nothing supports it",
            f"{best.median_us:.2f}" if best else "",
            "" if ratio is None else f"{ratio:.2f}",
            "tie" if result.tie else "",
            result.effort,
            hit.provenance.value,
        )
    return table


def _candidate_table(result: ProblemResult) -> Table:
    numbers = {"#", "us", "spread us", "TFLOP/s", "error", "workspace", "MHz", "W"}
    names = ("#", "candidate", "us", "spread us", "TFLOP/s", "error", "workspace", "MHz", "W")
    table = _table(*names, numbers=numbers)
    for rank, item in enumerate(result.ranked, 1):
        table.add_row(str(rank), *_cells(result, item))
    for item in result.defaults:
        table.add_row("default", *_cells(result, item))
    if result.baseline is not None:
        table.add_row("dense", *_cells(result, result.baseline))
    return table


def _cells(result: ProblemResult, item: Measurement) -> tuple[str, ...]:
    from rich.markup import escape

    return (
        escape(item.candidate.label),
        f"{item.median_us:.2f}",
        f"{item.spread_us:.2f}",
        f"{result.problem.tflops(item.median_us):.1f}",
        f"{item.error:.1e}",
        str(item.workspace),
        "" if item.clock_mhz is None else str(item.clock_mhz),
        "" if item.power_w is None else f"{item.power_w:.0f}",
    )


def _table(*names: str, numbers: set[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in names:
        if name in numbers:
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold")
    return table
