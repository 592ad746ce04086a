"""How far a plan could be pushed: the longest context and the most sequences."""

from __future__ import annotations

from dataclasses import dataclass

from slidesparse.capacity.plan import CapacityPlan

LONGEST = 2**24
"""Nothing longer is looked for."""


@dataclass(frozen=True)
class Limits:
    """What the memory allows; 0 for nothing.

    Args:
        context: longest sequences of which `batch` are in memory at once.
        sequences: of the planned context that are in memory at once.
        alone: longest single sequence.
    """

    context: int
    sequences: int
    alone: int


def limits(plan: CapacityPlan) -> Limits:
    """Find what the memory allows, by the plan's own KV layout."""
    settings, layout = plan.settings, plan.layout

    def longest(sequences: int) -> int:
        return layout.longest_in(
            plan.available, sequences, settings.batched_tokens, max(LONGEST, settings.context)
        )

    return Limits(longest(settings.batch), plan.sequences, longest(1))
