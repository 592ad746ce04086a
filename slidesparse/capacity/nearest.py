"""The nearest change of each setting with which everything fits; each one is planned again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from slidesparse.capacity.plan import CapacityPlan, make_plan
from slidesparse.capacity.refused import refusals
from slidesparse.capacity.settings import KvDtype, Quant, Settings
from slidesparse.capacity.stored import StoredWeights
from slidesparse.errors import UsageError

MOST_GPUS = 8
"""Tensor parallelism beyond one host's GPUs is no nearest change."""

SHORTEST = 1024
"""A context below it serves nobody."""

FINEST = 0.01
"""Steps of the memory fraction."""

KNOBS = (
    "sequences",
    "context",
    "KV dtype",
    "quantisation",
    "tensor parallel",
    "memory fraction",
)
"""What is changed, in the order of tables."""

LIGHTER = (Quant.NONE, Quant.INT8, Quant.FP8, Quant.AWQ, Quant.GPTQ)
"""Quantisations, heaviest first."""


@dataclass(frozen=True)
class Change:
    """A change that fits.

    Args:
        knob: what is changed: one of KNOBS, or two joined by " + ".
        option: as the command line spells it: "--batch 8".
        plan: with the change; it fits.
    """

    knob: str
    option: str
    plan: CapacityPlan


def nearest_changes(plan: CapacityPlan, stored: StoredWeights | None = None) -> tuple[Change, ...]:
    """The smallest change of each setting that fits.

    A KV dtype or quantisation that does not suffice alone is given together with the number of
    sequences that it then allows, if that is more than without it, or with the context where no
    number of sequences fits. Where no change of one setting helps, since the weights alone are too
    much, those of two are looked for.

    Args:
        plan: that does not fit.
        stored: weights of a local checkpoint.

    Returns:
        Changes whose plans fit, every one of them planned again; empty where `plan` fits, or where
        not even two changes help.
    """
    if plan.fits:
        return ()
    found = tuple(_single(plan.settings, stored))
    if any(change.knob in KNOBS for change in found):
        return found
    return tuple(_joined(plan.settings, stored))


def _single(settings: Settings, stored: StoredWeights | None) -> Iterator[Change]:
    fewer, shorter = _sequences(settings, stored), _context(settings, stored)
    for change in (fewer, shorter):
        if change is not None:
            yield change
    for search, first in ((_kv_dtype, _half_kv(settings)), (_quantisation, _four_bits(settings))):
        change = search(settings, stored)
        if change is None and first is not None:
            change = _with_less(first, fewer, shorter, stored)
        if change is not None:
            yield change
    for search in (_ranks, _fraction):
        change = search(settings, stored)
        if change is not None:
            yield change


def _half_kv(settings: Settings) -> tuple[str, str, Settings] | None:
    if settings.kv_dtype is KvDtype.FP8:
        return None
    changed = _replaced(settings, kv_dtype=KvDtype.FP8)
    return ("KV dtype", "--kv-dtype fp8", changed) if changed is not None else None


def _four_bits(settings: Settings) -> tuple[str, str, Settings] | None:
    """AWQ, or where the GPU or the ranks cannot have it GPTQ."""
    if settings.quant.four_bit or not settings.pattern.dense:
        return None
    for quant in (Quant.AWQ, Quant.GPTQ):
        changed = _replaced(settings, quant=quant)
        if changed is not None:
            return "quantisation", f"--quant {quant}", changed
    return None


def _with_less(
    first: tuple[str, str, Settings],
    fewer: Change | None,
    shorter: Change | None,
    stored: StoredWeights | None,
) -> Change | None:
    """A change that does not suffice, with as many sequences, else as much context, as it allows.

    None where it allows no more than `fewer` sequences, or the `shorter` context, without it.
    """
    second = _sequences(first[2], stored)
    if second is not None and fewer is not None:
        more = second.plan.settings.batch > fewer.plan.settings.batch
    elif second is not None:
        more = True
    else:
        second = _context(first[2], stored)
        before = shorter.plan.settings.context if shorter is not None else 0
        more = second is not None and second.plan.settings.context > before
    if second is None or not more:
        return None
    return Change(f"{first[0]} + {second.knob}", f"{first[1]} {second.option}", second.plan)


def _joined(settings: Settings, stored: StoredWeights | None) -> Iterator[Change]:
    """A change that does not suffice alone, and the smallest of another that then does."""
    for first in _first_steps(settings):
        for search in (_sequences, _context, _ranks):
            second = search(first[2], stored)
            if second is not None:
                knob, option = f"{first[0]} + {second.knob}", f"{first[1]} {second.option}"
                yield Change(knob, option, second.plan)


def _first_steps(settings: Settings) -> Iterator[tuple[str, str, Settings]]:
    if settings.quant is Quant.NONE:
        eight = _replaced(settings, quant=Quant.FP8)
        if eight is not None:
            yield "quantisation", "--quant fp8", eight
    four = _four_bits(settings)
    if four is not None:
        yield four
    for tp in _more_ranks(settings):
        changed = _replaced(settings, tp=tp)
        if changed is not None:
            yield "tensor parallel", f"--tp {tp}", changed


def _sequences(settings: Settings, stored: StoredWeights | None) -> Change | None:
    """Fewer sequences of the full context; max_seqs stays, since vLLM lets the others wait."""

    def planned(batch: int) -> CapacityPlan:
        return make_plan(replace(settings, batch=batch), stored)

    most = _largest(planned, settings.batch - 1)
    if most is None:
        return None
    return Change("sequences", f"--batch {most.settings.batch}", most)


def _context(settings: Settings, stored: StoredWeights | None) -> Change | None:
    def planned(blocks: int) -> CapacityPlan:
        return make_plan(replace(settings, context=blocks * step), stored)

    step = make_plan(settings, stored).layout.block_tokens
    longest = _largest(planned, (settings.context - 1) // step)
    if longest is None or longest.settings.context < min(SHORTEST, settings.context):
        return None
    return Change("context", f"--context {longest.settings.context}", longest)


def _kv_dtype(settings: Settings, stored: StoredWeights | None) -> Change | None:
    if settings.kv_dtype is KvDtype.FP8:
        return None
    changed = _replaced(settings, kv_dtype=KvDtype.FP8)
    return _if_fits("KV dtype", "--kv-dtype fp8", changed, stored)


def _quantisation(settings: Settings, stored: StoredWeights | None) -> Change | None:
    """The heaviest quantisation that fits; a pattern keeps its eight bits."""
    if not settings.pattern.dense:
        return None
    for quant in LIGHTER[LIGHTER.index(settings.quant) + 1 :]:
        changed = _replaced(settings, quant=quant)
        found = _if_fits("quantisation", f"--quant {quant}", changed, stored)
        if found is not None:
            return found
    return None


def _ranks(settings: Settings, stored: StoredWeights | None) -> Change | None:
    for tp in _more_ranks(settings):
        changed = _replaced(settings, tp=tp)
        found = _if_fits("tensor parallel", f"--tp {tp}", changed, stored)
        if found is not None:
            return found
    return None


def _fraction(settings: Settings, stored: StoredWeights | None) -> Change | None:
    """The fraction nearest to the given one that fits: more of it, or less where it is too much."""
    start = round(settings.memory_fraction / FINEST)
    for step in range(1, round(1 / FINEST)):
        for hundredth in (start + step, start - step):
            fraction = round(hundredth * FINEST, 4)
            changed = _replaced(settings, memory_fraction=fraction)
            option = f"--memory-fraction {fraction:g}"
            found = _if_fits("memory fraction", option, changed, stored)
            if found is not None:
                return found
    return None


def _more_ranks(settings: Settings) -> list[int]:
    powers = (2**power for power in range(MOST_GPUS.bit_length()))
    possible = settings.spec.tp_sizes()
    return [tp for tp in powers if settings.tp < tp <= MOST_GPUS and tp in possible]


def _if_fits(
    knob: str, option: str, changed: Settings | None, stored: StoredWeights | None
) -> Change | None:
    plan = make_plan(changed, stored) if changed is not None else None
    return Change(knob, option, plan) if plan is not None and plan.fits else None


def _replaced(
    settings: Settings,
    quant: Quant | None = None,
    kv_dtype: KvDtype | None = None,
    tp: int | None = None,
    memory_fraction: float | None = None,
) -> Settings | None:
    """The settings with one of them changed; None where that cannot be, or vLLM refuses it."""
    try:
        changed = replace(
            settings,
            quant=quant or settings.quant,
            kv_dtype=kv_dtype or settings.kv_dtype,
            tp=tp or settings.tp,
            memory_fraction=settings.memory_fraction
            if memory_fraction is None
            else memory_fraction,
        )
    except UsageError:
        return None
    return None if any(refusals(changed)) and not any(refusals(settings)) else changed


def _largest(planned: Callable[[int], CapacityPlan], most: int) -> CapacityPlan | None:
    """The plan of the largest count up to `most` that fits; None where one does not."""
    if most < 1 or not planned(1).fits:
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if planned(middle).fits:
            low = middle
        else:
            high = middle - 1
    return planned(low)
