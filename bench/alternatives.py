"""What else computes the same as a kernel of ours, each as a function of an operand set.

"vllm"            vLLM's kernels, where vLLM can be imported (slidesparse.bench.vllm_kernels)
"torch.compile"   Inductor's kernels of the reference (slidesparse.bench.compiled)
"two-step"        our own kernels one after the other, and the lift as a gather in torch

An alternative writes where our kernel does if it lets itself be told, so that it meets the same
cold memory; what lies between its steps is one buffer, which stays in the cache where it fits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from slidesparse.devices import Device
from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.kernels.case import Case, Operands, codes
from slidesparse.kernels.config import Config
from slidesparse.kernels.warm import launch_config
from slidesparse.pattern import DENSE
from slidesparse.tensors import TORCH_DTYPES

Outputs = tuple[torch.Tensor, ...]
Way = Callable[[torch.Tensor, torch.Tensor], None]

MOST_CODES = {torch.float8_e4m3fn: 1, torch.int8: 2}
"""An alternative that rounds to BF16 between its steps differs from ours by so many codes."""

MOST_SCALE_ERROR = 0.01
MOST_ERROR = 0.01
CHECKED_ROWS = 192


@dataclass(frozen=True)
class Alternative:
    """Another way to compute what a kernel computes.

    Args:
        name: the same for all ways of one kind.
        how: which way this is.
        run: launches it on operand set `index` in the current stream; returns what it made:
            (q, scale), (q, scale, new residual) or (dequantised,). None where it cannot run.
        reason: why it cannot.
    """

    name: str
    how: str
    run: Callable[[int], Outputs] | None
    reason: str = ""

    @property
    def label(self) -> str:
        """Name and way in one."""
        return f"{self.name} ({self.how})" if self.how else self.name


class Gather:
    """The lift in plain torch, as a second step behind a dense quantisation.

    Args:
        problem: whose pattern and K are lifted.
        device: of the rows.

    Attributes:
        ways: by name, functions of (q [M, K], out [M, K']), both one byte per value.
    """

    def __init__(self, problem: KernelProblem, device: torch.device) -> None:
        """Make the index; -1 in it stands for a padding zero."""
        self._pattern, self._k = problem.pattern, problem.k
        index = torch.tensor(problem.pattern.lift_index(problem.k), device=device)
        self._index = index.clamp_min(0)
        self._padding = (index < 0).nonzero().flatten()
        self.ways: dict[str, Way] = {"index_select": self.select}
        if self._padding.numel() == 0:
            self.ways["unfold"] = self.unfold

    def select(self, q: torch.Tensor, out: torch.Tensor) -> None:
        """Pick every column by its index, then clear the padding, if there is any."""
        into = out.view(torch.uint8)
        torch.index_select(q.view(torch.uint8), 1, self._index, out=into)
        if self._padding.numel():
            into.index_fill_(1, self._padding, 0)

    def unfold(self, q: torch.Tensor, out: torch.Tensor) -> None:
        """Copy overlapping windows of byte pairs; only where nothing is padded."""
        m, pattern = q.shape[0], self._pattern
        pairs = q.view(torch.int16).view(m, self._k // pattern.block, pattern.block // 2)
        windows = pairs.unfold(2, 2, 1)
        out.view(torch.int16).view(windows.shape).copy_(windows)


def two_steps(case: Case, device: Device) -> Iterator[Alternative]:
    """Our own kernels one after the other, and a gather in torch.

    Args:
        case: the operands; what is made goes to its outputs.
        device: whose configurations are taken.
    """
    problem = case.problem
    if problem.op in (Op.DEQUANT_RMSNORM_QUANTIZE, Op.DEQUANT_SILU_MUL_QUANTIZE):
        yield _dequantize_first(case, device)
    elif not problem.pattern.dense:
        yield from _gather_second(case, device)


def _gather_second(case: Case, device: Device) -> Iterator[Alternative]:
    problem, first = case.problem, case.sets[0]
    between = dense_buffer(case)
    gather = Gather(problem, first.x.device)
    dense = variant(
        case, replace(problem, pattern=DENSE), [replace(it, q=between) for it in case.sets]
    )
    config = launch_config(dense.problem, device)
    for name, way in gather.ways.items():
        run = _gathered(case, dense, config, between, way)
        yield Alternative("two-step", f"{problem.op}, then {name}", run)


def _gathered(
    case: Case, dense: Case, config: Config, between: torch.Tensor, way: Way
) -> Callable[[int], Outputs]:
    def run(index: int) -> Outputs:
        it = case.sets[index % len(case.sets)]
        dense.run(config, index)
        way(between, it.q)
        return it.outputs

    return run


def _dequantize_first(case: Case, device: Device) -> Alternative:
    problem = case.problem
    x = case.sets[0].x
    norm = problem.op is Op.DEQUANT_RMSNORM_QUANTIZE
    kept = case.activation
    # The norm's new residual is what the first step writes; in front of SiLU nobody wants it.
    between = None if norm else torch.empty(x.shape, dtype=TORCH_DTYPES[kept], device=x.device)
    steps: list[tuple[Operands, Operands]] = []
    for it in case.sets:
        middle = it.hidden if norm else between
        assert middle is not None
        scaled = Operands(it.x, it.residual, None, middle, None)
        steps.append((scaled, replace(it, x=middle, residual=None, hidden=None)))
    raw = KernelProblem(
        Op.DEQUANTIZE, problem.m, x.shape[1], problem.source, kept, residual=problem.residual
    )
    op = Op.RMSNORM_QUANTIZE if norm else Op.SILU_MUL_QUANTIZE
    after = KernelProblem(op, problem.m, problem.k, kept, problem.out, problem.pattern)
    first = variant(case, raw, [one for one, _ in steps])
    second = variant(case, after, [other for _, other in steps])
    configs = launch_config(raw, device), launch_config(after, device)

    def run(index: int) -> Outputs:
        first.run(configs[0], index)
        second.run(configs[1], index)
        return case.sets[index % len(case.sets)].outputs

    return Alternative("two-step", f"dequantize, then {op}", run)


def variant(case: Case, problem: KernelProblem, sets: list[Operands]) -> Case:
    """Another problem on the weights and scales of a case."""
    other = copy.copy(case)
    other.problem, other.sets = problem, sets
    return other


def dense_buffer(case: Case) -> torch.Tensor:
    """Where a dense quantisation goes that a gather reads: [M, K]."""
    problem = case.problem
    shape = (problem.m, problem.k)
    return torch.empty(shape, dtype=TORCH_DTYPES[problem.out], device=case.sets[0].x.device)


def checked_rows(m: int, device: torch.device) -> torch.Tensor:
    """Which rows of m are compared: all of a few, else spread over them with both ends."""
    count = min(m, CHECKED_ROWS)
    return torch.linspace(0, m - 1, count, dtype=torch.float64, device=device).round().long()


def differs(got: Outputs, want: Outputs, rows: torch.Tensor) -> str | None:
    """How an alternative's outputs differ from ours beyond rounding, or None.

    Args:
        got: of the alternative, all rows.
        want: ours, the checked rows only.
        rows: that are checked.
    """
    for new, old in zip(got, want, strict=True):
        here = new.reshape(-1) if old.dim() == 1 else new
        here = here[rows]
        if here.shape != old.shape or here.dtype is not old.dtype:
            return f"it gives {here.dtype} {tuple(here.shape)}, not {old.dtype} {tuple(old.shape)}"
        if old.dtype in MOST_CODES:
            steps = int((codes(here) - codes(old)).abs().max())
            if steps > MOST_CODES[old.dtype]:
                return f"values differ from ours by up to {steps} codes"
        elif old.dim() == 1:
            off = float(((here - old).abs() / old.abs().clamp_min(1e-30)).nan_to_num(1e9).max())
            if off > MOST_SCALE_ERROR:
                return f"scales differ from ours by up to {off:.1e} (relative)"
        else:
            off = float((here.double() - old.double()).norm() / old.double().norm())
            if not off <= MOST_ERROR:
                return f"the output differs from ours by {off:.1e} (relative)"
    return None
