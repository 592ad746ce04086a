"""Tables and JSON of `slidesparse cache`. Times are microseconds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from slidesparse.candidate import Measurement, ProblemResult
from slidesparse.cli.console import make_console
from slidesparse.problem import bucket_m
from slidesparse.serialize import to_plain

if TYPE_CHECKING:
    from rich.table import Table

    from slidesparse.cache import Hit, KernelHit, StaleCache, TuningCache
    from slidesparse.kernel_problem import KernelResult
    from slidesparse.search.verify_cache import VerifiedEntry

_COLUMNS = ("candidate", "us", "spread us", "error", "workspace", "MHz", "W")


def listing(cache: TuningCache) -> dict[str, Any]:
    """What `list --json` prints."""
    return {
        "directory": str(cache.directory),
        "fingerprint": to_plain(cache.fingerprint),
        "entries": [_summary(key, hit) for key, hit in cache.entries().items()],
        "kernels": [_kernel_summary(key, hit) for key, hit in cache.kernel_entries().items()],
        "stale": stale_data(cache.stale()),
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


def print_listing(cache: TuningCache) -> None:
    """Print the table of all GEMM results, the counts of kernel configurations, stale caches."""
    console = make_console()
    console.print(str(cache.fingerprint), markup=False)
    hits, kernels = cache.entries(), cache.kernel_entries()
    if hits:
        console.print(_result_table(hits))
    elif kernels:
        text = f"no GEMM results in {cache.path}; run slidesparse search"
        console.print(text, markup=False, soft_wrap=True)
    else:
        text = (
            f"no entries in {cache.path}; run slidesparse search for the GEMMs, slidesparse tune "
            "for the kernels around them"
        )
        console.print(text, markup=False, soft_wrap=True)
    if kernels:
        console.print(f"kernels: {len(kernels)} configurations of slidesparse tune", markup=False)
        console.print(_kernel_table(kernels))
    for line in stale_lines(cache.stale()):
        console.print(line, markup=False, soft_wrap=True)


def details(key: str, hit: Hit | KernelHit) -> dict[str, Any]:
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
        _print_failures(result)
        for backend, reason in result.left_out.items():
            console.print(f"  left out: {backend}: {reason}", markup=False, soft_wrap=True)


def print_kernel_details(key: str, hit: KernelHit) -> None:
    """Print the ranked configurations of one kernel problem, its default and its failures."""
    console = make_console()
    result = hit.result
    console.print(key, markup=False, soft_wrap=True)
    console.print(
        f"{result.problem}; {hit.provenance}, {result.tried} tried, seed {result.seed}, "
        f"{result.tuned_at or 'date unknown'}",
        markup=False,
        soft_wrap=True,
    )
    rows = [(str(rank), item) for rank, item in enumerate(result.ranked, 1)]
    if result.default is not None:
        rows.append(("default", result.default))
    table = _table("#", *_COLUMNS, numbers={"#", *_COLUMNS} - {"candidate"})
    for name, item in rows:
        table.add_row(name, *_cells(item))
    console.print(table)
    _print_failures(result)


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


def _kernel_summary(key: str, hit: KernelHit) -> dict[str, Any]:
    best, default = hit.result.best, hit.result.default
    return {
        "key": key,
        "from": hit.provenance.value,
        "best": best.candidate.label if best else None,
        "median_us": best.median_us if best else None,
        "spread_us": best.spread_us if best else None,
        "speedup_over_default": default.median_us / best.median_us if best and default else None,
        "tuned_at": hit.result.tuned_at,
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


def _kernel_table(hits: Mapping[str, KernelHit]) -> Table:
    """One row for all M of a kernel."""
    kinds: dict[str, list[KernelHit]] = {}
    for key, hit in hits.items():
        kinds.setdefault(re.sub(r"-m\d+-", "-", key, count=1), []).append(hit)
    table = _table("kernel", "M", "from", numbers=set())
    for kind, found in kinds.items():
        sizes = " ".join(str(bucket_m(hit.result.problem.m)) for hit in found)
        origins = ", ".join(sorted({hit.provenance.value for hit in found}))
        table.add_row(kind, sizes, origins)
    return table


def _candidate_table(result: ProblemResult) -> Table:
    rows = [(str(rank), item) for rank, item in enumerate(result.ranked, 1)]
    rows += [("default", item) for item in result.defaults]
    if result.baseline is not None:
        rows.append(("dense", result.baseline))
    names = ("#", *_COLUMNS, "TFLOP/s")
    table = _table(*names, numbers={*names} - {"candidate"})
    for name, item in rows:
        table.add_row(name, *_cells(item), f"{result.problem.tflops(item.median_us):.1f}")
    return table


def _print_failures(result: ProblemResult | KernelResult) -> None:
    console = make_console()
    for failure in result.failures:
        line = f"  failed ({failure.kind}): {failure.candidate.label}: {failure.reason}"
        console.print(line, markup=False, soft_wrap=True)


def _cells(item: Measurement) -> tuple[str, ...]:
    """One row of _COLUMNS."""
    from rich.markup import escape

    return (
        escape(item.candidate.label),
        f"{item.median_us:.2f}",
        f"{item.spread_us:.2f}",
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
