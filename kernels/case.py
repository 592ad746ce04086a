"""Operands of one kernel problem, for the tuner and the benchmark: random, verified, cold.

Rows are normal with a magnitude of their own, so that no two have the same scale. Every set of
operands and outputs is a copy of its own, enough of them to outrun the L2 cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.kernels import reference
from slidesparse.kernels.config import Config
from slidesparse.kernels.dequant import launch_dequantize
from slidesparse.kernels.launch import Scaled
from slidesparse.kernels.quant import launch_quantize
from slidesparse.kernels.rmsnorm_quant import launch_rmsnorm_quantize
from slidesparse.kernels.silu_mul_quant import launch_silu_mul_quantize
from slidesparse.problem import DType
from slidesparse.tensors import TORCH_DTYPES

EPS = 1e-6
GIVEN_SCALE = 0.01
COLD_FACTOR = 3
"""The rotated buffers are this many times larger than the L2 cache."""

MOST_SETS = 64
MEMORY_SHARE = 0.4
"""Rotation may take this share of the memory that is free."""

CHECKED_ROWS = 64
"""Rows that a check compares from the start, the middle and the end each."""

MOST_STEPS = 1
MOST_DIFFERENT = 0.01
MOST_SCALE_ERROR = 1e-5
"""Rounding may differ by one code in one value of a hundred, scales by 1e-5, where the order of a
sum or the last place of an exponential decides; `quantize` has to agree in every bit."""

NAN_CODE = 1 << 16
"""Far from every number, so that a NaN in place of 448 is no neighbour."""


@dataclass(frozen=True)
class Operands:
    """One set of inputs and outputs.

    Args:
        x: [M, K] or [M, 2K] of the problem's source dtype.
        residual: [M, K], or None.
        hidden: [M, K], where the new residual goes, or None.
        q: [M, K'] quantised, or [M, N] of dequantize.
        scale: [M] float32, or None for dequantize.
    """

    x: torch.Tensor
    residual: torch.Tensor | None
    hidden: torch.Tensor | None
    q: torch.Tensor
    scale: torch.Tensor | None

    @property
    def outputs(self) -> tuple[torch.Tensor, ...]:
        """What the kernel writes."""
        return tuple(t for t in (self.q, self.scale, self.hidden) if t is not None)

    def copy(self) -> Operands:
        """The same operands in other memory."""
        parts = (self.x, self.residual, self.hidden, self.q, self.scale)
        return Operands(*(None if part is None else part.clone() for part in parts))  # type: ignore[arg-type]


class Case:
    """The operands of a problem and the way to run it in any configuration.

    Args:
        problem: to run.
        device: where the operands live.
        seed: of the random values.
        l2_bytes: size of the cache to outrun; 0 keeps one set.

    Attributes:
        sets: the operands, launch i uses set i % len(sets).
        weight: [K] of the norm; scaled: what undoes the GEMM's scaling.
    """

    def __init__(
        self, problem: KernelProblem, device: torch.device, seed: int, l2_bytes: int
    ) -> None:
        """Draw the operands."""
        self.problem = problem
        self._device = device
        self._generator = torch.Generator(device=device).manual_seed(seed)
        k, width = problem.k, problem.width
        self.activation = _activation(problem)
        self.weight = self._normal(1, k, self.activation).reshape(k)
        self.scaled = Scaled(row=self._positive(problem.m), column=self._positive(width), bias=None)
        self._bias = self._normal(1, width, self.activation).reshape(width)
        self._given = torch.full((1,), GIVEN_SCALE, device=device)
        first = self._draw(width)
        count = self._count_sets(first, l2_bytes)
        self.sets = [first, *(first.copy() for _ in range(count - 1))]

    @property
    def bytes(self) -> int:
        """Bytes that one launch has to move, each read and written once.

        The weight of the norm and the scales that are read stay in the L2 cache and do not count.
        """
        first = self.sets[0]
        moved = [first.x, *first.outputs]
        if first.residual is not None:
            moved.append(first.residual)
        return sum(tensor.numel() * tensor.element_size() for tensor in moved)

    def run(
        self,
        config: Config,
        index: int,
        wide: bool | None = None,
        bias: bool = False,
        static: bool = False,
    ) -> None:
        """Launch the kernel on set `index` in the current stream.

        Args:
            config: to launch it with.
            index: of the set, modulo their number.
            wide: whether row offsets have 64 bits; None for what the size asks for.
            bias: whether a bias is added to what is scaled back.
            static: whether rows are quantised by GIVEN_SCALE instead of their own.
        """
        problem, it = self.problem, self.sets[index % len(self.sets)]
        pattern = problem.pattern
        scaling = replace(self.scaled, bias=self._bias) if bias else self.scaled
        if problem.op is Op.DEQUANTIZE:
            launch_dequantize(it.x, scaling, it.residual, it.q, config, wide)
            return
        assert it.scale is not None
        scaled = scaling if problem.op.dequantizes else None
        given = self._given if static else None
        if problem.op is Op.QUANTIZE:
            launch_quantize(it.x, it.q, it.scale, given, pattern, config, wide)
        elif problem.op in (Op.SILU_MUL_QUANTIZE, Op.DEQUANT_SILU_MUL_QUANTIZE):
            launch_silu_mul_quantize(it.x, it.q, it.scale, pattern, config, scaled, wide, given)
        else:
            launch_rmsnorm_quantize(
                it.x,
                self.weight,
                EPS,
                it.q,
                it.scale,
                pattern,
                config,
                it.residual,
                it.hidden,
                scaled,
                wide,
                given,
            )

    def wrong(self, config: Config) -> str | None:
        """Run once onto poisoned outputs; what is wrong with them, or None."""
        it = self.sets[0]
        for tensor in it.outputs:
            tensor.view(torch.uint8).fill_(0xA5)
        self.run(config, 0)
        rows = self._rows()
        want = self.reference_outputs(rows)
        return compare(tuple(tensor[rows] for tensor in it.outputs), want, self._exact)

    @property
    def _exact(self) -> bool:
        return self.problem.op is Op.QUANTIZE

    def _rows(self) -> torch.Tensor:
        m, part = self.problem.m, CHECKED_ROWS
        every = torch.arange(m, device=self._device)
        if m <= 3 * part:
            return every
        start = (m - part) // 2
        return torch.cat((every[:part], every[start : start + part], every[m - part :]))

    def reference_outputs(self, rows: torch.Tensor | slice) -> tuple[torch.Tensor, ...]:
        """What the reference makes of these rows of set 0, in the order of `Operands.outputs`."""
        problem, it = self.problem, self.sets[0]
        x, out, pattern = it.x[rows], TORCH_DTYPES[problem.out], problem.pattern
        residual = None if it.residual is None else it.residual[rows]
        row, column = self.scaled.row[rows], self.scaled.column
        match problem.op:
            case Op.QUANTIZE:
                return reference.quantize(x, out, pattern)
            case Op.SILU_MUL_QUANTIZE:
                return reference.silu_mul_quantize(x, out, pattern)
            case Op.DEQUANT_SILU_MUL_QUANTIZE:
                return reference.dequant_silu_mul_quantize(x, row, column, out, pattern)
            case Op.RMSNORM_QUANTIZE:
                made = reference.rmsnorm_quantize(x, self.weight, EPS, out, pattern, residual)
                return made if residual is not None else made[:2]
            case Op.DEQUANT_RMSNORM_QUANTIZE:
                return reference.dequant_rmsnorm_quantize(
                    x,
                    row,
                    column,
                    self.weight,
                    EPS,
                    out,
                    pattern,
                    residual=residual,
                    hidden_dtype=TORCH_DTYPES[self.activation],
                )
            case Op.DEQUANTIZE:
                return (reference.dequantize(x, row, column, out, residual=residual),)

    def _draw(self, width: int) -> Operands:
        problem = self.problem
        m, k, kept = problem.m, problem.k, TORCH_DTYPES[self.activation]
        x = self._normal(m, width, problem.source)
        residual = self._normal(m, k, self.activation) if problem.residual else None
        keeps = problem.residual or problem.op is Op.DEQUANT_RMSNORM_QUANTIZE
        hidden = None
        if keeps and problem.op is not Op.DEQUANTIZE:
            hidden = torch.empty((m, k), dtype=kept, device=self._device)
        k_out = problem.pattern.expanded_k(k)
        q = torch.empty((m, k_out), dtype=TORCH_DTYPES[problem.out], device=self._device)
        scale = None
        if problem.op.quantizes:
            scale = torch.empty(m, dtype=torch.float32, device=self._device)
        return Operands(x, residual, hidden, q, scale)

    def _normal(self, rows: int, columns: int, dtype: DType) -> torch.Tensor:
        """Normal values, row by row of another magnitude; whole numbers for accumulators."""
        out = torch.empty((rows, columns), dtype=TORCH_DTYPES[dtype], device=self._device)
        step = max(1, 2**26 // columns)
        for start in range(0, rows, step):
            part = out[start : start + step]
            values = torch.randn(part.shape, generator=self._generator, device=self._device)
            values *= 0.5 + torch.rand(
                (part.shape[0], 1), generator=self._generator, device=self._device
            )
            part.copy_(values * 2**17 if dtype is DType.INT32 else values)
        return out

    def _positive(self, size: int) -> torch.Tensor:
        """Scales between 0.005 and 0.015, as quantised weights and activations have."""
        drawn = torch.rand(size, generator=self._generator, device=self._device)
        return 0.005 + 0.01 * drawn

    def _count_sets(self, first: Operands, l2_bytes: int) -> int:
        if l2_bytes <= 0:
            return 1
        parts = (first.x, first.residual, *first.outputs)
        size = sum(p.numel() * p.element_size() for p in parts if p is not None)
        free, _ = torch.cuda.mem_get_info(self._device)
        wanted = max(2, -(-COLD_FACTOR * l2_bytes // size))
        return max(1, min(wanted, MOST_SETS, 1 + int(free * MEMORY_SHARE / size)))


def compare(
    got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...], exact: bool
) -> str | None:
    """What is wrong with the outputs of a kernel, or None.

    Args:
        got: (q, scale) or (q, scale, hidden) or (dequantised,).
        want: the same from the reference.
        exact: whether every bit has to agree.
    """
    if len(want) == 1:
        return _values_differ("the output", got[0], want[0])
    steps = (codes(got[0]) - codes(want[0])).abs()
    most, share = int(steps.max()), float((steps > 0).float().mean())
    off = float(((got[1] - want[1]).abs() / want[1].abs().clamp_min(1e-30)).nan_to_num(1e9).max())
    if exact:
        # Bits, not codes: minus zero is not zero.
        share = float((got[0].view(torch.uint8) != want[0].view(torch.uint8)).float().mean())
        if share > 0 or off > 0:
            return f"{share:.2%} of the values differ from the reference, scales by up to {off:.1e}"
        return None
    if most > MOST_STEPS or share > MOST_DIFFERENT:
        return f"{share:.2%} of the values differ, by up to {most} codes"
    if off > MOST_SCALE_ERROR:
        return f"the scales differ by up to {off:.1e} (relative)"
    if len(want) > 2:
        return _values_differ("the new residual", got[2], want[2])
    return None


def codes(q: torch.Tensor) -> torch.Tensor:
    """FP8 or INT8 values as integers of the same order, one apart where values are neighbours.

    Both zeros are 0; NaN, which has no place in the order, is NAN_CODE whatever its sign.
    """
    if q.dtype is torch.int8:
        return q.int()
    bits = q.view(torch.uint8).int()
    ordered = torch.where(bits >= 128, 128 - bits, bits)
    return torch.where((bits & 0x7F) == reference.FP8_NAN, NAN_CODE, ordered)


def _values_differ(name: str, got: torch.Tensor, want: torch.Tensor) -> str | None:
    """Compare values that are rounded once: the last place may differ in one of a hundred."""
    different = got != want
    share = float(different.float().mean())
    if share > MOST_DIFFERENT:
        return f"{share:.2%} of {name} differ from the reference"
    worst = (got.double() - want.double()).abs() / want.double().abs().clamp_min(1e-3)
    error, limit = float(worst.nan_to_num(1e9).max()), 2 * torch.finfo(got.dtype).eps
    return f"{name} is off by {error:.1e} (relative)" if error > limit else None


def _activation(problem: KernelProblem) -> DType:
    """The dtype of residual, norm weight and hidden state: BF16 behind an accumulator."""
    return DType.BF16 if problem.op.dequantizes else problem.source
