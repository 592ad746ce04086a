"""How a kernel is launched: its tile of a row, its configuration, and the choice at run time.

The tuner files configurations in the TuningCache; `load` brings them into memory once per device,
and a launch looks one up by (operation, dtypes, pattern, K bucket, M bucket). Where nothing was
tuned a default serves that works for every shape.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache

import triton
import triton.language as tl

from slidesparse.candidate import Candidate, Param
from slidesparse.errors import CandidateError, SlideSparseError
from slidesparse.kernel_problem import KernelProblem, KernelResult, Op, bucket_k
from slidesparse.pattern import EXPANDED_K_ALIGNMENT, Pattern
from slidesparse.problem import DType, bucket_m

log = logging.getLogger(__name__)

BACKEND = "triton"
"""The name of these kernels' candidates in tables and cache files."""

BLOCK_GROUP = 8
"""A chunk holds a multiple of this many 2N blocks, so that it starts on 16 bytes."""

LIMITS = {8: (0, 128), 16: (0, 64, 96), 32: (0, 64)}
"""Registers per thread that are tried, by warps, where gate and up are scaled back: left alone the
compiler loads so far ahead that few programs fit, 206 instead of 167 us for [4096, 37888] INT32."""

MOST_CHUNKS = 64
"""A row in more chunks than this compiles for minutes; the block grows instead."""


@dataclass(frozen=True)
class Config:
    """How a kernel is launched.

    Args:
        block: columns that a program handles at a time, a power of two.
        warps: per program; 32 threads each.
        rows: rows per program, a power of two.
        per_sm: programs per streaming multiprocessor of a persistent grid, which shares out all
            rows; 0 for as many programs as `rows` asks for.
        stages: depth of the software pipeline over the rows of a program.
        overlap: whether the launch overlaps the end of the kernel before it (programmatic
            dependent launch, compute capability 9.0 and later).
        registers: most that a thread may have, so that more programs fit; 0 for no limit.
    """

    block: int
    warps: int
    rows: int = 1
    per_sm: int = 0
    stages: int = 1
    overlap: bool = False
    registers: int = 0

    @property
    def candidate(self) -> Candidate:
        """The form in which cache files and tables name it."""
        return Candidate(BACKEND, asdict(self))

    @classmethod
    def of(cls, candidate: Candidate) -> Config:
        """Read a configuration back.

        Raises:
            CandidateError: the candidate is not one of these kernels' or lacks a field.
        """
        params: Mapping[str, Param] = candidate.params
        names = {field.name for field in fields(cls)}
        if candidate.backend != BACKEND or set(params) != names:
            raise CandidateError(f"{candidate.label} is not a configuration of a Triton kernel")
        sizes = {name: int(params[name]) for name in names - {"overlap"}}
        for name in ("block", "warps", "rows"):
            if sizes[name] < 1 or sizes[name] & (sizes[name] - 1):
                raise CandidateError(f"{name} {sizes[name]} is not a power of two")
        return cls(**sizes, overlap=bool(params["overlap"]))


@dataclass(frozen=True)
class Tile:
    """How a row of K columns is cut into chunks: compile-time constants of a kernel.

    Args:
        k: columns of the row before lifting.
        k_out: K', columns of the row that is stored.
        windows: per 2N block; at most one means that nothing is lifted.
        block: columns that a chunk holds in registers, a power of two.
        span: columns that it covers: whole 2N blocks.
        made: pairs that it stores when lifted.
        made_block: that number as the next power of two.
        chunks: how many cover the row and its padding.
    """

    k: tl.constexpr
    k_out: tl.constexpr
    windows: tl.constexpr
    block: tl.constexpr
    span: tl.constexpr
    made: tl.constexpr
    made_block: tl.constexpr
    chunks: tl.constexpr


@lru_cache(maxsize=4096)
def tile_of(k: int, pattern: Pattern, block: int, align: int = EXPANDED_K_ALIGNMENT) -> Tile:
    """Cut a row; a block too small for the pattern or the row is raised to what works."""
    block = max(block, triton.next_power_of_2(-(-k // MOST_CHUNKS)))
    k_out = pattern.expanded_k(k, align)
    if pattern.windows <= 1:
        parts = (k, k_out, pattern.windows, block, block, 1, 1, -(-k_out // block))
    else:
        block = max(block, triton.next_power_of_2(BLOCK_GROUP * pattern.block))
        groups = block // pattern.block // BLOCK_GROUP * BLOCK_GROUP
        made = groups * pattern.windows * 2
        made_block = triton.next_power_of_2(made)
        # Alignment may ask for more columns than the blocks of the row fill.
        chunks = -(-k_out // (2 * made))
        span = groups * pattern.block
        parts = (k, k_out, pattern.windows, block, span, made, made_block, chunks)
    return Tile(*(tl.constexpr(part) for part in parts))


def default_config(op: Op, k: int, m: int) -> Config:
    """What runs where nothing was tuned: right everywhere, and near the best on an H200.

    Measured there for K = 3584 and 18944: few rows want many warps each, many rows want about
    eight values a thread at K = 3584 and forty at 18944.
    """
    if op is Op.DEQUANTIZE:
        return Config(block=1024, warps=4) if m <= 1024 else Config(block=512, warps=8, rows=4)
    if op is Op.DEQUANT_SILU_MUL_QUANTIZE and m > 256 and k > 8192:
        # Gate, up and their column scales are four streams: the more threads, the more in flight.
        return Config(block=4096, warps=32, registers=64)
    if m <= 256:
        return Config(block=4096 if k > 2048 else 1024, warps=32 if k > 8192 else 8)
    if k <= 1024:
        return Config(block=512, warps=2)
    if k <= 8192:
        return Config(block=2048, warps=4)
    return Config(block=4096, warps=16)


def candidates(problem: KernelProblem, full: bool = False) -> list[Config]:
    """The configurations that the tuner tries, the default first.

    Args:
        problem: to tune.
        full: vary more than blocks and warps, what did not pay on an H200: several rows per program
            and persistent grids (1.00 to 1.5 times the time of a program per row in 24 cells: the
            loop keeps the lift's addresses in registers) and pipelines of two stages (1.08 to 1.65
            times).
    """
    first = default_config(problem.op, problem.k, problem.m)
    width = max(triton.next_power_of_2(problem.k), 512)
    if problem.op is Op.DEQUANTIZE:
        space = [
            Config(block, warps, rows)
            for block in (256, 512, 1024, 2048)
            for warps in (4, 8)
            for rows in (1, 2, 4, 8)
            if rows <= problem.m and block <= width and 4 <= block * rows // (32 * warps) <= 32
        ]
    else:
        limits = LIMITS if problem.op is Op.DEQUANT_SILU_MUL_QUANTIZE else {}
        space = [
            Config(block, warps, registers=registers)
            for block in (512, 1024, 2048, 4096, 8192)
            for warps in (2, 4, 8, 16, 32)
            for registers in limits.get(warps, (0,))
            if block <= width and _fits(problem.k, block, warps)
        ]
    if full:
        space += [varied for config in space for varied in _variations(config, problem)]
    return list(dict.fromkeys([first, *space]))


def _variations(config: Config, problem: KernelProblem) -> Iterator[Config]:
    if problem.op is Op.DEQUANTIZE:
        return
    if problem.m > 256:
        yield replace(config, rows=2)
        yield replace(config, rows=4)
    for per_sm in (1, 2, 4, 8):
        yield replace(config, per_sm=per_sm)
        yield replace(config, per_sm=per_sm, stages=2)


def _fits(k: int, block: int, warps: int) -> bool:
    """Whether threads have something to do and a row fits their registers."""
    threads = 32 * warps
    per_thread = -(-k // threads)
    return 2 <= block // threads <= 32 and per_thread <= 80 and (warps > 2 or k <= 4096)


Key = tuple[Op, DType, DType, Pattern, bool, int]


class Table:
    """Tuned configurations in memory, by everything but M, then by M bucket."""

    def __init__(self, results: Iterable[KernelResult] = ()) -> None:
        """Take the winners of `results`; unreadable ones are left out."""
        self._configs: dict[Key, dict[int, Config]] = {}
        for result in results:
            if result.best is None:
                continue
            try:
                config = Config.of(result.best.candidate)
            except CandidateError:
                continue
            by_m = self._configs.setdefault(_key(result.problem), {})
            by_m[bucket_m(result.problem.m)] = config

    def find(self, problem: KernelProblem) -> Config | None:
        """The configuration of the problem's M bucket, else of the next above, else below."""
        by_m = self._configs.get(_key(problem))
        if by_m is None and problem.residual:
            by_m = self._configs.get(_key(replace(problem, residual=False)))
        if not by_m:
            return None
        wanted = bucket_m(problem.m)
        above = [bucket for bucket in by_m if bucket >= wanted]
        return by_m[min(above) if above else max(by_m)]


def _key(problem: KernelProblem) -> Key:
    return (
        problem.op,
        problem.source,
        problem.out,
        problem.pattern,
        problem.residual,
        bucket_k(problem.k),
    )


_tables: dict[int, Table] = {}
_loading = threading.Lock()


def load(device_index: int, table: Table | None = None) -> Table:
    """Use `table` for launches on a GPU from now on; without one, what its tuning cache holds.

    The first launch on a device does this by itself; call it to take newly tuned configurations.
    """
    with _loading:
        _tables[device_index] = table if table is not None else _read(device_index)
        chosen.cache_clear()
        return _tables[device_index]


def _read(device_index: int) -> Table:
    from slidesparse.cache import TuningCache
    from slidesparse.devices import Device, detect

    try:
        cache = TuningCache(None, detect(Device("cuda", device_index)))
        return Table(hit.result for hit in cache.kernel_entries().values())
    except (SlideSparseError, OSError) as error:
        # A launch must not fail for want of a cache.
        log.warning("tuned configurations are not used, defaults run: %s", error)
        return Table()


@lru_cache(maxsize=65536)
def chosen(
    device_index: int,
    op: Op,
    m_bucket: int,
    k: int,
    source: DType,
    out: DType,
    pattern: Pattern,
    residual: bool,
) -> Config:
    """The configuration of a launch: tuned or default. Reads files at most once per device."""
    if device_index < 0:
        return default_config(op, k, m_bucket)
    table = _tables.get(device_index)
    if table is None:
        table = load(device_index)
    problem = KernelProblem(op, m_bucket, k, source, out, pattern, residual)
    return table.find(problem) or default_config(op, k, m_bucket)
