"""Operands of a search: random, realistic, pruned, and rotated so that the L2 cache is cold.

Values are normal, scaled to fill the range of the dtype: a GPU at its power limit runs faster on
zeros and on narrow data, so figures measured on those would flatter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from slidesparse.kernels import reference
from slidesparse.kernels.blas.descriptors import ROW_ALIGNMENT
from slidesparse.problem import DType, GemmProblem, Scales
from slidesparse.slide import lift, prune_magnitude, slide
from slidesparse.tensors import TOP, TORCH_DTYPES

COLD_FACTOR = 3
"""The rotated buffers are this many times larger than the L2 cache."""

MOST_SETS = 64
MEMORY_SHARE = 0.25
"""Rotation may take this share of the memory that is free."""

SMALLEST_SCALE = 1e-12
"""Of a whole tensor: one without values of note divides by it and stays zero."""

INT8_OUTPUT_RMS = 32.0
"""An INT8 output is scaled to this root mean square, so that next to nothing saturates."""


@dataclass
class Weight:
    """One random weight, pruned and quantised, shared by all M of a layer.

    Args:
        dense: [N, K] quantised, pruned, unexpanded.
        slid: [N, K'] quantised 2:4; the same tensor as `dense` for the dense pattern.
        scale: [N] float32 per output channel, or [1] for the whole tensor.
        packed: what backends made of it, by a key of their own; dropped with the weight.
    """

    dense: torch.Tensor
    slid: torch.Tensor
    scale: torch.Tensor
    packed: dict[str, Any] = field(default_factory=dict)


def quantise(x: torch.Tensor, dtype: DType, per_row: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise symmetrically by the largest magnitude.

    Args:
        x: [R, C] float.
        dtype: FP8 or INT8.
        per_row: one scale per row, or one for all.

    Returns:
        q: [R, C] of `dtype`; scale: [R] or [1] float32 with x ~ q * scale.
    """
    if per_row:
        return reference.quantize(x, TORCH_DTYPES[dtype])
    scale = (x.abs().amax().float() / TOP[dtype]).clamp_min(SMALLEST_SCALE).reshape(1)
    q, _ = reference.quantize(x, TORCH_DTYPES[dtype], static_scale=scale)
    return q, scale


def make_weight(problem: GemmProblem, device: torch.device, seed: int) -> Weight:
    """Draw a normal weight [N, K], prune it to the pattern by magnitude, quantise and slide it."""
    generator = torch.Generator(device=device).manual_seed(seed)
    w = torch.randn((problem.n, problem.k), generator=generator, device=device)
    w = prune_magnitude(w, problem.pattern)
    q, scale = quantise(w, problem.dtype, per_row=problem.scales is Scales.ROWCOL)
    return Weight(dense=q, slid=slide(q, problem.pattern), scale=scale)


class Operands:
    """The inputs and outputs of one problem, in as many copies as a cold L2 needs.

    Args:
        problem: that they are for.
        weight: of its layer, from `make_weight`.
        device: where they live.
        seed: of the activations.
        l2_bytes: size of the cache to outrun; 0 keeps one copy (the CPU).

    Attributes:
        m_run: rows allocated, m rounded up to ROW_ALIGNMENT; rows past m are zero.
        sets: number of copies; launch i uses copy i % sets.
        x_scale: [M] float32 per token, or [1]; w_scale: [N] or [1].
        bias: [N] in the output dtype, or None.
    """

    def __init__(
        self,
        problem: GemmProblem,
        weight: Weight,
        device: torch.device,
        seed: int,
        l2_bytes: int,
    ) -> None:
        """Draw the activations and size the rotation; copies are made when first asked for."""
        self.problem = problem
        self.weight = weight
        self.device = device
        self.m_run = -(-problem.m // ROW_ALIGNMENT) * ROW_ALIGNMENT
        generator = torch.Generator(device=device).manual_seed(seed)
        x = torch.randn((problem.m, problem.k), generator=generator, device=device)
        q, scale = quantise(x, problem.dtype, per_row=problem.scales is Scales.ROWCOL)
        del x
        self.x_scale, self.w_scale = self._scales(scale)
        self._x = self._pad_rows(q)
        self._lifted: torch.Tensor | None = None
        self.bias = self._draw_bias(generator)
        self._copies: dict[str, list[Any]] = {}
        self._scratch: list[torch.Tensor] = []
        self.sets = self._count_sets(l2_bytes)

    @property
    def alpha(self) -> float:
        """The product of both per-tensor scales, for backends that take one host factor."""
        if self.problem.scales is not Scales.TENSOR:
            return 1.0
        return float(self.x_scale) * float(self.w_scale)

    def x(self, index: int) -> torch.Tensor:
        """Activations [m_run, K] of set `index`."""
        return self.rotate("x", lambda: self._x)[index % self.sets]

    def x_lifted(self, index: int) -> torch.Tensor:
        """Lifted activations [m_run, K'] of set `index`."""
        return self.rotate("x_lifted", self._lift)[index % self.sets]

    def w(self, index: int) -> torch.Tensor:
        """Pruned, unexpanded weight [N, K] of set `index`."""
        return self.rotate("w", lambda: self.weight.dense)[index % self.sets]

    def out(self, index: int) -> torch.Tensor:
        """Output [m_run, N] of set `index`; rows past m belong to nobody."""
        dtype = TORCH_DTYPES[self.problem.out]
        shape = (self.m_run, self.problem.n)
        first = self._copies.get("out")
        if first is None:
            first = self._copies["out"] = [
                torch.empty(shape, dtype=dtype, device=self.device) for _ in range(self.sets)
            ]
        tensor: torch.Tensor = first[index % self.sets]
        return tensor

    def workspace(self, size: int) -> torch.Tensor:
        """Scratch memory of at least `size` bytes that all runners of this problem share."""
        for buffer in self._scratch:
            if buffer.numel() >= size:
                return buffer
        buffer = torch.empty(max(size, 1), dtype=torch.uint8, device=self.device)
        self._scratch.append(buffer)
        return buffer

    def rotate(self, name: str, make: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        """Copies of a tensor, one per set, kept under `name`: what a backend packed, say."""
        copies = self._copies.get(name)
        if copies is None:
            first = make()
            copies = [first] + [first.clone() for _ in range(self.sets - 1)]
            self._copies[name] = copies
        return copies

    def _lift(self) -> torch.Tensor:
        if self._lifted is None:
            self._lifted = lift(self._x, self.problem.pattern)
        return self._lifted

    def _pad_rows(self, x: torch.Tensor) -> torch.Tensor:
        missing = self.m_run - x.shape[0]
        if not missing:
            return x
        bits = torch.nn.functional.pad(x.view(torch.uint8), (0, 0, 0, missing))
        return bits.view(x.dtype)

    def _scales(self, x_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        problem, w_scale = self.problem, self.weight.scale
        if problem.scales is Scales.NONE:
            one = torch.ones(1, device=self.device)
            return one, one
        if problem.out is DType.INT8:
            w = self.weight.dense.float().square().mean().sqrt()
            one = torch.ones_like(x_scale)
            # Quantised normal activations have a root mean square near top / 4.5.
            rms = float(w) * (TOP[problem.dtype] / 4.5) * problem.k**0.5
            return one, torch.full_like(w_scale, INT8_OUTPUT_RMS / rms)
        return x_scale, w_scale

    def _draw_bias(self, generator: torch.Generator) -> torch.Tensor | None:
        if not self.problem.bias:
            return None
        bias = torch.randn(self.problem.n, generator=generator, device=self.device)
        return bias.to(TORCH_DTYPES[self.problem.out])

    def _count_sets(self, l2_bytes: int) -> int:
        if l2_bytes <= 0:
            return 1
        problem = self.problem
        operand = (problem.m + problem.n) * problem.k_run
        one_set = operand + problem.m * problem.n * problem.out.bytes
        wanted = max(2, -(-COLD_FACTOR * l2_bytes // one_set))
        # A sparse problem keeps the dense operands of its baseline beside its own.
        held = one_set + (problem.m + problem.n) * problem.k
        free, _ = torch.cuda.mem_get_info(self.device)
        return max(1, min(wanted, MOST_SETS, int(free * MEMORY_SHARE / held)))
