"""SparseLinear on the GPU: layers that run a chosen way, and what they have to give in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import layer_plans as plans
import native_layers
import pytest
import torch
from layer_plans import INT_MM, REFERENCE, SCALED_MM
from torch import nn

from slidesparse.cache import TuningCache
from slidesparse.candidate import Candidate, ProblemResult
from slidesparse.devices import Device, detect
from slidesparse.kernels import quantize
from slidesparse.kernels.native.space import candidates
from slidesparse.layers import SparseLinear, forget, planning
from slidesparse.layers.planning import LayerShape
from slidesparse.pattern import Pattern
from slidesparse.problem import DType
from slidesparse.search.backend import Effort
from slidesparse.search.backends import load_backend
from slidesparse.slide import prune_magnitude
from slidesparse.tensors import DTYPES, TORCH_DTYPES

CUDA = native_layers.CUDA
SMS = 132
EXACT = 2e-6
"""Relative error of INT8 layers to float32: sums are exact, scaling and adding round thrice."""

Tuned = Callable[[Iterable[ProblemResult]], TuningCache]


@contextmanager
def tuned_at(gpu: Device, folder: Path) -> Iterator[Tuned]:
    """Layers are planned from what the yielded function is given, at first from nothing.

    What is bundled for this GPU has no part: tests would change with it.
    """
    count = 0

    def use(results: Iterable[ProblemResult]) -> TuningCache:
        nonlocal count
        count += 1
        cache = TuningCache(folder / str(count), detect(gpu), bundled=folder / "nothing")
        cache.put_many(results)
        patch.setattr(planning, "TuningCache", lambda root, fingerprint: cache)
        forget()
        return cache

    with pytest.MonkeyPatch.context() as patch:
        use([])
        yield use
    forget()


def linear_of(
    shape: LayerShape, seed: int, dtype: torch.dtype | None = None, device: str = CUDA
) -> nn.Linear:
    """A pruned linear of a layer's sizes, channels of uneven strength."""
    generator = torch.Generator(device).manual_seed(seed)
    w = torch.randn(shape.n, shape.k, generator=generator, device=device)
    w *= 0.5 + torch.rand(shape.n, 1, generator=generator, device=device)
    linear = nn.Linear(
        *(shape.k, shape.n, shape.bias), device=device, dtype=dtype or TORCH_DTYPES[shape.out]
    )
    with torch.no_grad():
        linear.weight.copy_(prune_magnitude(w, shape.pattern))
        if shape.bias:
            linear.bias.copy_(10 * torch.randn(shape.n, generator=generator, device=device))
    return linear


def layer_of(shape: LayerShape, seed: int, memory_format: str = "fastest") -> SparseLinear:
    """A layer, planned from what was tuned."""
    linear = linear_of(shape, seed)
    return SparseLinear.from_linear(linear, shape.pattern, shape.dtype, memory_format=memory_format)


def running(
    tuned: Tuned, shape: LayerShape, seed: int, steps: Iterable[tuple[int, Candidate]]
) -> SparseLinear:
    """A layer that runs these candidates up to these numbers of tokens, and no others."""
    wanted = list(steps)
    tuned(plans.race(shape, m, {candidate: 1.0}) for m, candidate in wanted)
    layer = layer_of(shape, seed)
    assert plans.steps_of(layer.plan) == wanted
    return layer


def tokens(m: int, shape: LayerShape, seed: int) -> torch.Tensor:
    """Inputs [M, K] on the GPU, rows of different magnitude."""
    generator = torch.Generator(CUDA).manual_seed(seed + m)
    x = torch.randn(m, shape.k, generator=generator, device=CUDA)
    x *= 0.1 + 3 * torch.rand(m, 1, generator=generator, device=CUDA)
    return x.to(TORCH_DTYPES[shape.out])


@lru_cache
def found(backend: str, shape: LayerShape, m: int) -> list[Candidate]:
    """Candidates of a library for `m` tokens, in the order in which a quick search tries them."""
    problem = plans.problem_of(shape, m)
    with torch.cuda.device(CUDA):
        return load_backend(backend).candidates(problem, Effort.QUICK)


@lru_cache
def native(shape: LayerShape, m: int) -> Candidate:
    """The native configuration that the model of the GPU ranks first for `m` tokens."""
    k = shape.pattern.expanded_k(shape.k)
    config = candidates(m, shape.n, k, shape.dtype, 1, SMS)[0]
    return Candidate("native", config.params(), True, {"config": config.label})


def candidate_of(way: str, shape: LayerShape, m: int = 16) -> Candidate:
    """A candidate by the name of its way, for a layer."""
    if way == "torch":
        return INT_MM if shape.dtype is DType.INT8 else SCALED_MM
    if way == "reference":
        return REFERENCE
    return native(shape, m) if way == "native" else found(way, shape, m)[0]


def truth_of(layer: SparseLinear, x: torch.Tensor) -> native_layers.Layer:
    """The same product from the layer's state, for comparing with its float64 truth."""
    state = layer.state_dict()
    weight, w_scale = state["weight"], state["weight_scale"].view(-1)
    q, x_scale = quantize(x.contiguous(), weight.dtype)
    return native_layers.Layer(q, weight, x_scale, w_scale, layer.bias, layer.pattern, layer.dtype)


def assert_right(got: torch.Tensor, layer: SparseLinear, x: torch.Tensor) -> None:
    """An output is that of the layer's quantised operands, as exact as its dtypes allow."""
    assert got.is_contiguous()
    assert got.dtype is layer.dtype
    assert got.shape == (x.shape[0], layer.out_features)
    if not x.shape[0]:
        return
    want = truth_of(layer, x)
    if layer.quantised is DType.INT8 and layer.dtype is torch.float32:
        relative = native_layers.relative_error(got, want.truth)
        assert relative <= EXACT, f"relative error {relative:.2e}, more than {EXACT:.0e}"
    else:
        native_layers.assert_right(got, want)


def check(layer: SparseLinear, shape: LayerShape, seed: int, sizes: Iterable[int]) -> None:
    """Run numbers of tokens one after another; the first wrong one is named."""
    for m in sizes:
        x = tokens(m, shape, seed)
        try:
            assert_right(layer(x), layer, x)
        except Exception as error:  # A library's own, too: without M it says little.
            where = f"M={m} {layer} {layer.describe(max(m, 1))}"
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error


def same_weight(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether quantised weights are equal, signs of zeros apart, on whatever devices."""
    return first.dtype is second.dtype and torch.equal(first.float().cpu(), second.float().cpu())


def shape(
    n: int,
    k: int,
    pattern: str = "6:8",
    quantised: torch.dtype = torch.float8_e4m3fn,
    out: torch.dtype = torch.bfloat16,
    bias: bool = False,
) -> LayerShape:
    """A layer to plan, by torch's dtypes."""
    return LayerShape(n, k, Pattern.parse(pattern), DTYPES[quantised], DTYPES[out], bias)
