"""inspect: what the linears of a checkpoint hold, and what this GPU is known to make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from slidesparse.accuracy.speed import forms_of
from slidesparse.cache import TuningCache
from slidesparse.checkpoint.config import Provenance, provenance
from slidesparse.checkpoint.formats import COMPRESSED, WEIGHT
from slidesparse.checkpoint.layout import FUSED, Layout, Linear, read_layout
from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.pattern import DENSE, Pattern
from slidesparse.plan import choose
from slidesparse.problem import DType, GemmProblem
from slidesparse.slide import detect_pattern

DTYPES = {"F8_E4M3": DType.FP8, "I8": DType.INT8}
"""Stored dtypes of linears that run as W8A8."""


@dataclass(frozen=True)
class Speedup:
    """What the tuning cache says of a linear, or of the fused one that it is part of.

    Args:
        gain: dense time over the time of what is planned; 1 where dense runs.
        m: tokens that it was measured at, which may be another number than was asked for.
        n: output channels of the GEMM: of the fused linear where serving engines fuse.
        source: "cached" for a search on this machine, "bundled" for one shipped with the package.
    """

    gain: float
    m: int
    n: int
    source: str


@dataclass(frozen=True)
class LinearFacts:
    """What one linear holds.

    Args:
        name: of the module.
        shape: of the weight, (N, K).
        dtype: as it is stored, "F8_E4M3".
        form: "plain", "w8a8", "bitmask" or "w8a8 bitmask".
        zeros: the fraction of weights that is zero.
        pattern: the sparsest of the family that the weight satisfies.
        speedup: None where nothing was measured.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    form: str
    zeros: float
    pattern: Pattern
    speedup: Speedup | None = None


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint holds.

    Args:
        path: of it.
        provenance: what it says of its conversion, None if it is none of ours.
        linears: those that recipes apply to, in the order of the model.
        bytes: of all tensors.
    """

    path: Path
    provenance: Provenance | None
    linears: tuple[LinearFacts, ...]
    bytes: int

    @property
    def weights(self) -> int:
        """Weights of all listed linears."""
        return sum(it.shape[0] * it.shape[1] for it in self.linears)

    @property
    def zeros(self) -> float:
        """The fraction of them that is zero."""
        count = sum(it.zeros * it.shape[0] * it.shape[1] for it in self.linears)
        return count / self.weights if self.weights else 0.0


def inspect(
    path: Path | str,
    m: int,
    cache: TuningCache | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> CheckpointFacts:
    """Read every linear of a checkpoint, one at a time.

    Args:
        path: directory.
        m: tokens that speedups are wanted for.
        cache: of this machine's tuning results.
        device: that counts zeros.
        progress: called after every linear with how many are done, how many there are, its name.

    Raises:
        CheckpointError: the checkpoint is damaged or of a form that is not read.
    """
    reader = CheckpointReader(path)
    layout = read_layout(reader)
    linears = [linear for linear in layout.linears if linear.chosen]
    facts = []
    for index, linear in enumerate(linears):
        facts.append(_look(reader, linear, torch.device(device)))
        if progress is not None:
            progress(index + 1, len(linears), linear.name)
    if cache is not None:
        facts = list(_with_speedups(reader, facts, m, cache))
    return CheckpointFacts(
        reader.path, provenance(reader.config), tuple(facts), _bytes(layout, reader)
    )


def _look(reader: CheckpointReader, linear: Linear, device: torch.device) -> LinearFacts:
    w = reader.quantised_or_plain(linear.name).to(device)
    bits = w.view(torch.uint8) & 0x7F if w.dtype is torch.float8_e4m3fn else w
    zeros = 1.0 - int(bits.count_nonzero()) / max(1, bits.numel())
    stored = reader.stored(linear.name + (COMPRESSED if linear.form.packed else WEIGHT))
    return LinearFacts(
        linear.name, linear.shape, stored.dtype, linear.form.value, zeros, detect_pattern(w)
    )


def _with_speedups(
    reader: CheckpointReader, facts: list[LinearFacts], m: int, cache: TuningCache
) -> Iterator[LinearFacts]:
    by_name = {it.name: it for it in facts}
    for it in facts:
        group = [by_name[name] for name in fused_with(it.name) if name in by_name]
        yield replace(it, speedup=_speedup(reader, group, m, cache))


def fused_with(name: str) -> tuple[str, ...]:
    """The linears that serving engines join with one, itself among them."""
    parent, dot, last = name.rpartition(".")
    for names in FUSED:
        if last in names:
            return tuple(parent + dot + each for each in names)
    return (name,)


def _speedup(
    reader: CheckpointReader, group: list[LinearFacts], m: int, cache: TuningCache
) -> Speedup | None:
    """What was measured for a fused linear; None for parts of different patterns or dtypes."""
    first = group[0]
    dtype = DTYPES.get(first.dtype)
    same = {(it.dtype, it.pattern, it.shape[1]) for it in group}
    if dtype is None or len(same) != 1 or first.pattern == DENSE:
        return None
    n, k = sum(it.shape[0] for it in group), first.shape[1]
    bias = first.name + ".bias" in reader
    for problem in _problems(n, k, m, dtype, first.pattern, bias):
        hit = cache.nearest(problem)
        choice = choose(hit.result) if hit is not None else None
        if hit is not None and choice is not None and choice.gain is not None:
            gain = choice.gain if choice.verdict == "sparse" else 1.0
            return Speedup(gain, hit.result.problem.m, n, hit.provenance.value)
    return None


def _problems(
    n: int, k: int, m: int, dtype: DType, pattern: Pattern, bias: bool
) -> Iterable[GemmProblem]:
    """The problem as it runs, then with what hardly changes its time left out."""
    for form in forms_of(dtype):
        for with_bias in dict.fromkeys((bias, False)):
            yield replace(form, m=m, n=n, k=k, pattern=pattern, bias=with_bias)


def _bytes(layout: Layout, reader: CheckpointReader) -> int:
    return sum(reader.stored(name).bytes for unit in layout.units for name in unit.tensors)
