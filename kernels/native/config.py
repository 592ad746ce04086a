"""A configuration of the native kernel, and the model of what fits a multiprocessor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields

from slidesparse.candidate import Param
from slidesparse.errors import CandidateError, KernelError
from slidesparse.kernels.native.weight import BLOCK_BYTES, SLAB

SHARED_LIMIT = 227 * 1024
"""Bytes of shared memory that a block can have on SM 9.0."""

SHARED_PER_BLOCK = 1024
"""Of each resident block the system keeps this much of a multiprocessor's 228 KiB for itself."""

SHARED_ALIGNMENT = 1024
REGISTERS = 65536
"""Of a multiprocessor, 32 bits each."""

MULTIPLY_REGISTERS = 27
"""What the compiler needs beside the accumulators to issue one sparse wgmma (nvcc 13.0)."""

LIVE_REGISTERS = 36
"""What a multiplying thread holds beside them across its loop."""

MOST_SPLIT_TOKENS = 64
"""A cluster that splits K keeps a second set of sums in shared memory: tiles are small."""

MOST_CLUSTER = 8
"""Blocks of a portable cluster."""

WGMMA_N = {
    "fp8_e4m3": frozenset(range(8, 257, 8)),
    "int8": frozenset({8, 24, *range(16, 65, 16), *range(80, 257, 16)}),
}
"""Token counts that one instruction takes. Source: the PTX ISA, wgmma.mma_async.sp."""


@dataclass(frozen=True)
class NativeConfig:
    """One way to cut and run a GEMM.

    Args:
        slabs: warpgroups that multiply; each has 64 output channels of the tile.
        tokens: of the tile, the N of the instruction.
        blocks: of 64 columns of K' in a stage; even.
        stages: between copying and multiplying.
        cluster_w: blocks of a cluster with the same tokens and neighbouring channels.
        cluster_x: blocks of a cluster with the same channels and neighbouring tokens.
        cluster_k: blocks of a cluster that compute a part of K' each of the same tile.
        resident: blocks that share a multiprocessor.
        box: tokens that are stored to memory at a time.
        boxes: buffers of that size per warpgroup.
        group: tiles of a band of the raster.
        along_x: whether bands are cut along the tokens (and walked along the channels).

    Raises:
        KernelError: a field is out of range, or the parts do not fit a multiprocessor.
    """

    slabs: int = 2
    tokens: int = 256
    blocks: int = 2
    stages: int = 4
    cluster_w: int = 1
    cluster_x: int = 1
    cluster_k: int = 1
    resident: int = 1
    box: int = 64
    boxes: int = 3
    group: int = 16
    along_x: bool = False

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        reason = self._misfit()
        if reason:
            raise KernelError(f"native configuration {self.label}: {reason}")

    @property
    def label(self) -> str:
        """A short name: tile, K of a stage, stages, then what differs from the plain form."""
        parts = [f"{SLAB * self.slabs}x{self.tokens}x{SLAB * self.blocks}", f"stages={self.stages}"]
        if self.cluster > 1:
            parts.append(f"cluster={self.cluster_w}x{self.cluster_x}x{self.cluster_k}")
        if self.resident > 1:
            parts.append(f"resident={self.resident}")
        parts.append(f"stores={self.boxes}x{self.box}")
        parts.append(f"raster={'x' if self.along_x else 'w'}{self.group}")
        return " ".join(parts)

    @property
    def cluster(self) -> int:
        """Blocks of a cluster."""
        return self.cluster_w * self.cluster_x * self.cluster_k

    @property
    def threads(self) -> int:
        """Of a block: the multiplying warpgroups and the copying one."""
        return 128 * (self.slabs + 1)

    def shared_bytes(self, scaled: bool = True) -> int:
        """Dynamic shared memory of a block; kernels/cuda/layout.cuh asserts the same."""
        stage = self.blocks // 2 * self.tokens * 128 + self.slabs * self.blocks * BLOCK_BYTES
        sums = self.slabs * SLAB * self.tokens * 4 if self.cluster_k > 1 else 0
        stores = self.slabs * self.box * self.boxes * 128 if scaled else 0
        scales = self.slabs * -(-self.tokens // 16) * 64
        barriers = 16 * self.stages + 16 * self.slabs
        return self.stages * stage + sums + stores + scales + barriers + SHARED_ALIGNMENT

    def params(self) -> dict[str, Param]:
        """As a candidate's parameters."""
        return dict(asdict(self))

    def numbers(self) -> list[int]:
        """The fields in order, as a torch operator takes them."""
        return [int(value) for value in astuple(self)]

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> NativeConfig:
        """The configuration of `numbers()`.

        Raises:
            KernelError: there are too many or too few, or the parts do not fit.
        """
        names = [field.name for field in fields(cls)]
        if len(numbers) != len(names):
            raise KernelError(f"{len(numbers)} numbers given; {', '.join(names)} are needed")
        values = dict(zip(names, numbers, strict=True))
        return cls(**{**values, "along_x": bool(values["along_x"])})  # type: ignore[arg-type]

    @classmethod
    def from_params(cls, params: Mapping[str, Param]) -> NativeConfig:
        """The configuration that a candidate's parameters describe.

        Raises:
            CandidateError: a parameter is unknown, missing, of the wrong type or does not fit.
        """
        types = {field.name: bool if field.name == "along_x" else int for field in fields(cls)}
        unknown, missing = params.keys() - types.keys(), types.keys() - params.keys()
        if unknown:
            raise CandidateError(f"a native candidate has no {', '.join(sorted(unknown))}")
        if missing:
            raise CandidateError(f"a native candidate needs {', '.join(sorted(missing))}")
        for name, kind in types.items():
            if type(params[name]) is not kind:
                raise CandidateError(
                    f"native {name}={params[name]!r} is not of type {kind.__name__}"
                )
        try:
            return cls(**params)  # type: ignore[arg-type]
        except KernelError as error:
            raise CandidateError(str(error)) from error

    def _misfit(self) -> str:
        """Why this cannot be compiled or launched, or ""."""
        for name, low, high in (
            ("slabs", 1, 4),
            ("tokens", 8, 256),
            ("blocks", 2, 8),
            ("stages", 2, 16),
            ("resident", 1, 4),
            ("boxes", 2, 8),
            ("cluster", 1, MOST_CLUSTER),
            ("group", 1, 2**20),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                return f"{name}={value} is not between {low} and {high}"
        if min(self.cluster_w, self.cluster_x, self.cluster_k) < 1:
            return "every side of a cluster is at least 1"
        return self._uneven() or self._too_large()

    def _uneven(self) -> str:
        """What does not divide, or ""."""
        if self.tokens % 8 or self.blocks % 2:
            return f"tokens={self.tokens} is no multiple of 8, or blocks={self.blocks} is odd"
        if self.cluster_k > 1 and self.cluster_w * self.cluster_x > 1:
            return "a cluster either shares operands or splits K"
        if self.tokens % (8 * self.cluster_k):
            return f"tokens={self.tokens} are not shared by {self.cluster_k} blocks in eights"
        if self.tokens % (8 * self.cluster_w) or self.blocks % self.cluster_x:
            return "a stage is not shared evenly by the cluster"
        part = self.tokens // self.cluster_k
        if self.box < 8 or part % self.box or (self.box % 16 and self.box > 8):
            return f"box={self.box} does not cut {part} tokens into eights or pairs of eights"
        return ""

    def _too_large(self) -> str:
        """Which resource is too small, or ""."""
        shared = SHARED_LIMIT
        if self.resident > 1:
            shared = (SHARED_LIMIT + SHARED_PER_BLOCK) // self.resident - SHARED_PER_BLOCK
        needed = self.shared_bytes()
        if needed > shared:
            return f"{needed} bytes of shared memory are more than {shared}"
        if self.cluster_k > 1 and self.tokens > MOST_SPLIT_TOKENS:
            return f"K is split for at most {MOST_SPLIT_TOKENS} tokens, not {self.tokens}"
        # Every thread starts with the same share; then one warpgroup gives most of its own away.
        even = REGISTERS // self.resident // self.threads // 8 * 8
        few = 32 if self.slabs == 3 else 40
        many = min(240, (even * self.threads // 128 - few) // self.slabs // 8 * 8)
        sums = self.tokens // 2
        if sums + MULTIPLY_REGISTERS > even or sums + LIVE_REGISTERS > many:
            return f"{sums} sums a thread do not fit {even} registers at the start, {many} later"
        return ""
