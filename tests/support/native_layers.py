"""Random layers for the native GEMM on the GPU: operands, float64 truth, runs onto poison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import kernel_checks as checks
import pytest
import torch

from slidesparse.cache_store import ENVIRONMENT
from slidesparse.devices import Device, detect
from slidesparse.errors import SlideSparseError
from slidesparse.kernels import reference
from slidesparse.kernels.native import NativeConfig, NativeGemm, PackedWeight, pack
from slidesparse.kernels.native.gemm import Launch, unfit
from slidesparse.kernels.native.program import SM, missing
from slidesparse.pattern import Pattern
from slidesparse.problem import GemmProblem, Scales
from slidesparse.search.reference import (
    FP8_STEP_ERROR,
    FP8_STEP_K,
    MARGIN,
    ROUNDING,
    SIGMAS,
    limits_for,
)
from slidesparse.slide import lift, prune_magnitude, slide
from slidesparse.tensors import DTYPES

CUDA = "cuda:0"
FP8, INT8 = checks.QUANTISED
BF16, FP16, INT32 = torch.bfloat16, torch.float16, torch.int32
TWO_FOUR = Pattern.parse("2:4")
FORMS = [(FP8, BF16), (FP8, FP16), (INT8, BF16), (INT8, FP16), (INT8, INT32)]
BIAS = 10.0
"""A bias has this magnitude, about that of the sums of a small layer."""

SHOWN = 10
"""Of the configurations that failed."""

HAND = {
    "plain": NativeConfig(),
    "bands along the tokens": NativeConfig(along_x=True, group=3),
    "two stages": NativeConfig(stages=2, group=2**20),
    "three slabs": NativeConfig(slabs=3, tokens=192, box=32, boxes=2, group=1),
    "four slabs": NativeConfig(slabs=4, tokens=128, box=64, boxes=2, group=2),
    "two resident": NativeConfig(
        slabs=1, tokens=128, stages=3, resident=2, box=32, boxes=2, group=5
    ),
    "four resident": NativeConfig(slabs=1, tokens=16, stages=3, resident=4, box=16, boxes=2),
    "8 tokens": NativeConfig(slabs=1, tokens=8, blocks=4, box=8, boxes=2),
    "24 tokens": NativeConfig(slabs=2, tokens=24, stages=8, box=8, boxes=3),
    "small boxes": NativeConfig(tokens=64, stages=6, box=8, boxes=8, along_x=True, group=1),
    "long stages": NativeConfig(tokens=64, blocks=8, stages=2, box=16, boxes=2),
    "cluster 2x1": NativeConfig(cluster_w=2, group=4),
    "cluster 1x2": NativeConfig(tokens=128, cluster_x=2, stages=6, along_x=True, group=2),
    "cluster 2x2": NativeConfig(tokens=128, cluster_w=2, cluster_x=2, stages=6, group=1),
    "cluster 4x1": NativeConfig(slabs=1, tokens=192, cluster_w=4),
    "cluster 2x4": NativeConfig(
        slabs=1, tokens=64, blocks=4, cluster_w=2, cluster_x=4, box=32, boxes=2
    ),
    "K in 2": NativeConfig(tokens=64, cluster_k=2, stages=8, box=32, boxes=2, group=1),
    "K in 4": NativeConfig(
        slabs=1, tokens=32, blocks=4, cluster_k=4, stages=5, box=8, boxes=2, group=1
    ),
    "six blocks": NativeConfig(slabs=1, tokens=64, blocks=6, stages=3, box=32, boxes=2),
    "cluster 3x1": NativeConfig(tokens=96, cluster_w=3, stages=5, box=32, boxes=4, group=1),
    "three resident": NativeConfig(slabs=1, tokens=32, stages=4, resident=3, box=16, boxes=5),
    "K in 3": NativeConfig(tokens=48, cluster_k=3, stages=6, box=16, boxes=2, group=1),
    "K in 8": NativeConfig(slabs=4, tokens=64, cluster_k=8, box=8, boxes=2, group=4),
}
"""One of each kind: what the space offers, and what it does not but NativeConfig takes."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One random GEMM on the GPU.

    Args:
        x: [M, K] quantised, not lifted.
        w: [N, K] quantised and pruned, not slid.
        x_scale: [M] float32.
        w_scale: [N] float32.
        bias: [N] of `out`, or None.
        pattern: of `w`.
        out: dtype of the output.
    """

    x: torch.Tensor
    w: torch.Tensor
    x_scale: torch.Tensor
    w_scale: torch.Tensor
    bias: torch.Tensor | None
    pattern: Pattern
    out: torch.dtype

    @property
    def problem(self) -> GemmProblem:
        """What a search would call it."""
        n, k = self.w.shape
        return GemmProblem(
            *(self.x.shape[0], n, k, DTYPES[self.x.dtype], DTYPES[self.out]),
            Scales.NONE if self.out is INT32 else Scales.ROWCOL,
            self.pattern,
            self.bias is not None,
        )

    @property
    def scales(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Of the weight and the tokens, as the GEMM takes them."""
        return (None, None) if self.out is INT32 else (self.w_scale, self.x_scale)

    @cached_property
    def lifted(self) -> torch.Tensor:
        """[M, K'], by the plain gather."""
        return lift(self.x, self.pattern)

    @cached_property
    def weight(self) -> PackedWeight:
        """Slid and packed."""
        return pack(slide(self.w, self.pattern))

    @cached_property
    def truth(self) -> torch.Tensor:
        """The product of the unexpanded operands [M, N] in float64, scaled; exact for INT8."""
        product = self.x.double() @ self.w.double().T
        if self.out is INT32:
            return product
        product = product * self.x_scale.double()[:, None] * self.w_scale.double()
        return product if self.bias is None else product + self.bias.double()


def draw(
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    out: torch.dtype,
    seed: int,
    pattern: Pattern = TWO_FOUR,
    bias: bool = False,
) -> Layer:
    """A layer of normal values, quantised row by row. With 2:4, K' is K where 32 divides it."""
    x, x_scale = reference.quantize(checks.draw(m, k, torch.float32, seed, CUDA), dtype)
    dense = checks.draw(n, k, torch.float32, seed + 1, CUDA)
    w, w_scale = reference.quantize(prune_magnitude(dense, pattern), dtype)
    added = None
    if bias:
        added = (BIAS * checks.draw(1, n, torch.float32, seed + 2, CUDA)).reshape(n).to(out)
    return Layer(x, w, x_scale, w_scale, added, pattern, out)


def bind(layer: Layer, config: NativeConfig, out: torch.Tensor) -> Launch:
    """The layer in a configuration, onto `out`."""
    gemm = NativeGemm(layer.weight, config, layer.out)
    return gemm.bind(layer.lifted, out, *layer.scales, layer.bias)


def here() -> int:
    """The current stream as the driver knows it."""
    return torch.cuda.current_stream().cuda_stream


def run(layer: Layer, config: NativeConfig, x: torch.Tensor | None = None) -> torch.Tensor:
    """Run onto poison; nothing beside the output may change.

    Args:
        layer: to run.
        config: how.
        x: in place of the layer's lifted tokens.
    """
    shape = (layer.x.shape[0], layer.w.shape[0])
    poisoned = checks.Poisoned(shape, layer.out, CUDA)
    gemm = NativeGemm(layer.weight, config, layer.out)
    lifted = layer.lifted if x is None else x
    gemm.bind(lifted, poisoned.view, *layer.scales, layer.bias)(here())
    assert poisoned.surroundings_are_intact(), "wrote beside the output"
    return poisoned.view


def assert_right(got: torch.Tensor, layer: Layer) -> None:
    """INT32 is exact, INT8 is rounded once, FP8 as far off as its sums and its rounding allow."""
    truth = layer.truth
    assert got.shape == truth.shape
    assert got.dtype is layer.out
    if layer.out is INT32:
        _none_wrong(got == truth.to(INT32), "sums differ")
    elif layer.x.dtype is INT8:
        checks.assert_rounded_once(got, truth.to(got.dtype))
    else:
        _assert_close_sums(got, layer)


def relative_error(got: torch.Tensor, truth: torch.Tensor) -> float:
    """|got - truth| / |truth|, Frobenius norms in float64."""
    return float((got.double() - truth).norm() / truth.norm())


def _assert_close_sums(got: torch.Tensor, layer: Layer) -> None:
    """The search's limit for all of it, and one for every element; NaN is under neither."""
    problem, truth = layer.problem, layer.truth
    limit = limits_for(problem).error
    relative = relative_error(got, truth)
    assert relative <= limit, f"relative error {relative:.2e}, more than {limit:.2e}"
    # An element's error grows with itself and with the sums that its row and column usually have.
    rows = layer.x.double().norm(dim=1) * layer.x_scale.double()
    columns = layer.w.double().norm(dim=1) * layer.w_scale.double()
    usual = rows[:, None] * columns * (SIGMAS / math.sqrt(problem.k))
    share = ROUNDING[problem.out] + problem.k_run / FP8_STEP_K * FP8_STEP_ERROR
    bound = MARGIN * share * torch.maximum(truth.abs(), usual)
    _none_wrong((got.double() - truth).abs() <= bound, "elements are too far off")


def _none_wrong(right: torch.Tensor, what: str) -> None:
    wrong = (~right).nonzero()
    assert not len(wrong), f"{len(wrong)} of {right.numel()} {what}, first {wrong[0].tolist()}"


def check_configs(layer: Layer, configs: Iterable[NativeConfig]) -> int:
    """Run each configuration that fits K', and say which are wrong; how many fitted."""
    failed: list[str] = []
    count = 0
    for config in configs:
        if unfit(config, layer.weight.k):
            continue
        count += 1
        try:
            assert_right(run(layer, config), layer)
        except (AssertionError, SlideSparseError) as error:
            reason = str(error).partition("\n")[0]
            failed.append(f"{config}: {type(error).__name__}: {reason}")
    assert not failed, "\n".join(
        [f"{layer.problem}: {len(failed)} of {count} configurations", *failed[:SHOWN]]
    )
    return count


def on_hopper(gpu: Device, folder: Path) -> Iterator[None]:
    """What a fixture yields from: skip where the kernel cannot run, keep compiled code in `folder`.

    Args:
        gpu: to run on.
        folder: in place of the user's cache.
    """
    fingerprint = detect(gpu)
    if fingerprint.sm != SM:
        pytest.skip(f"the native kernel is for SM {SM}, this is {fingerprint.name}")
    if reason := missing():
        pytest.skip(f"the native kernel cannot be compiled: {reason}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, str(folder))
        yield
