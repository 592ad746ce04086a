"""CapacityPlan: what a served model takes of one GPU, and whether that is there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from slidesparse.candidate import Provenance
from slidesparse.capacity.activations import activation_parts, runs_v2
from slidesparse.capacity.figure import Part, sequences, size, total, weakest
from slidesparse.capacity.graphs import context_part, graph_part, non_torch_part
from slidesparse.capacity.kv_cache import KvLayout, describe, kv_layout
from slidesparse.capacity.refused import refusals
from slidesparse.capacity.settings import Quant, Settings
from slidesparse.capacity.stored import StoredWeights
from slidesparse.capacity.weights import second_forms, weight_parts

SECOND_FORMS_SHARE = 10
"""The plug-in gives second forms of weights at most this part of the GPU's memory."""


@dataclass(frozen=True)
class CapacityPlan:
    """What one of the GPUs holds.

    vLLM may use `memory_fraction` of the GPU: weights, activations, what is outside torch, and the
    KV cache in the rest. CUDA graphs count within it in vLLM's model runner V1 and lie beside it in
    V2, where the CUDA context lies, too.

    Args:
        settings: what is planned.
        weights: parts of the weights of one rank.
        activations: tensors alive at the peak.
        graphs: CUDA graphs.
        non_torch: what libraries take during the profile.
        context: what is taken before vLLM starts to count.
        layout: of the KV cache.
    """

    settings: Settings
    weights: tuple[Part, ...]
    activations: tuple[Part, ...]
    graphs: Part
    non_torch: Part
    context: Part
    layout: KvLayout

    @property
    def budget(self) -> int:
        """Bytes that vLLM may use: the fraction of the memory that the driver reports."""
        gpu = self.settings.gpu
        return math.ceil(gpu.memory_bytes * self.settings.memory_fraction)

    @property
    def graphs_inside(self) -> bool:
        """Whether vLLM takes CUDA graphs off its KV cache: model runner V1 does, V2 does not."""
        return not runs_v2(self.settings)

    @cached_property
    def fixed(self) -> int:
        """Bytes inside the budget that are no KV cache."""
        graphs = self.graphs.bytes if self.graphs_inside else 0
        return total(self.weights) + total(self.activations) + self.non_torch.bytes + graphs

    @property
    def available(self) -> int:
        """Bytes that are left for the KV cache; negative where not even the weights fit."""
        return self.budget - self.fixed

    @cached_property
    def demand_blocks(self) -> int:
        """Blocks that `batch` sequences of the full context take, and vLLM's own one."""
        settings = self.settings
        each = self.layout.sequence_blocks(settings.context, settings.batched_tokens)
        return settings.batch * each + 1

    @property
    def kv_cache(self) -> Part:
        """The KV cache that the wanted sequences need."""
        settings = self.settings
        taken = self.demand_blocks * self.layout.block_bytes
        how = f"{settings.batch:,} x {settings.context:,} tokens, {describe(self.layout)}"
        return Part("KV cache", taken, Provenance.DERIVED, how)

    @property
    def needed(self) -> int:
        """Bytes inside the budget that everything wanted takes."""
        return self.fixed + self.kv_cache.bytes

    @property
    def outside(self) -> int:
        """Bytes that are taken beside the budget."""
        return self.context.bytes + (0 if self.graphs_inside else self.graphs.bytes)

    @property
    def short_outside(self) -> int:
        """Bytes that lack beside the budget, 0 or less where there is room."""
        return self.outside - (self.settings.gpu.memory_bytes - self.budget)

    @property
    def spare(self) -> int:
        """Bytes of the budget that stay free; negative: that lack."""
        return self.budget - self.needed

    @property
    def fits(self) -> bool:
        """Whether all of it is there."""
        return self.spare >= 0 and self.short_outside <= 0

    @property
    def starts(self) -> bool:
        """Whether vLLM starts at all: one sequence of the full context has to fit."""
        return self.sequences >= 1 and self.short_outside <= 0

    @cached_property
    def sequences(self) -> int:
        """Sequences of the full context that are in memory at once at most."""
        settings = self.settings
        return self.layout.sequences_in(self.available, settings.context, settings.batched_tokens)

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV cache, as vLLM reports them when it starts."""
        settings = self.settings
        return self.layout.tokens_in(self.available, settings.context, settings.batched_tokens)

    @property
    def provenance(self) -> Provenance:
        """Of the whole: the least certain part."""
        parts = (*self.weights, *self.activations, self.graphs, self.non_torch, self.kv_cache)
        return weakest(part.provenance for part in parts)

    @property
    def verdict(self) -> str:
        """The first line: whether it fits, and by how much."""
        settings = self.settings
        budget = f"{size(self.budget)} ({settings.memory_fraction:g} of {settings.gpu.name})"
        each = " on each of the GPUs" if settings.tp > 1 else ""
        share = 100 * self.needed / self.budget
        if self.spare < 0:
            return (
                f"does not fit{each}: {size(-self.spare)} too much, {size(self.needed)} of "
                f"{budget}, {share:.1f} %"
            )
        if self.short_outside > 0:
            return (
                f"does not fit{each}: beside the {size(self.budget)} that vLLM may use "
                f"{size(self.short_outside)} lack for the CUDA context"
                f"{'' if self.graphs_inside else ' and graphs'}; use a smaller memory fraction"
            )
        return (
            f"fits{each}: {size(self.spare)} to spare, {size(self.needed)} of {budget}, "
            f"{share:.1f} %"
        )

    def notes(self) -> Iterator[str]:
        """What a reader has to know besides the figures, one line each."""
        yield from _notes(self)


def make_plan(settings: Settings, stored: StoredWeights | None = None) -> CapacityPlan:
    """Plan the memory of one GPU.

    Args:
        settings: what is served, and how.
        stored: the model's own weights, which count as they are where their quantisation is the one
            of `settings` and no pattern is asked for; None to derive all from the sizes.
    """
    exact = stored is not None and stored.quant is settings.quant and settings.pattern.dense
    return CapacityPlan(
        settings=settings,
        weights=stored.parts(settings.tp, settings.spec.kv_heads)
        if stored and exact
        else weight_parts(settings),
        activations=activation_parts(settings),
        graphs=graph_part(settings),
        non_torch=non_torch_part(settings),
        context=context_part(settings),
        layout=kv_layout(settings),
    )


def _notes(plan: CapacityPlan) -> Iterator[str]:
    settings = plan.settings
    spec, gpu = settings.spec, settings.gpu
    if not plan.fits and plan.starts:
        yield (
            f"vLLM would start: it holds {plan.sequences:,} of {sequences(settings.batch)} of "
            f"{settings.context:,} tokens at once and lets the others wait"
        )
    if settings.max_seqs > settings.batch:
        yield (
            f"the plan is for {sequences(settings.batch)} of the full context; --max-seqs "
            f"{settings.max_seqs:,} sizes the sampler and the graphs, and as many run where they "
            "are shorter"
        )
    if spec.longest and settings.context > spec.longest:
        yield (
            f"the model is made for {spec.longest:,} tokens: {settings.context:,} need RoPE "
            "scaling in its config, or vLLM refuses"
        )
    if not settings.pattern.dense:
        second = size(min(second_forms(settings), gpu.memory_bytes // SECOND_FORMS_SHARE))
        yield (
            f"weights are counted in the sparse form alone (memory_format=smallest); fastest, the "
            f"default, may keep up to {second} of dense forms besides, as the tuning cache says"
        )
        if spec.moe:
            yield "experts stay with vLLM's own kernels: the pattern changes nothing of them"
    if settings.quant is Quant.FP8 and gpu.sm < 89:
        yield f"{gpu.name} has no FP8 tensor cores: vLLM multiplies FP8 weights in 16 bits"
    if "bf16" not in gpu.tflops and "fp16" in gpu.tflops:
        yield f"{gpu.name} has no BF16: FP16 is planned, which takes as many bytes"
    if not {"bf16", "fp16"} & gpu.tflops.keys():
        yield (
            f"nobody publishes the tensor-core rates of {gpu.name}: the ceilings are those of its "
            "memory, and prefill is further below them"
        )
    yield from refusals(settings)
    if settings.tp > 1 and not gpu.nvlink_gbs:
        yield f"{gpu.name} has no NVLink: what the ranks exchange over PCIe is in no ceiling"
    if settings.tp > 2 and gpu.nvlink_gbs and "pcie" in gpu.key:
        yield (
            f"NVLink bridges join two {gpu.name}: {settings.tp} ranks exchange over PCIe, too, "
            "which is slower than the ceilings say"
        )
    if gpu.key == "gb10":
        yield "its memory is shared with the CPU: what other programs use is not there"
