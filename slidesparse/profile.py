"""Profile: the settings that suit a GPU and a model, each with its reason and provenance.

Document E of the reference: one code base detects the GPU and picks its settings. Nothing here
touches a GPU; what was measured comes from tuning caches, the rest from the GPU table and from the
arithmetic of `slidesparse plan`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from slidesparse.candidate import Provenance
from slidesparse.capacity.figure import sequences, size
from slidesparse.capacity.plan import CapacityPlan, make_plan
from slidesparse.capacity.settings import BLACKWELL, Quant, Settings, default_batched_tokens
from slidesparse.devices import FP8_SM, spell_sm
from slidesparse.gpus import GpuSpec
from slidesparse.models import ModelSpec
from slidesparse.pattern import Pattern, parse_patterns
from slidesparse.problem import DType
from slidesparse.profile_evidence import DECODE, PREFILL, PatternGain, pattern_gains

INT8_SM = 75
"""The first compute capability with INT8 tensor cores, Turing's 7.5."""

FLASH_SM = 80
"""The first compute capability that FlashAttention runs on."""

PATTERNS = parse_patterns("2:4,4:6,6:8,8:10")

LARGEST_FRACTION = 0.95
"""Some memory stays free: fragments, other processes' contexts, a spike of the driver."""

SHARED_FRACTION = 0.8
"""Where GPU and CPU share one memory, the operating system and programs live in it, too."""

MOST_SEQUENCES = 1024
"""vLLM's default for max_num_seqs on large GPUs; a longer queue gains nothing that is known."""

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Setting:
    """One setting of a profile.

    Args:
        name: dtype, sparse, memory fraction, batch, attention.
        value: as a person would say it.
        reason: why, with the numbers.
        provenance: of what decides; None where nothing is known until it is measured.
    """

    name: str
    value: str
    reason: str
    provenance: Provenance | None

    @property
    def evidence(self) -> str:
        """The provenance as tables print it: what caches hold was measured."""
        if self.provenance is None:
            return NOT_MEASURED
        if self.provenance in (Provenance.CACHED, Provenance.BUNDLED):
            return f"measured, {self.provenance}"
        return str(self.provenance)


@dataclass(frozen=True)
class Profile:
    """What suits one GPU.

    Args:
        gpu: that it is for.
        model: that memory and batch are for.
        context: tokens of a sequence, for the batch.
        settings: in a fixed order: dtype, sparse, memory fraction, batch, attention.
    """

    gpu: GpuSpec
    model: str
    context: int
    settings: tuple[Setting, ...]


def make_profile(
    gpu: GpuSpec, spec: ModelSpec, context: int = 4096, root: Path | None = None
) -> Profile:
    """The settings that suit a GPU and a model.

    Args:
        gpu: from the table.
        spec: the model.
        context: tokens of a sequence that the batch is sized for.
        root: of the user's tuning caches; None for the default one.
    """
    dtype = choose_dtype(gpu)
    fraction = _memory_fraction(gpu, spec, context, dtype)
    return Profile(
        gpu,
        spec.name,
        context,
        (
            _dtype_setting(gpu, dtype),
            _sparse_setting(gpu, spec, dtype, root),
            fraction,
            _batch_setting(gpu, spec, context, dtype, float(fraction.value)),
            _attention_setting(gpu),
        ),
    )


def choose_dtype(gpu: GpuSpec) -> DType:
    """The dtype of the linears: the fastest that the tensor cores have and vLLM serves.

    INT8 only where its published dense rate is higher than FP8's, as on GeForce cards of Ada,
    which run FP8 with FP32 accumulation at half rate; of equal ones FP8, so that one checkpoint
    serves every GPU from Ada on.
    """
    if gpu.sm < INT8_SM:
        return DType.FP16
    if gpu.sm < FP8_SM:
        return DType.INT8
    faster = gpu.tflops.get("int8", 0.0) > gpu.tflops.get("fp8", 0.0)
    return DType.INT8 if faster and gpu.sm < BLACKWELL else DType.FP8


def _dtype_setting(gpu: GpuSpec, dtype: DType) -> Setting:
    sixteen = gpu.tflops.get("bf16", gpu.tflops.get("fp16", 0.0))
    rate = gpu.tflops.get({DType.FP8: "fp8", DType.INT8: "int8"}.get(dtype, "fp16"), 0.0)
    here = f"{spell_sm(gpu.sm)} ({gpu.architecture})"
    if dtype is DType.FP16:
        reason = (
            f"{here} has no FP8 and no INT8 tensor cores, and no BF16: {rate:g} TFLOP/s in FP16"
        )
    elif not rate or not sixteen:
        reason = f"{here} has FP8 tensor cores; their rate is not published"
    else:
        reason = f"{rate:g} T/s dense against {sixteen:g} in 16 bits"
        if dtype is DType.INT8 and gpu.sm < FP8_SM:
            reason = f"no FP8 tensor cores ({here}); INT8 {reason}"
        elif dtype is DType.INT8:
            fp8 = gpu.tflops.get("fp8", 0.0)
            reason = f"INT8 {reason}; FP8 with FP32 accumulation runs at {fp8:g}"
        elif gpu.sm >= BLACKWELL and gpu.tflops.get("int8", 0.0) > rate:
            reason = f"FP8 {reason}; vLLM's INT8 kernels refuse Blackwell"
        else:
            reason = f"FP8 {reason}"
    value = "fp16" if dtype is DType.FP16 else f"{'fp8' if dtype is DType.FP8 else 'int8'} (W8A8)"
    return Setting("dtype", value, reason, Provenance.DERIVED)


def _sparse_setting(gpu: GpuSpec, spec: ModelSpec, dtype: DType, root: Path | None) -> Setting:
    if not gpu.sparse:
        reason = f"no sparse tensor cores: 2:4 came with Ampere, this is {gpu.architecture}"
        return Setting("sparse", "no", reason, Provenance.DERIVED)
    gains = pattern_gains(gpu, spec, dtype, PATTERNS, root)
    if not gains:
        reason = (
            f"it has 2:4 tensor cores, but no tuning cache has {spec.name} on this GPU: dense is "
            "the safe default, slidesparse search decides"
        )
        return Setting("sparse", "dense until searched", reason, None)
    named = [_verdict(pattern, gains) for pattern in PATTERNS]
    known = [(value, why) for value, why in named if value]
    reason = (
        f"dense over planned GEMM time at M={PREFILL} and {DECODE}, on weights pruned to the "
        f"pattern: {'; '.join(why for _, why in known)}"
    )
    own = any(gain.provenance is Provenance.CACHED for gain in gains)
    provenance = Provenance.CACHED if own else Provenance.BUNDLED
    return Setting("sparse", ", ".join(value for value, _ in known), reason, provenance)


def _verdict(pattern: Pattern, gains: tuple[PatternGain, ...]) -> tuple[str, str]:
    """What is planned for a pattern, and the ratios; both "" where nothing was measured."""
    mine = [gain for gain in gains if gain.pattern == pattern]
    if not mine:
        return "", ""
    everywhere = all(gain.sparse == gain.layers for gain in mine)
    word = (
        "sparse" if everywhere else "sparse in part" if any(it.sparse for it in mine) else "dense"
    )
    ratios = " and ".join(f"{gain.planned:.2f}" for gain in mine)
    return f"{pattern} {word}", f"{pattern} {ratios}"


def _planned(
    gpu: GpuSpec, spec: ModelSpec, context: int, dtype: DType, fraction: float
) -> CapacityPlan:
    quant = {DType.FP8: Quant.FP8, DType.INT8: Quant.INT8}.get(dtype, Quant.NONE)
    return make_plan(
        Settings(
            spec=spec,
            gpu=gpu,
            max_seqs=MOST_SEQUENCES if gpu.memory_gib >= 70 else 256,
            context=context,
            batch=1,
            quant=quant,
            memory_fraction=fraction,
            batched_tokens=default_batched_tokens(gpu),
        )
    )


def _memory_fraction(gpu: GpuSpec, spec: ModelSpec, context: int, dtype: DType) -> Setting:
    """The largest hundredth that leaves what vLLM does not count: the CUDA context and graphs."""
    if gpu.sm == 121:
        reason = "GPU and CPU share the memory: the system and other programs live in it, too"
        return Setting("memory fraction", f"{SHARED_FRACTION:.2f}", reason, Provenance.ESTIMATED)
    outside = _planned(gpu, spec, context, dtype, 0.9).outside
    fraction = min(LARGEST_FRACTION, math.floor(100 * (1 - outside / gpu.memory_bytes)) / 100)
    reason = (
        f"{size(outside)} of {gpu.memory_gib:g} GiB lie outside what vLLM counts (CUDA context and "
        f"graphs); never above {LARGEST_FRACTION}"
    )
    return Setting("memory fraction", f"{fraction:.2f}", reason, Provenance.ESTIMATED)


def _batch_setting(
    gpu: GpuSpec, spec: ModelSpec, context: int, dtype: DType, fraction: float
) -> Setting:
    """As many sequences as fit, but no more than keep the tensor cores busy.

    A linear of M rows takes 2 M N K / F in the tensor cores and N K b / B for reading its weights
    of b bytes: from M = F b / (2 B) on it is bound by the former (the ridge of the roofline model,
    Williams, Waterman and Patterson, CACM 52(4), 2009), and more rows take longer in proportion.
    """
    plan = _planned(gpu, spec, context, dtype, fraction)
    if plan.sequences < 1:
        short = max(plan.needed - plan.budget, plan.short_outside)
        reason = f"{spec.name} lacks {size(short)} for one sequence of {context:,} tokens"
        return Setting(
            "batch",
            "does not fit",
            f"{reason}; slidesparse plan says what would",
            plan.provenance,
        )
    fitting = min(plan.sequences, plan.settings.max_seqs)
    name = {DType.FP8: "fp8", DType.INT8: "int8"}.get(dtype, "fp16")
    rate = gpu.tflops.get(name)
    fits = f"{sequences(plan.sequences)} of {context:,} tokens fit"
    if rate is None:
        return Setting("batch", str(fitting), f"{fits}; the ridge is not known", plan.provenance)
    width = 2 if dtype is DType.FP16 else 1
    ridge = math.ceil(rate * 1e12 * width / (2 * gpu.bandwidth_gbs * 1e9))
    batch = min(fitting, -(-ridge // 16) * 16)
    reason = f"{fits}; linears stop waiting for their weights at {ridge} rows"
    return Setting("batch", str(batch), reason, plan.provenance)


def _attention_setting(gpu: GpuSpec) -> Setting:
    """The backend that vLLM 0.25.1 takes by itself (platforms/cuda.py, fa_utils.py)."""
    major = gpu.sm // 10
    if gpu.sm < FLASH_SM:
        value = "Triton"
        reason = f"FlashAttention needs {spell_sm(FLASH_SM)}, this is {spell_sm(gpu.sm)}"
    elif major == 9:
        value, reason = "FlashAttention 3", "made for Hopper's TMA and asynchronous tensor cores"
    elif major == 10:
        value, reason = "FlashInfer", "vLLM's first choice on SM 10.x, with kernels for Blackwell"
    else:
        value = "FlashAttention 2"
        reason = f"FlashAttention 3 is for SM 9.x only, this is {spell_sm(gpu.sm)}"
    return Setting("attention", value, f"{reason}; vLLM 0.25.1's own order", Provenance.DERIVED)
