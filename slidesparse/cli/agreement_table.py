"""The tables of `slidesparse bench agreement`: every vLLM, every comparison, the verdict."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING

from slidesparse.bench.agreement.numbers import TIE
from slidesparse.bench.agreement.verdict import load_ratio, problems
from slidesparse.bench.sweep.job import System

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from slidesparse.bench.agreement.record import (
        AgreementRecord,
        CheckpointAgreement,
        MixedRequests,
        Pair,
        Served,
    )

SERVED = ("", "perplexity", "load s", "start s", "requests", "aborted", "wrong", "same alone")
PAIRS = ("", "same token", "near ties", "perplexity", "log probability")


def print_agreement(record: AgreementRecord, console: Console) -> None:
    """Print the tables of every checkpoint and what belongs below them."""
    for checkpoint in record.checkpoints:
        console.print(_table(checkpoint.name, SERVED, _served(checkpoint)))
        if checkpoint.pairs:
            console.print(_table(checkpoint.name, PAIRS, map(_pair, checkpoint.pairs)))
    for line in (*_legend(record), *_ran(record), *verdict(record)):
        console.print(line, soft_wrap=True, markup=False)
    console.print(
        f"{record.text.tokens:,} tokens of {record.text.name} in windows of "
        f"{record.settings['length']}; {record.seconds:.0f} s, seed {record.settings['seed']}",
        soft_wrap=True,
        markup=False,
    )


def verdict(record: AgreementRecord) -> list[str]:
    """What is not as the limits want it, or that all is; a run cut short is not said to be good."""
    found = problems(record)
    if found:
        return [f"NOT MET: {text}" for text in found]
    if record.interrupted or not any(it.pairs for it in record.checkpoints):
        return []
    limits = record.limits
    return [
        "The plug-in gives what stock vLLM gives: the same token for at least "
        f"{100 * limits.agreement:.4g} %, perplexity within {100 * limits.perplexity:.4g} %"
    ]


def _served(checkpoint: CheckpointAgreement) -> Iterator[tuple[str, ...]]:
    for it in checkpoint.served:
        if it.perplexity is None and it.start_s is None:
            yield str(it), str(it.failure), *("-" for _ in SERVED[2:])
            continue
        yield (
            str(it),
            str(it.failure or "-") if it.perplexity is None else f"{it.perplexity:.4f}",
            _load(checkpoint, it),
            "-" if it.start_s is None else f"{it.start_s:.1f}",
            *_requests(it.requests),
        )


def _load(checkpoint: CheckpointAgreement, it: Served) -> str:
    if it.load_s is None:
        return "-"
    ratio = load_ratio(checkpoint, it) if it.system is System.OURS else None
    return f"{it.load_s:.1f}" if ratio is None else f"{it.load_s:.1f} ({ratio:.2f}x)"


def _requests(found: MixedRequests | None) -> tuple[str, ...]:
    if found is None:
        return ("-",) * 4
    same = f"{found.sequences.same} of {found.compared}"
    if found.differing:
        same += f", else from {statistics.median_low(found.differing)}"
    return str(found.count), str(found.aborted), str(found.broken), same


def _pair(pair: Pair) -> tuple[str, ...]:
    differing = round(pair.tokens * (1 - pair.agreement))
    return (
        str(pair),
        f"{100 * pair.agreement:.2f} %",
        f"{pair.ties} of {differing}",
        f"{100 * pair.perplexity:+.3f} %",
        f"{pair.difference:.4f}",
    )


def _legend(record: AgreementRecord) -> Iterator[str]:
    if any(checkpoint.pairs for checkpoint in record.checkpoints):
        yield (
            "same token: share of scored tokens for which both find the same one likeliest; near "
            f"ties: of the others, those whose two likeliest are within {TIE:g} nats in the "
            "reference; log probability: mean absolute difference for the tokens that came, nats. "
            "Stock against itself is the noise floor."
        )
    served = [it for checkpoint in record.checkpoints for it in checkpoint.served]
    if any(it.requests is not None for it in served):
        yield (
            "same alone: mixed requests that give the same greedy tokens one at a time, and the "
            "median position, from 0, at which the others part."
        )
    if any(it.load_s is not None for it in served):
        yield "load: the model made, its weights read and packed; start: until requests are taken."


def _ran(record: AgreementRecord) -> Iterator[str]:
    """What each vLLM said that its linears run, and the plug-in's own line."""
    for checkpoint in record.checkpoints:
        for it in checkpoint.served:
            said = [it.ran[name] for name in ("slidesparse", "linears") if name in it.ran]
            if said:
                yield f"{checkpoint.name}: {it}: {'; '.join(said)}"


def _table(title: str, columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
