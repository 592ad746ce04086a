"""Roofline: how near measured GEMMs and linears come to what their GPU can do.

The model is that of Williams, Waterman and Patterson (CACM 52(4), 2009): the rate is at most the
peak of the arithmetic, and at most the intensity (FLOP per byte that must move) times the bandwidth
of the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from slidesparse.bench.kernels.record import KernelRecord
from slidesparse.bench.linear.record import LinearRecord
from slidesparse.bench.rows import ResultFile
from slidesparse.bench.search.record import SearchRecord
from slidesparse.bench.search.totals import choice_of
from slidesparse.devices import Fingerprint
from slidesparse.gpus import GpuSpec, gpu_of
from slidesparse.problem import DType, GemmProblem

GEMM, LINEAR = "GEMM only", "whole linears"

SPEC_NAMES = {DType.FP8: "fp8", DType.INT8: "int8"}
"""Keys of the GPU table's rates."""

_META_BITS = 2
"""Bits that the position of a non-zero takes in the 2:4 format (PTX ISA, mma.sp metadata)."""


class Place(NamedTuple):
    """One GEMM or linear.

    Args:
        name: layer and model.
        problem: sizes, dtype and pattern.
        sparse: whether a sparse algorithm ran.
        us: microseconds.
        intensity: FLOP of the dense product per byte that must move.
    """

    name: str
    problem: GemmProblem
    sparse: bool
    us: float
    intensity: float

    @property
    def tflops(self) -> float:
        """Rate of the dense product in TFLOP/s."""
        return self.problem.tflops(self.us)


class Machine(NamedTuple):
    """A GPU of the table as the files of one machine show it.

    Args:
        fingerprint: of the first of these files.
        spec: what its maker says.
        copy_gbs: bandwidth of a large copy that was measured on it, None without.
    """

    fingerprint: Fingerprint
    spec: GpuSpec
    copy_gbs: float | None

    def roof(self, place: Place) -> float | None:
        """The most TFLOP/s that a place can reach; None where the peak is not known."""
        peak = self.spec.tflops.get(SPEC_NAMES[place.problem.dtype])
        if peak is None:
            return None
        bound = float(place.problem.pattern.bound) if place.sparse else 1.0
        return min(peak * bound, place.intensity * self.spec.bandwidth_gbs / 1e3)

    def share(self, place: Place) -> float | None:
        """How much of its roof a place reaches; None where that is not known."""
        roof = self.roof(place)
        return None if roof is None else place.tflops / roof


def compulsory_bytes(problem: GemmProblem, sparse: bool, whole: bool) -> float:
    """Bytes that must move at least: input, weights and output, each once.

    Args:
        problem: of the GEMM.
        sparse: whether only the non-zeros of its pattern move, with 2 bits of position each.
        whole: whether the input is BF16, which a whole linear quantises itself.
    """
    x = problem.m * problem.k * (DType.BF16.bytes if whole else problem.dtype.bytes)
    kept = float(1 - problem.pattern.zeros) if sparse else 1.0
    weight = problem.dtype.bytes + (_META_BITS / 8 if sparse else 0)
    return x + problem.n * problem.k * kept * weight + problem.m * problem.n * problem.out.bytes


def places_of(file: ResultFile) -> Iterator[tuple[str, Place]]:
    """What was timed, and each GEMM or linear of a file; none for kinds that have none."""
    record = file.record
    if isinstance(record, SearchRecord):
        for item in record.layers:
            choice, problem = choice_of(record, item), item.problem
            if choice is None:
                continue
            best = choice.chosen if problem.pattern.dense else choice.sparse
            if best is not None:
                sparse = best.candidate.sparse
                yield GEMM, _place(file, item.layer.name, problem, sparse, best.median_us)
    elif isinstance(record, LinearRecord):
        for row in record.rows:
            if row.ours is not None:
                us = row.ours.median_us
                yield LINEAR, _place(file, row.layer.name, row.problem, row.sparse, us, True)


def _place(
    file: ResultFile, layer: str, problem: GemmProblem, sparse: bool, us: float, whole: bool = False
) -> Place:
    intensity = problem.flops / compulsory_bytes(problem, sparse, whole)
    return Place(f"{layer} of {file.record.model}", problem, sparse, us, intensity)


def machines_of(files: Iterable[ResultFile]) -> list[Machine]:
    """The GPUs of the files that are in the GPU table, with the copies that were measured."""
    copies: dict[str, float] = {}
    prints: dict[str, Fingerprint] = {}
    for file in files:
        if file.fingerprint is not None and gpu_of(file.fingerprint) is not None:
            prints.setdefault(file.fingerprint.name, file.fingerprint)
            if isinstance(file.record, KernelRecord):
                gbs = file.record.ceilings.copy_gbs
                copies[file.fingerprint.name] = max(gbs, copies.get(file.fingerprint.name, 0.0))
    found = []
    for name, fingerprint in prints.items():
        spec = gpu_of(fingerprint)
        if spec is not None:
            found.append(Machine(fingerprint, spec, copies.get(name)))
    return found
