"""Times of a whole model's GEMMs, from a search: layers count as often as the model has them."""

from __future__ import annotations

from slidesparse.bench.search.record import SearchRecord
from slidesparse.bench.workload import LayerProblem
from slidesparse.pattern import Pattern
from slidesparse.plan import Choice, choose


def patterns_of(record: SearchRecord) -> list[Pattern]:
    """The sparse patterns of a record, in the order asked for."""
    found = dict.fromkeys(item.problem.pattern for item in record.layers)
    return [pattern for pattern in found if not pattern.dense]


def tokens_of(record: SearchRecord) -> list[int]:
    """Every M of a record, in the order asked for."""
    return list(dict.fromkeys(item.tokens for item in record.layers))


def choice_of(record: SearchRecord, item: LayerProblem) -> Choice | None:
    """What is planned for a layer at one M and pattern; None if it has no result."""
    held = record.results.get(item.problem)
    return choose(held[0]) if held is not None else None


def totals(record: SearchRecord, tokens: int, pattern: Pattern) -> tuple[float, float] | None:
    """Microseconds of all layers at one M: (best dense, best sparse), weighted by their count.

    Both come from the races of `pattern`, on the pruned weights; None if a layer is missing.
    """
    dense_us = sparse_us = 0.0
    for item in _items(record, tokens, pattern):
        choice = choice_of(record, item)
        if choice is None or choice.baseline is None or choice.sparse is None:
            return None
        dense_us += item.layer.count * choice.baseline.median_us
        sparse_us += item.layer.count * choice.sparse.median_us
    return (dense_us, sparse_us) if dense_us else None


def totals_clear(record: SearchRecord, tokens: int, pattern: Pattern) -> bool:
    """Whether dense and sparse totals differ by more than half the sum of either's spreads."""
    both = totals(record, tokens, pattern)
    if both is None:
        return False
    dense_us = sparse_us = 0.0
    for item in _items(record, tokens, pattern):
        choice = choice_of(record, item)
        if choice is not None and choice.baseline is not None and choice.sparse is not None:
            dense_us += item.layer.count * choice.baseline.spread_us
            sparse_us += item.layer.count * choice.sparse.spread_us
    return abs(both[0] - both[1]) > max(dense_us, sparse_us) / 2


def planned_total(record: SearchRecord, tokens: int, pattern: Pattern) -> float | None:
    """Microseconds of all layers at one M when each runs what is planned for it."""
    planned_us = 0.0
    for item in _items(record, tokens, pattern):
        choice = choice_of(record, item)
        if choice is None:
            return None
        planned_us += item.layer.count * choice.chosen.median_us
    return planned_us or None


def dense_total(record: SearchRecord, tokens: int) -> float | None:
    """Microseconds of all dense layers at one M, on unpruned weights; None if one is missing."""
    total = 0.0
    for item in record.layers:
        if item.tokens == tokens and item.problem.pattern.dense:
            held = record.results.get(item.problem)
            if held is None or held[0].best is None:
                return None
            total += item.layer.count * held[0].best.median_us
    return total or None


def _items(record: SearchRecord, tokens: int, pattern: Pattern) -> list[LayerProblem]:
    return [
        item for item in record.layers if item.tokens == tokens and item.problem.pattern == pattern
    ]
