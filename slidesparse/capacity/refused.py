"""What vLLM 0.25.1 refuses although the memory suffices: told in notes, and never recommended."""

from __future__ import annotations

from collections.abc import Iterator

from slidesparse.capacity.settings import BLACKWELL, GROUP, Quant, Settings
from slidesparse.models import LinearLayer


def refusals(settings: Settings) -> Iterator[str]:
    """Why vLLM would refuse, one line each; nothing where it takes the settings."""
    torn = torn_layer(settings)
    if torn is not None:
        yield (
            f"AWQ weights share scales in groups of {GROUP}, which do not divide the {torn.k:,} "
            f"inputs of {torn.name} on each rank: vLLM refuses such a checkpoint"
        )
    gpu = settings.gpu
    if settings.quant is Quant.INT8 and gpu.sm >= BLACKWELL and settings.pattern.dense:
        yield (
            f"vLLM's CUTLASS kernels refuse INT8 on {gpu.name} (vLLM issue 54311): FP8 takes as "
            "many bytes"
        )


def torn_layer(settings: Settings) -> LinearLayer | None:
    """A linear whose groups of AWQ weights the ranks would tear apart, None without one.

    AutoAWQLinearMethod.create_weights in quantization/auto_awq.py; experts run with smaller groups
    instead.
    """
    if settings.quant is not Quant.AWQ:
        return None
    layers = settings.spec.linears(settings.tp)
    return next((each for each in layers if each.kind != "expert" and each.k % GROUP), None)
