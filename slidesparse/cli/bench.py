"""slidesparse bench: how fast things are, against what the machine can do and what others do."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slidesparse.cli.bench_agreement import agreement
from slidesparse.cli.bench_attention import attention
from slidesparse.cli.bench_linear import linear
from slidesparse.cli.bench_sweep import decode, prefill
from slidesparse.cli.endings import finish, write_each
from slidesparse.cli.options import DTypeName, OpList, PatternList, TokenCounts, check_outputs
from slidesparse.cli.target import open_cache, refuse_fp8, require_triton, target_options
from slidesparse.errors import UsageError
from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.pattern import Pattern
from slidesparse.problem import DType

if TYPE_CHECKING:
    from slidesparse.bench.fault import DeviceLost
    from slidesparse.bench.kernels.record import Ceilings, KernelRecord, Row, Skipped
    from slidesparse.bench.kernels.run import KernelBench
    from slidesparse.devices import Device

MODEL = "qwen2.5-7b"
PATTERNS = "dense,6:8"
GPU_M = (1, 16, 64, 256, 1024, 4096, 16384, 65536)
CPU_M = (4, 16)


@click.group()
def command() -> None:
    """Measure kernels, linears and whole models against ceilings, alternatives and stock."""


for each in (linear, attention, prefill, decode, agreement):
    command.add_command(each)


@command.command()
@click.option(
    "--model",
    default=MODEL,
    show_default=True,
    help="Preset, directory with config.json, or Hugging Face id.",
)
@click.option(
    "--dtype", type=DTypeName(), default="fp8", show_default=True, help="Operands: fp8 or int8."
)
@click.option(
    "--patterns",
    type=PatternList(),
    default=PATTERNS,
    show_default=True,
    help="Weight patterns.",
)
@click.option(
    "--m",
    "tokens",
    type=TokenCounts(),
    help=f"Token counts. [{','.join(map(str, GPU_M))}; on the CPU {','.join(map(str, CPU_M))}]",
)
@click.option("--ops", type=OpList(), help="Comma-separated kernels. [all]")
@click.option("--tp", type=click.IntRange(min=1), default=1, help="Tensor-parallel size.")
@target_options
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write a result file.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write a table as CSV.")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), help="Of the random operands; drawn unless told."
)
@click.option("--no-compile", is_flag=True, help="Leave out torch.compile.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no tables; errors only.")
def kernels(
    model: str,
    dtype: DType,
    patterns: tuple[Pattern, ...],
    tokens: tuple[int, ...] | None,
    ops: tuple[Op, ...] | None,
    tp: int,
    device: str,
    cache_dir: Path | None,
    json_path: Path | None,
    csv_path: Path | None,
    seed: int | None,
    no_compile: bool,
    quiet: bool,
) -> None:
    """Time the kernels around a model's GEMMs against a copy, vLLM and torch.compile."""
    from slidesparse.models import load_model

    # Whatever can be wrong with the input is found before torch is imported.
    check_outputs(json_path, csv_path)
    spec = load_model(model)
    spec.linears(tp)

    selected, cache = open_cache(device, cache_dir)
    refuse_fp8(dtype, selected, cache.fingerprint.sm)
    require_triton()

    from slidesparse.bench.fault import DeviceLost
    from slidesparse.bench.kernels.record import KernelRecord, write_csv, write_json
    from slidesparse.bench.kernels.run import KernelBench, bench_problems
    from slidesparse.cli.console import make_console
    from slidesparse.kernels.config import Table

    counts = tokens or (GPU_M if selected.is_gpu else CPU_M)
    problems = bench_problems(spec, tp, dtype, patterns, counts, ops or tuple(Op))
    if not problems:
        raise UsageError(f"{spec.name} has no such kernel: {', '.join(map(str, ops or ()))}")
    table = Table(hit.result for hit in cache.kernel_entries().values())
    drawn = random.SystemRandom().randrange(2**31) if seed is None else seed
    console = make_console()
    if not quiet:
        console.print(
            heading(spec.name, selected, cache.fingerprint.name), soft_wrap=True, markup=False
        )
    start = time.monotonic()
    bench = KernelBench(selected, table, drawn, compiles=not no_compile)
    ceilings = bench.ceilings()
    rows: list[Row] = []
    skipped: list[Skipped] = []
    end: KeyboardInterrupt | DeviceLost | None = None
    try:
        _run(bench, problems, ceilings, rows, skipped, quiet)
    except (KeyboardInterrupt, DeviceLost) as error:
        end = error
    record = KernelRecord(
        model=spec.name,
        tp=tp,
        fingerprint=cache.fingerprint,
        settings={
            "dtype": str(dtype),
            "patterns": [str(pattern) for pattern in patterns],
            "m": list(counts),
            "ops": [str(op) for op in ops or tuple(Op)],
            "seed": drawn,
            "device": str(selected),
            "compile": not no_compile,
        },
        seconds=time.monotonic() - start,
        interrupted=end is not None,
        ceilings=ceilings,
        rows=tuple(rows),
        skipped=tuple(skipped),
    ).stamped()
    try:
        if not quiet:
            from slidesparse.cli.bench_table import print_kernels

            print_kernels(record, console)
    finally:
        unwritten = write_each(record, (write_json, json_path), (write_csv, csv_path))
    finish(end, unwritten, lambda: _failure(record))


def heading(model: str, device: Device, name: str) -> str:
    """The first line: what is timed where; on a CPU it says what that means."""
    if device.is_gpu:
        return f"Timing the kernels of {model} on {name}"
    return (
        f"No GPU in use: timing {model} on the CPU ({name}) with small defaults: reference "
        "implementations on the CPU, not kernels. These figures say nothing about a GPU."
    )


def _run(
    bench: KernelBench,
    problems: Sequence[KernelProblem],
    ceilings: Ceilings,
    rows: list[Row],
    skipped: list[Skipped],
    quiet: bool,
) -> None:
    """Measure everything, keeping what there is in `rows` and `skipped`, sorted, at any end."""
    from slidesparse.bench.fault import DeviceLost
    from slidesparse.bench.kernels.record import Row, Skipped
    from slidesparse.cli.console import make_console
    from slidesparse.cli.progress import ProgressLine
    from slidesparse.kernels.workload import row_order

    progress = ProgressLine(len(problems), make_console(stderr=True))
    with nullcontext() if quiet else progress:
        try:
            for found in bench.run(problems, ceilings):
                if isinstance(found, Row):
                    rows.append(found)
                else:
                    skipped.append(found)
                if not quiet:
                    progress.advance()
                    progress.say(str(found.problem))
        except DeviceLost as lost:
            if lost.problem is not None:
                skipped.append(Skipped(lost.problem, lost.reason))
            raise
        finally:
            rows.sort(key=lambda row: row_order(row.problem))
            skipped.sort(key=lambda item: row_order(item.problem))


def _failure(record: KernelRecord) -> str | None:
    """What is wrong, or why nothing was measured; None where all is well."""
    wrong = [row for row in record.rows if row.error is not None]
    if wrong:
        count, total = len(wrong), len(record.rows)
        return f"{count} of {total} kernels failed, first {wrong[0].problem}: {wrong[0].error}"
    if not record.rows:
        first = record.skipped[0]
        return f"nothing was measured; {first.problem}: {first.reason}"
    return None
