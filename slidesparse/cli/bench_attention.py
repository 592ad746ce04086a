"""slidesparse bench attention: every backend that runs here, against the GPU's bound."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from slidesparse.cli.attention_options import (
    BACKENDS,
    CPU_SHAPE,
    GPU_SHAPE,
    Options,
    attention_options,
)
from slidesparse.cli.endings import finish, write_each
from slidesparse.cli.options import check_outputs
from slidesparse.errors import UsageError
from slidesparse.problem import DType

if TYPE_CHECKING:
    from slidesparse.bench.attention.bound import Rates
    from slidesparse.bench.attention.problem import AttentionProblem
    from slidesparse.bench.attention.record import (
        AttentionRecord,
        AttentionRow,
        LeftOut,
        ProblemBound,
    )
    from slidesparse.bench.attention.run import AttentionBench
    from slidesparse.bench.fault import DeviceLost
    from slidesparse.devices import Device

FLOP_COUNT = "4 D per score of a query and a key, both products; causal S (S + 1) / 2 scores a head"


@dataclass
class Found:
    """What was measured so far."""

    rows: list[AttentionRow] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


@click.command()
@attention_options
def attention(**given: Any) -> None:
    """Time attention: torch's backends and FlashAttention 3, against what the GPU can do."""
    options = Options(**given)
    # Whatever can be wrong with the input is found before torch is imported.
    check_outputs(options.json_path, options.csv_path)
    options.check_gpu()
    options.problems(GPU_SHAPE)
    if options.gpu is not None:
        _bounds_only(options, options.gpu)
    else:
        _measure(options)


def _bounds_only(options: Options, gpu: str) -> None:
    """Print and write the bounds of a GPU of the table; nothing runs."""
    from slidesparse.bench.attention.rates import table_rates
    from slidesparse.gpus import find_gpu

    spec, dtype = find_gpu(gpu), DType(options.dtype)
    rates = table_rates(spec, dtype)
    if rates is None:
        other = DType.FP16 if dtype is DType.BF16 else DType.BF16
        remedy = "use another --gpu"
        if table_rates(spec, other) is not None:
            remedy = f"use --dtype {other}"
        raise UsageError(f"no rate of {spec.name} is known for {dtype} tensor cores; {remedy}")
    bounds = _bounds(options, options.problems(GPU_SHAPE), rates)
    settings = {"gpu": spec.key, **_settings(options, bounds)}
    _report(options, _record(settings, rates, bounds), f"Bounds of {spec.name}; nothing runs.")


def _measure(options: Options) -> None:
    from slidesparse.bench.attention.rates import device_rates
    from slidesparse.devices import detect, select_device

    device = select_device(options.device or "auto")
    machine = detect(device)

    from slidesparse.bench.attention.backends import backends_of
    from slidesparse.bench.attention.run import AttentionBench
    from slidesparse.bench.fault import DeviceLost

    problems = options.problems(GPU_SHAPE if device.is_gpu else CPU_SHAPE)
    rates = device_rates(device, machine, DType(options.dtype))
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    first = first_line(problems[0], device, machine.name)
    if not options.quiet:
        _say(first)
    names = options.backends or BACKENDS
    backends = backends_of(names)
    bench = AttentionBench(device, seed, backends)
    start, found = time.monotonic(), Found()
    end: KeyboardInterrupt | DeviceLost | None = None
    try:
        _run(bench, problems, len(backends), found, options.quiet)
    except (KeyboardInterrupt, DeviceLost) as error:
        end = error
    bounds = _bounds(options, problems, rates)
    settings = {
        **_settings(options, bounds),
        "backends": list(names),
        "seed": seed,
        "device": str(device),
    }
    record = _record(
        settings,
        rates,
        bounds,
        fingerprint=machine,
        seconds=time.monotonic() - start,
        interrupted=end is not None,
        rows=tuple(found.rows),
        left_out=tuple(found.left_out),
    )
    unwritten = _report(options, record, "", ending=True)
    finish(end, unwritten, lambda: _failure(record))


def first_line(problem: AttentionProblem, device: Device, name: str) -> str:
    """What is timed where; on a CPU it says what that means."""
    it = problem
    what = f"attention, B={it.batch} H={it.heads} S={it.seq} D={it.head_dim} {it.dtype}"
    if device.is_gpu:
        return f"Timing {what}, on {name}"
    return (
        f"No GPU in use: timing {what}, on the CPU ({name}) with small defaults. These figures say "
        "nothing about a GPU; --gpu NAME computes the bounds of one."
    )


def _bounds(
    options: Options, problems: Sequence[AttentionProblem], rates: Rates | None
) -> tuple[ProblemBound, ...]:
    from slidesparse.bench.attention.bound import Unit, bound_of, judge
    from slidesparse.bench.attention.record import ProblemBound

    unit, found = Unit(options.target_unit), []
    for problem in problems:
        bound = None if rates is None else bound_of(problem, rates)
        verdicts = tuple(judge(problem, bound, target, unit) for target in options.targets)
        found.append(ProblemBound(problem, bound, verdicts))
    return tuple(found)


def _settings(options: Options, bounds: Sequence[ProblemBound]) -> dict[str, Any]:
    it = bounds[0].problem
    return {
        "batch": it.batch,
        "heads": it.heads,
        "kv_heads": it.kv_heads,
        "seq": it.seq,
        "head_dim": it.head_dim,
        "masks": [known.problem.mask for known in bounds],
        "dtype": str(it.dtype),
        "targets": list(options.targets),
        "target_unit": options.target_unit,
        "flop": FLOP_COUNT,
    }


def _record(
    settings: dict[str, Any],
    rates: Rates | None,
    bounds: tuple[ProblemBound, ...],
    **measured: Any,
) -> AttentionRecord:
    from slidesparse.bench.attention.record import AttentionRecord

    nothing = {"fingerprint": None, "seconds": 0.0, "interrupted": False}
    fields = {**nothing, "rows": (), "left_out": (), **measured}
    return AttentionRecord(settings=settings, rates=rates, bounds=bounds, **fields).stamped()


def _run(
    bench: AttentionBench,
    problems: Sequence[AttentionProblem],
    backends: int,
    found: Found,
    quiet: bool,
) -> None:
    """Measure everything, keeping in `found` what there is, at any end."""
    from slidesparse.bench.attention.record import LeftOut
    from slidesparse.cli.console import make_console
    from slidesparse.cli.progress import ProgressLine

    progress = ProgressLine(backends * len(problems), make_console(stderr=True))
    with nullcontext() if quiet else progress:
        for item in bench.run(problems, (lambda text: None) if quiet else progress.say):
            if isinstance(item, LeftOut):
                found.left_out.append(item)
            else:
                found.rows.append(item)
            if not quiet:
                progress.advance()


def _say(text: str) -> None:
    from slidesparse.cli.console import make_console

    make_console().print(text, soft_wrap=True, markup=False)


def _report(
    options: Options, record: AttentionRecord, first: str, ending: bool = False
) -> list[str]:
    """Print the tables and write the files.

    Args:
        options: which files, and how much to print.
        record: of the run.
        first: line before the tables, "" for none.
        ending: whether the caller ends the run with what could not be written.

    Returns:
        Why files are not there, one line each.
    """
    from slidesparse.bench.attention.csv import write_csv
    from slidesparse.bench.attention.record import write_json

    try:
        if not options.quiet:
            from slidesparse.cli.attention_table import print_attention
            from slidesparse.cli.console import make_console

            if first:
                _say(first)
            print_attention(record, make_console())
    finally:
        files = (write_json, options.json_path), (write_csv, options.csv_path)
        unwritten = write_each(record, *files)
    if unwritten and not ending:
        finish(None, unwritten, lambda: None)
    return unwritten


def _failure(record: AttentionRecord) -> str | None:
    """What is wrong, or why nothing was measured; None where all is well."""
    wrong = [it for it in record.left_out if str(it.kind) == "wrong"]
    if wrong:
        first = wrong[0]
        return f"{first.backend}, {first.problem}: {first.reason}"
    if not record.rows:
        left = record.left_out[0]
        return f"nothing was measured; {left.backend}, {left.problem}: {left.kind}: {left.reason}"
    return None
