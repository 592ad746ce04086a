"""The costs of a comparison as tables of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from slidesparse.bench.compare.align import describe
from slidesparse.bench.compare.cost import Cost, CostLine, Price
from slidesparse.bench.compare.lines import Comparison, Line
from slidesparse.bench.compare.text import Section, column_labels, figure, letters, varying
from slidesparse.candidate import Provenance

_COLUMNS: tuple[tuple[str, Callable[[Cost], float | None]], ...] = (
    ("tokens/s", lambda cost: cost.tokens_per_s),
    ("J/token", lambda cost: cost.joules_per_token),
    ("tokens/J", lambda cost: cost.tokens_per_joule),
    ("cost per 1M tokens", lambda cost: cost.per_million),
    ("job: hours", lambda cost: cost.hours),
    ("job: cost", lambda cost: cost.total),
    ("job: kWh", lambda cost: cost.kwh),
)


def cost_sections(
    compared: Comparison, costs: Sequence[CostLine], prices: Sequence[Price], tokens: float | None
) -> list[Section]:
    """One table: a row per workload and column; nothing where there is only a rate to tell.

    Args:
        compared: whose costs these are.
        costs: of its lines.
        prices: that were given.
        tokens: of the job, None without.
    """
    found = [cost for line in costs for cost in line.costs if cost is not None]
    if not any(cost.known for cost in found):
        return []
    lines = [item.line for item in costs]
    shared, names = varying(lines)
    shown = [it for it in _COLUMNS if any(it[1](cost) is not None for cost in found)]
    base = letters(compared)[compared.base]
    heads = (*names, "column", "by", "rate", *(name for name, _ in shown), f"cost, {base} = 1")
    if not prices:
        heads = heads[:-1]
    rows = []
    for item in costs:
        named = [str(item.line.workload.get(name, "")) for name in names]
        for label, row, cost in zip(
            column_labels(compared, lines), item.line.cells, item.costs, strict=True
        ):
            if cost is None or row is None:
                continue
            values = [_shown(of(cost), name, cost) for name, of in shown]
            share = [_share(item.costs[compared.base], cost)] if prices else []
            rows.append(
                (*named, label, describe(row.variant), str(cost.provenance), *values, *share)
            )
    words = frozenset(range(len(names) + 3))
    notes = (*_least(compared, costs), *_notes(found, prices, tokens), *_partial(lines))
    title = f"Cost and energy: {describe(shared)}"
    return [Section(title, heads, rows, notes, words)]


def _shown(value: float | None, name: str, cost: Cost) -> str:
    if value is None:
        return "n/a"
    derived = name == "J/token" and cost.energy is Provenance.DERIVED
    return f"{figure(value)} (derived)" if derived else figure(value)


def _share(base: Cost | None, cost: Cost) -> str:
    """The price of a token over the base's."""
    if base is None or base.per_million is None or cost.per_million is None:
        return "n/a"
    return f"{cost.per_million / base.per_million:.2f}"


def _least(compared: Comparison, costs: Sequence[CostLine]) -> Iterator[str]:
    """Where each column is cheapest."""
    shared, _ = varying([item.line for item in costs])
    for index, mark in enumerate(letters(compared)):
        priced = [
            (cost.per_million, item.line)
            for item in costs
            if (cost := item.costs[index]) is not None and cost.per_million is not None
        ]
        if not priced:
            continue
        least, line = min(priced, key=lambda pair: pair[0])
        own = {name: value for name, value in line.workload.items() if name not in shared}
        where = f" at {describe(own)}" if own else ""
        yield f"{mark}: {figure(least)} per 1M tokens at the least{where}."


def _notes(costs: Sequence[Cost], prices: Sequence[Price], tokens: float | None) -> Iterator[str]:
    if prices:
        given = ", ".join(f"{price.name} {price.per_hour:g}" for price in prices)
        yield (
            f"Prices as given, per GPU and hour: {given}. Costs are derived: price x GPUs / 3600 / "
            "(tokens/s); no host, idle time or storage is in them."
        )
    if tokens is not None:
        yield f"The job: {figure(tokens)} tokens at the rate of the row, on one machine."
    if any(cost.energy is not None for cost in costs):
        yield (
            "Energy is that of the GPUs, from where the rate is; '(derived)': mean power over the "
            "rate."
        )
    if any(cost.gpus > 1 for cost in costs):
        yield "GPUs are counted by the tensor-parallel size."


def _partial(lines: Sequence[Line]) -> Iterator[str]:
    """Where the rate is not that of the whole model, and nobody could buy tokens at that cost."""
    if any(line.workload.get("engine") == "linear" for line in lines):
        yield (
            "Engine linear runs the linears alone: attention, sampling and the serving around them "
            "are not in its rates, so its costs and energies are lower bounds of a model's."
        )
