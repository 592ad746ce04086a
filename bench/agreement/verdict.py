"""The verdict of `slidesparse bench agreement`: what is not as the limits want it."""

from __future__ import annotations

from collections.abc import Iterator

from slidesparse.bench.agreement.record import (
    AgreementRecord,
    CheckpointAgreement,
    Limits,
    Pair,
    Served,
)
from slidesparse.bench.agreement.requests import chance_of_so_few
from slidesparse.bench.sweep.job import System

CHANCE = 0.01
"""Ours counts as noisier than stock where chance alone would make it seem so less often."""


def problems(record: AgreementRecord) -> list[str]:
    """What is not as the limits want it, one line each; empty where all is.

    Stock may be as noisy as it likes: only what failed to run counts against it.
    """
    return [
        f"{checkpoint.name}: {text}"
        for checkpoint in record.checkpoints
        for text in _problems(checkpoint, record.limits)
    ]


def load_ratio(checkpoint: CheckpointAgreement, ours: Served) -> float | None:
    """Loading time over that of stock in the same mode; None where one is not known."""
    stock = checkpoint.one(System.STOCK, ours.mode)
    if stock is None or stock.load_s is None or ours.load_s is None:
        return None
    return ours.load_s / stock.load_s


def _problems(checkpoint: CheckpointAgreement, limits: Limits) -> Iterator[str]:
    for it in checkpoint.served:
        if it.failure is not None:
            yield f"{it} failed ({it.failure}): {it.reason}"
        if it.system is System.OURS:
            yield from _mixed(checkpoint, it)
            yield from _load(checkpoint, it, limits)
    for pair in checkpoint.pairs:
        if pair.system is System.OURS:
            yield from _apart(checkpoint, pair, limits)


def _apart(checkpoint: CheckpointAgreement, pair: Pair, limits: Limits) -> Iterator[str]:
    agreement, off, noise = limits.agreement, limits.perplexity, checkpoint.noise()
    if not pair.across and noise is not None:
        # Graphs and eager run other kernels in stock vLLM, too: no more can be asked of ours.
        agreement, off = min(agreement, noise.agreement), max(off, abs(noise.perplexity))
    if pair.agreement < agreement:
        yield (
            f"{pair}: the same token is likeliest for {100 * pair.agreement:.2f} % of "
            f"{pair.tokens:,}, less than {100 * agreement:.2f} %"
        )
    if abs(pair.perplexity) > off:
        yield (
            f"{pair}: perplexity is off by {100 * pair.perplexity:+.2f} %, more than "
            f"{100 * off:.2f} %"
        )


def _mixed(checkpoint: CheckpointAgreement, ours: Served) -> Iterator[str]:
    if ours.requests is None:
        return
    found, stock = ours.requests, checkpoint.one(System.STOCK, ours.mode)
    if found.broken:
        yield (
            f"{ours}: {found.broken} of {found.count} mixed requests went wrong; the first: "
            f"{found.reason}"
        )
    if stock is None or stock.requests is None:
        return
    one, other = found.sequences, stock.requests.sequences
    chance = chance_of_so_few(one.same, one.compared, other.same, other.compared)
    if chance < CHANCE:
        yield (
            f"{ours}: {one.same} of {one.compared} requests gave the same tokens together as "
            f"alone, with stock {other.same} of {other.compared}: more than noise "
            f"(p = {chance:.1g})"
        )


def _load(checkpoint: CheckpointAgreement, ours: Served, limits: Limits) -> Iterator[str]:
    ratio = load_ratio(checkpoint, ours)
    if limits.load is not None and ratio is not None and ratio - 1 > limits.load:
        yield (
            f"{ours}: loading takes {100 * (ratio - 1):.0f} % longer than with stock, more than "
            f"{100 * limits.load:.0f} %"
        )
