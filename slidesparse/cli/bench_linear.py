"""slidesparse bench linear: whole linear layers against torch's, on the same pruned weights."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slidesparse.cli.endings import finish, write_each
from slidesparse.cli.options import DTypeList, PatternList, TokenCounts, check_outputs
from slidesparse.cli.target import open_cache, refuse_fp8, require_triton, target_options
from slidesparse.errors import UsageError
from slidesparse.pattern import Pattern, parse_patterns
from slidesparse.problem import DType

if TYPE_CHECKING:
    from slidesparse.bench.fault import DeviceLost
    from slidesparse.bench.linear.record import LinearRecord, LinearRow, SkippedLinear, Ways
    from slidesparse.bench.linear.run import LinearBench
    from slidesparse.devices import Device
    from slidesparse.models import LinearLayer, ModelSpec

MODEL, CPU_MODEL = "qwen2.5-7b", "llama3.2-1b"
GPU_PATTERNS, CPU_PATTERNS = "dense,2:4,4:6,6:8,8:10", "dense,6:8"
GPU_M = (1, 16, 64, 256, 1024, 4096, 16384, 65536)
CPU_M = (4, 32)
TIMED = "per-token quantisation, GEMM, scales and bias together, BF16 in and out, on both sides"


@dataclass
class Found:
    """What was measured so far."""

    rows: list[LinearRow] = field(default_factory=list)
    ways: list[Ways] = field(default_factory=list)
    skipped: list[SkippedLinear] = field(default_factory=list)


@click.command()
@click.option(
    "--model",
    help="Preset, directory with config.json, or Hugging Face id.  "
    f"[default: {MODEL}; on the CPU {CPU_MODEL}]",
)
@click.option("--layers", help="Comma-separated names of its linears.  [default: all]")
@click.option(
    "--dtype",
    "dtypes",
    type=DTypeList(),
    default="fp8,int8",
    show_default=True,
    help="Operands: fp8, int8 or both.",
)
@click.option(
    "--patterns",
    type=PatternList(),
    help=f"Weight patterns.  [default: {GPU_PATTERNS}; on the CPU {CPU_PATTERNS}]",
)
@click.option(
    "--m",
    "tokens",
    type=TokenCounts(),
    help=f"Token counts.  [default: {','.join(map(str, GPU_M))}; "
    f"on the CPU {','.join(map(str, CPU_M))}]",
)
@click.option("--tp", type=click.IntRange(min=1), default=1, help="Tensor-parallel size.")
@target_options
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write a result file.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write a table as CSV.")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), help="Of the random operands; drawn unless told."
)
@click.option(
    "--autotune",
    type=TokenCounts(),
    help="Token counts that max-autotune of torch.compile chooses torch's GEMM for.  "
    "[default: 4096]",
)
@click.option("--no-autotune", is_flag=True, help="torch.compile in its default mode only.")
@click.option("--no-compile", is_flag=True, help="Run torch's linear eagerly, not compiled.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no tables; errors only.")
def linear(
    model: str | None,
    layers: str | None,
    dtypes: tuple[DType, ...],
    patterns: tuple[Pattern, ...] | None,
    tokens: tuple[int, ...] | None,
    tp: int,
    device: str,
    cache_dir: Path | None,
    json_path: Path | None,
    csv_path: Path | None,
    seed: int | None,
    autotune: tuple[int, ...] | None,
    no_autotune: bool,
    no_compile: bool,
    quiet: bool,
) -> None:
    """Time a model's linear layers, quantisation and all, against torch's on the same weights."""
    from slidesparse.models import load_model

    # Whatever can be wrong with the input is found before torch is imported.
    check_outputs(json_path, csv_path)
    if autotune and (no_autotune or no_compile):
        raise UsageError("--autotune excludes --no-autotune and --no-compile")
    spec = load_model(model or MODEL)
    chosen = choose_layers(spec, tp, layers)
    selected, cache = open_cache(device, cache_dir)
    for dtype in dtypes:
        refuse_fp8(dtype, selected, cache.fingerprint.sm, "these linears")
    require_triton()
    if model is None and not selected.is_gpu:
        spec = load_model(CPU_MODEL)
        chosen = choose_layers(spec, tp, layers)
    if cache_dir is not None:
        # Layers plan themselves, from the results of this folder.
        os.environ["SLIDESPARSE_CACHE_DIR"] = str(cache_dir)

    from slidesparse.bench.fault import DeviceLost
    from slidesparse.bench.linear.ahead import compile_ahead
    from slidesparse.bench.linear.record import LinearRecord, write_csv, write_json
    from slidesparse.bench.linear.run import AUTOTUNE, LinearBench
    from slidesparse.cli.console import make_console

    counts = tokens or (GPU_M if selected.is_gpu else CPU_M)
    every = patterns or parse_patterns(GPU_PATTERNS if selected.is_gpu else CPU_PATTERNS)
    hints = () if no_autotune or no_compile else autotune or AUTOTUNE
    drawn = random.SystemRandom().randrange(2**31) if seed is None else seed
    console = make_console()
    if not quiet:
        line = heading(spec.name, selected, cache.fingerprint.name)
        console.print(line, soft_wrap=True, markup=False)
    start, found = time.monotonic(), Found()
    bench = LinearBench(selected, drawn, not no_compile, hints)
    end: KeyboardInterrupt | DeviceLost | None = None
    try:
        if selected.is_gpu:
            compile_ahead(selected, chosen, dtypes, every, counts, cache)
        _run(bench, chosen, dtypes, every, counts, found, quiet)
    except (KeyboardInterrupt, DeviceLost) as error:
        end = error
    record = LinearRecord(
        model=spec.name,
        tp=tp,
        fingerprint=cache.fingerprint,
        settings={
            "layers": [layer.name for layer in chosen],
            "dtypes": [str(dtype) for dtype in dtypes],
            "patterns": [str(pattern) for pattern in every],
            "m": list(counts),
            "seed": drawn,
            "device": str(selected),
            "compile": not no_compile and selected.is_gpu,
            "autotune": list(hints),
            "timed": TIMED,
        },
        seconds=time.monotonic() - start,
        compile_seconds=bench.compile_seconds,
        interrupted=end is not None,
        rows=tuple(found.rows),
        ways=tuple(found.ways),
        skipped=tuple(found.skipped),
    ).stamped()
    try:
        if not quiet:
            from slidesparse.cli.linear_table import print_linears

            print_linears(record, console)
    finally:
        unwritten = write_each(record, (write_json, json_path), (write_csv, csv_path))
    finish(end, unwritten, lambda: _failure(record))


def choose_layers(spec: ModelSpec, tp: int, names: str | None) -> tuple[LinearLayer, ...]:
    """The linears of a model that were asked for.

    Raises:
        UsageError: the model has no linear of a name.
    """
    every = spec.linears(tp)
    if names is None:
        return every
    known = {layer.name: layer for layer in every}
    wanted = dict.fromkeys(name.strip() for name in names.split(","))
    for name in wanted:
        if name not in known:
            raise UsageError(f"{spec.name} has no linear {name!r}; it has {', '.join(known)}")
    return tuple(known[name] for name in wanted)


def heading(model: str, device: Device, name: str) -> str:
    """The first line: what is timed where; on a CPU it says what that means."""
    if device.is_gpu:
        return f"Timing the linears of {model} on {name}"
    return (
        f"No GPU in use: timing {model} on the CPU ({name}) with small defaults: reference "
        "implementations and eager torch. These figures say nothing about a GPU."
    )


def _run(
    bench: LinearBench,
    layers: Sequence[LinearLayer],
    dtypes: Sequence[DType],
    patterns: Sequence[Pattern],
    tokens: Sequence[int],
    found: Found,
    quiet: bool,
) -> None:
    """Measure everything, keeping in `found` what there is, at any end."""
    from slidesparse.bench.linear.run import Measured
    from slidesparse.cli.console import make_console
    from slidesparse.cli.progress import ProgressLine

    steps = len(layers) * len(dtypes) * len(tokens)
    progress = ProgressLine(steps, make_console(stderr=True))
    with nullcontext() if quiet else progress:
        for item in bench.run(layers, dtypes, patterns, tokens):
            if isinstance(item, Measured):
                found.rows += item.rows
                found.ways.append(item.ways)
                it, layer = item.rows[0].problem, item.rows[0].layer
            else:
                found.skipped.append(item)
                it, layer = item.problem, item.layer
            if not quiet:
                progress.advance()
                progress.say(f"{layer.name} {it.on_dense()}")


def _failure(record: LinearRecord) -> str | None:
    """What is wrong, or why nothing was measured; None where all is well."""
    wrong = [row for row in record.rows if row.error is not None]
    if wrong:
        first = wrong[0]
        return (
            f"{len(wrong)} of {len(record.rows)} linears failed, first {first.layer.name} "
            f"{first.problem}: {first.error}"
        )
    if not record.rows:
        skipped = record.skipped[0]
        return f"nothing was measured; {skipped.layer.name} {skipped.problem}: {skipped.reason}"
    return None
