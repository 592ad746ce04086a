"""Result files of `slidesparse plan`: what a model takes of a GPU, and what bounds its layers.

Nothing in them was measured by the command itself: each figure says whether it is read from files,
derived from sizes and datasheets, or estimated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from slidesparse import __version__
from slidesparse.bench.fields import STRICT, Amount, Count, Duration, Name, Positive, Text
from slidesparse.bench.record_form import RecordForm, Stamped
from slidesparse.bench.result_file import FileKind
from slidesparse.bench.rows import Row, Value, model_name
from slidesparse.candidate import Provenance
from slidesparse.capacity.figure import GIB, Part
from slidesparse.capacity.limits import limits
from slidesparse.capacity.nearest import Change
from slidesparse.capacity.plan import CapacityPlan
from slidesparse.capacity.roofline import LayerTime, StepTime

KIND = FileKind("slidesparse-capacity", 1, "slidesparse plan")

GROUPS = ("weights", "KV cache", "activations", "outside torch", "CUDA graphs", "CUDA context")
"""What the memory is taken by, in the order of tables."""

Bytes = Count


@dataclass(frozen=True)
class PartEntry:
    """A part of the memory of one GPU.

    Args:
        group: that it belongs to: one of GROUPS.
        name: of the part.
        bytes: that it takes.
        inside: whether it lies within the fraction of the memory that vLLM may use.
        provenance: measured, derived or estimated.
        how: the formula or source in a few words.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    group: Name
    name: Name
    bytes: Bytes
    inside: bool
    provenance: Provenance
    how: Text


@dataclass(frozen=True)
class LayerEntry:
    """One kind of layer in a step, times in microseconds of one; see roofline.LayerTime."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Name
    count: Count
    flops: Amount
    bytes: Amount
    us: Amount
    tensor_us: Amount | None
    memory_us: Amount
    bound: Name
    provenance: Provenance
    how: Text


@dataclass(frozen=True)
class StepEntry:
    """A step: tokens that it computes, context behind them, and its layers."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    stage: Literal["prefill", "decode"]
    tokens: Positive
    context: Positive
    us: Duration
    tokens_per_s: Duration
    bound: Name
    provenance: Provenance
    layers: tuple[LayerEntry, ...]


@dataclass(frozen=True)
class ChangeEntry:
    """A change that fits: what is changed, the options, bytes that it leaves free."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    knob: Name
    option: Name
    spare: Bytes


@dataclass(frozen=True)
class PlanEntry:
    """One plan.

    Args:
        name: "plan", or "current" and "proposed" of a comparison.
        model: as it was given.
        gpu: key in the GPU table.
        gpus: how many of them share the layers.
        settings: options by name, as they hold.
        fits: whether all of it is there.
        starts: whether vLLM starts: one sequence of the full context fits.
        verdict: the first line.
        budget: bytes that vLLM may use.
        needed: bytes that everything wanted takes of it.
        parts: of the memory.
        kv_tokens: tokens of KV cache that vLLM would report.
        sequences: of the full context that are in memory at once at most.
        longest: context of which all wanted sequences are in memory at once.
        alone: longest single sequence.
        changes: nearest ones that fit, where the plan does not.
        steps: of prefill and decode.
        notes: what a reader has to know besides.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Name
    model: Name
    gpu: Name
    gpus: Positive
    settings: dict[Name, Any]
    fits: bool
    starts: bool
    verdict: Text
    budget: Bytes
    needed: Bytes
    parts: tuple[PartEntry, ...]
    kv_tokens: Count
    sequences: Count
    longest: Count
    alone: Count
    changes: tuple[ChangeEntry, ...]
    steps: tuple[StepEntry, ...]
    notes: tuple[Text, ...]


@dataclass(frozen=True)
class CapacityRecord(Stamped):
    """What `slidesparse plan` says.

    Args:
        fingerprint: None: a plan is of no machine.
        settings: of the command.
        plans: one, or current and proposed.
        commit: of the source, "unknown" outside a checkout.
        version: of the package.
        created: UTC time in ISO 8601.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    fingerprint: None
    settings: dict[Name, Any]
    plans: tuple[PlanEntry, ...]
    commit: Text = ""
    version: Text = __version__
    created: Text = ""

    @property
    def machine(self) -> str:
        """For headings."""
        gpus = dict.fromkeys(plan.gpu for plan in self.plans)
        return f"{', '.join(gpus)} (planned)"


def plan_entry(
    name: str,
    model: str,
    plan: CapacityPlan,
    changes: Sequence[Change],
    steps: Sequence[StepTime],
    options: Mapping[str, Any],
) -> PlanEntry:
    """A plan as the result file holds it."""
    found = limits(plan)
    return PlanEntry(
        name=name,
        model=model,
        gpu=plan.settings.gpu.key,
        gpus=plan.settings.tp,
        settings=dict(options),
        fits=plan.fits,
        starts=plan.starts,
        verdict=plan.verdict,
        budget=plan.budget,
        needed=plan.needed,
        parts=tuple(_parts(plan)),
        kv_tokens=plan.kv_tokens,
        sequences=found.sequences,
        longest=found.context,
        alone=found.alone,
        changes=tuple(ChangeEntry(it.knob, it.option, it.plan.spare) for it in changes),
        steps=tuple(_step(step) for step in steps),
        notes=tuple(plan.notes()),
    )


FORM = RecordForm(KIND, CapacityRecord)
read_json, write_json = FORM.read, FORM.write


def rows(record: CapacityRecord) -> tuple[Row, ...]:
    """Memory needed, sequences that fit, and the ceilings of prefill and decode of every plan."""
    return tuple(row for plan in record.plans for row in _rows(plan))


def _parts(plan: CapacityPlan) -> Iterator[PartEntry]:
    inside = plan.graphs_inside
    groups: tuple[tuple[str, Sequence[Part], bool], ...] = (
        ("weights", plan.weights, True),
        ("KV cache", (plan.kv_cache,), True),
        ("activations", plan.activations, True),
        ("outside torch", (plan.non_torch,), True),
        ("CUDA graphs", (plan.graphs,), inside),
        ("CUDA context", (plan.context,), False),
    )
    for group, parts, within in groups:
        for part in parts:
            yield PartEntry(group, part.name, part.bytes, within, part.provenance, part.how)


def _step(step: StepTime) -> StepEntry:
    return StepEntry(
        stage="prefill" if step.stage == "prefill" else "decode",
        tokens=step.tokens,
        context=step.context,
        us=step.us,
        tokens_per_s=step.tokens_per_s,
        bound=step.bound,
        provenance=step.provenance,
        layers=tuple(_layer(layer) for layer in step.layers),
    )


def _layer(layer: LayerTime) -> LayerEntry:
    return LayerEntry(**vars(layer))


def _rows(plan: PlanEntry) -> Iterator[Row]:
    settings = plan.settings
    workload: dict[str, Value] = {"what": "capacity", "model": model_name(plan.model)}
    for name in ("context", "batch", "max-seqs"):
        workload[name] = settings[name]
    variant: dict[str, Value] = {"plan": plan.name, "gpus": plan.gpus}
    for name in ("quant", "kv-dtype", "pattern", "memory-fraction"):
        variant[name] = settings[name]
    estimated = Provenance.ESTIMATED
    yield Row(workload, variant, "memory", "GiB", plan.needed / GIB, "lower", estimated)
    # How many fit does not depend on how many are wanted.
    wanted = {name: value for name, value in workload.items() if name != "batch"}
    wanted["what"] = "most sequences"
    yield Row(wanted, variant, "sequences", "", plan.sequences, "higher", estimated)
    for step in plan.steps:
        yield Row(
            {**workload, "what": f"{step.stage} ceiling"},
            variant,
            "throughput",
            "tok/s",
            step.tokens_per_s,
            "higher",
            step.provenance,
            tokens_per_s=step.tokens_per_s,
        )
