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
from slidesparse.errors import CandidateError, KernelError, SlideSparseError
from slidesparse.kernel_problem import KernelProblem, KernelResult, Op, bucket_k
from slidesparse.pattern import EXPANDED_K_ALIGNMENT, Pattern
from slidesparse.problem import DType, bucket_m

log = logging.getLogger(__name__)

BACKEND = "triton"
"""The name of these kernels' candidates in tables and cache files."""

BLOCK_GROUP = 8
"""A chunk holds a multiple of this many 2N blocks, so that it starts on 16 bytes."""

REGISTER_LIMITS = {8: (0, 128), 16: (0, 64, 96), 32: (0, 64)}
"""Registers per thread that are tried, by warps, where gate and up are scaled back: left alone the
compiler loads so far ahead that few programs fit; a cap saved a fifth of the time on an H200."""

POWERS = ("block", "warps", "rows")
RANGES = {
    "block": (1, 32768),
    "warps": (1, 32),
    "rows": (1, 64),
    "per_sm": (0, 32),
    "stages": (1, 8),
    "registers": (0, 255),
}
"""What a configuration from a file may hold; anything else would fail in the launch."""

MOST_BLOCK = 2**17
"""Columns that a program can be made to hold; Triton refuses tensors of 2^20 elements."""

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
        overlap, sizes = params["overlap"], {}
        for name, (least, most) in RANGES.items():
            value = params[name]
            if type(value) is not int or not least <= value <= most:
                raise CandidateError(f"{name} {value!r} is not a whole number, {least} to {most}")
            if name in POWERS and value & (value - 1):
                raise CandidateError(f"{name} {value} is not a power of two")
            sizes[name] = value
        if type(overlap) is not bool:
            raise CandidateError(f"overlap {overlap!r} is neither true nor false")
        return cls(**sizes, overlap=overlap)


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
    """Cut a row; a block too small for the pattern or the row is raised to what works.

    Raises:
        KernelError: a row or its 2N blocks are too long for any block.
    """
    k_out = pattern.expanded_k(k, align)
    if pattern.windows > 1:
        block = max(block, triton.next_power_of_2(BLOCK_GROUP * pattern.block))
    while True:
        parts = _parts(k, k_out, pattern, block)
        if parts[-1] <= MOST_CHUNKS:
            break
        block *= 2
    if max(parts[3], parts[6]) > MOST_BLOCK:
        raise KernelError(
            f"K={k} with pattern {pattern} needs {max(parts[3], parts[6])} columns at a time and "
            f"a program holds {MOST_BLOCK}; use a pattern of shorter blocks"
        )
    return Tile(*(tl.constexpr(part) for part in parts))


def _parts(k: int, k_out: int, pattern: Pattern, block: int) -> tuple[int, ...]:
    """The fields of a Tile."""
    if pattern.windows <= 1:
        return (k, k_out, pattern.windows, block, block, 1, 1, -(-k_out // block))
    groups = block // pattern.block // BLOCK_GROUP * BLOCK_GROUP
    made = groups * pattern.windows * 2
    # Alignment may ask for more columns than the blocks of the row fill.
    chunks = -(-k_out // (2 * made))
    span = groups * pattern.block
    return (k, k_out, pattern.windows, block, span, made, triton.next_power_of_2(made), chunks)


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
        full: vary what did not pay in any of 24 cells on an H200, too: several rows per program and
            persistent grids (a loop keeps the lift's addresses in registers), and pipelines.
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
        limits = REGISTER_LIMITS if problem.op is Op.DEQUANT_SILU_MUL_QUANTIZE else {}
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
        """Take the winners of `results`; one that cannot be launched is warned of and left out."""
        self._configs: dict[Key, list[tuple[int, bool, Config]]] = {}
        for result in results:
            if result.best is None:
                continue
            problem = result.problem
            try:
                config = Config.of(result.best.candidate)
            except CandidateError as error:
                log.warning("tuned configuration of %s is not used: %s", problem.key, error)
                continue
            entry = (bucket_m(problem.m), problem.passes_int32, config)
            self._configs.setdefault(_key(problem), []).append(entry)

    def find(self, problem: KernelProblem) -> Config | None:
        """The configuration of the problem's M bucket, else of the next above, else below.

        Tensors past 2^31 elements run other code: what was tuned for the same code goes first. A
        norm with a residual and one without lend each other theirs.
        """
        other = replace(problem, residual=not problem.residual) if problem.can_add else problem
        tuned = self._configs.get(_key(problem)) or self._configs.get(_key(other))
        if not tuned:
            return None
        alike = [entry for entry in tuned if entry[1] == problem.passes_int32] or tuned
        by_m = {bucket: config for bucket, _, config in alike}
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
_generation = 0
_loading = threading.Lock()


def load(device_index: int, table: Table | None = None) -> Table:
    """Use `table` for launches on a GPU from now on; without one, what its tuning cache holds.

    The first launch on a device does this by itself; call it to take newly tuned configurations.
    """
    with _loading:
        return _use(device_index, table if table is not None else _read(device_index))


def forget() -> None:
    """Drop what `load` and launches brought into memory; the next launch reads the cache again."""
    global _generation
    with _loading:
        _tables.clear()
        _generation += 1
        _chosen.cache_clear()


def _use(device_index: int, table: Table) -> Table:
    global _generation
    _tables[device_index] = table
    # What a launch in another thread is about to remember belongs to the generation before.
    _generation += 1
    _chosen.cache_clear()
    return table


def _loaded(device_index: int) -> Table:
    """The table of a device, read by the first who asks."""
    with _loading:
        table = _tables.get(device_index)
        return table if table is not None else _use(device_index, _read(device_index))


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
    if device_index >= 0 and device_index not in _tables:
        _loaded(device_index)
    return _chosen(_generation, device_index, op, m_bucket, k, source, out, pattern, residual)


@lru_cache(maxsize=65536)
def _chosen(
    generation: int,
    device_index: int,
    op: Op,
    m_bucket: int,
    k: int,
    source: DType,
    out: DType,
    pattern: Pattern,
    residual: bool,
) -> Config:
    table = _tables.get(device_index, Table())
    problem = KernelProblem(op, m_bucket, k, source, out, pattern, residual)
    return table.find(problem) or default_config(op, k, m_bucket)
