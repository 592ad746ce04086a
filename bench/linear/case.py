"""The weights and activations of a linear layer, in as many copies as a cold L2 cache needs.

Each pattern prunes one random weight by magnitude; ours and torch's are made of the same result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from slidesparse.bench.alternatives import checked_rows
from slidesparse.bench.linear.torch_ways import TorchWeight, dynamic
from slidesparse.kernels import reference
from slidesparse.kernels.case import COLD_FACTOR, MOST_SETS
from slidesparse.layers import SparseLinear
from slidesparse.models import LinearLayer
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.search.reference import Check
from slidesparse.slide import prune_magnitude
from slidesparse.tensors import TORCH_DTYPES

WEIGHT_BYTES = 2.6
"""Per weight and set of one pattern, about: torch's, and ours in the forms that its plan reads."""

BUILD_BYTES = 20
"""Per weight, while it is drawn, pruned and quantised in float32."""


@dataclass
class Weights:
    """One layer in one dtype and pattern.

    Args:
        pattern: that the weight was pruned to.
        theirs: torch's, one per set.
        ours: one per set; none where `error` says why.
        error: why ours could not be made, or "".
    """

    pattern: Pattern
    theirs: list[TorchWeight]
    ours: list[SparseLinear] = field(default_factory=list)
    error: str = ""


def make_weights(
    layer: LinearLayer,
    dtype: DType,
    pattern: Pattern,
    sets: int,
    device: torch.device,
    seed: int,
) -> Weights:
    """Draw the weight [N, K] of a layer, prune it and make both sides of it.

    Args:
        layer: for its sizes and whether it has a bias.
        dtype: FP8 or INT8.
        pattern: to prune to.
        sets: copies in memory of their own.
        device: where they live.
        seed: of the weight before pruning, so that all patterns prune the same one.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    values = torch.randn(
        (layer.n, layer.k), generator=generator, device=device, dtype=torch.bfloat16
    )
    # A bias as large as an output without one would be.
    bias = layer.k**0.5 * values[:, 0] if layer.bias else None
    w = prune_magnitude(values, pattern)
    first = TorchWeight(*reference.quantize(w, TORCH_DTYPES[dtype]), bias)
    made = Weights(pattern, [first, *(first.copy() for _ in range(sets - 1))])
    try:
        # Made anew for each set: what a layer packs cannot be told from what it shares.
        made.ours = [
            SparseLinear.from_linear(_linear(w, bias), pattern, dtype) for _ in range(sets)
        ]
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # Whatever it is, it costs this pattern and no other.
        made.error = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return made


def _linear(w: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Linear:
    n, k = w.shape
    linear = torch.nn.Linear(k, n, bias=bias is not None, device="meta", dtype=w.dtype)
    linear.weight = torch.nn.Parameter(w, requires_grad=False)
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias, requires_grad=False)
    return linear


class LinearCase:
    """A layer at one M: its activations, and what a right result of them is.

    Args:
        layer: with its sizes.
        tokens: of the batch.
        dtype: FP8 or INT8.
        device: where the activations live.
        seed: of their values.
        sets: copies at most; as many are made as outrun the cache.
        l2_bytes: size of the cache; 0 keeps one set.

    Attributes:
        m: rows of x; fewer than `tokens` for a routed expert.
        xs: [M, K] bfloat16, one per set.
    """

    def __init__(
        self,
        layer: LinearLayer,
        tokens: int,
        dtype: DType,
        device: torch.device,
        seed: int,
        sets: int,
        l2_bytes: int,
    ) -> None:
        """Draw the activations."""
        self.layer, self.tokens, self.dtype = layer, tokens, dtype
        self.m = layer.rows(tokens)
        self.rows = checked_rows(self.m, device)
        wanted = count_sets(layer.n * layer.k + 2 * self.m * (layer.n + layer.k), l2_bytes)
        generator = torch.Generator(device=device).manual_seed(seed)
        shape = (self.m, layer.k)
        x = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
        x = without_ties(x)
        self.xs = [dynamic(x), *(dynamic(x.clone()) for _ in range(min(wanted, sets) - 1))]

    def problem(self, pattern: Pattern) -> GemmProblem:
        """The layer's product for one pattern, with its scales and bias."""
        layer, out, scales = self.layer, DType.BF16, Scales.ROWCOL
        return GemmProblem(
            self.m, layer.n, layer.k, self.dtype, out, scales, pattern, bias=layer.bias
        )

    def reference(self, weights: Weights) -> torch.Tensor:
        """The checked rows of the result in float64, from quantised x and weight."""
        it = weights.theirs[0]
        q, scale = reference.quantize(self.xs[0][self.rows], it.q.dtype)
        made = q.double() @ it.q.double().t()
        made *= scale.double()[:, None] * it.scale.double()
        return made if it.bias is None else made + it.bias.double()

    def check(self, y: torch.Tensor, weights: Weights) -> Check:
        """How far the checked rows of a result [M, N] are from the reference.

        Raises:
            ValueError: it has another shape or dtype.
        """
        shape = (self.m, self.layer.n)
        if y.shape != shape or y.dtype is not torch.bfloat16:
            raise ValueError(f"it gives {y.dtype} {tuple(y.shape)}, not bfloat16 {shape}")
        want = self.reference(weights)
        off = y[self.rows].double() - want
        size = float(want.norm())
        rms = size / want.numel() ** 0.5
        return Check(float(off.norm()) / size, float(off.abs().amax()) / rms)


def without_ties(x: torch.Tensor) -> torch.Tensor:
    """Rows of which no quantised value lies between two, up to FP8's subnormals.

    Compiled division is off by an ulp, and then the two ways round such a value apart.

    In bfloat16 ties are common: with a largest magnitude a of an even mantissa, 3a / 2^i is one in
    FP8, and a / 2 is 63.5 in INT8. One such flip in a row of 2048 moves M=1 by up to 1.3e-2, and
    a right way would be taken for a wrong one.

    Args:
        x: [M, K] bfloat16.
    """
    largest = x.abs().amax(dim=1, keepdim=True)
    odd = (largest.view(torch.int16) | 1).view(torch.bfloat16)
    x = torch.where(x.abs() == largest, odd.copysign(x), x)
    return torch.where(x.abs() == odd / 2, 0, x)


def count_sets(size: int, l2_bytes: int) -> int:
    """Operand sets of `size` bytes that outrun the L2 cache: at least two; one without a cache."""
    if l2_bytes <= 0:
        return 1
    return min(MOST_SETS, max(2, -(-COLD_FACTOR * l2_bytes // size)))
