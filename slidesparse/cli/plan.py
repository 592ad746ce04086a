"""`slidesparse plan`: whether a model fits a GPU, what it takes, and what bounds its layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slidesparse.cli.options import check_outputs
from slidesparse.errors import UsageError

if TYPE_CHECKING:
    from slidesparse.bench.capacity.record import CapacityRecord
    from slidesparse.cli.plan_options import Asked

EXIT_NO_FIT = 3


@click.command("plan")
@click.option("--model", help="A preset, a folder with a config.json, or a Hugging Face id.")
@click.option("--gpu", help="Of the GPU table, or auto: this machine's.  [default: auto]")
@click.option("--max-seqs", type=int, help="Sequences that vLLM may run at once.  [default: 256]")
@click.option("--context", type=int, help="Tokens of the longest.  [default: the model's own]")
@click.option("--batch", type=int, help="Of them in memory at once.  [default: as many as fit]")
@click.option("--quant", help="awq, gptq, fp8, int8 or none.  [default: as stored, else none]")
@click.option("--kv-dtype", help="bf16 or fp8.  [default: bf16]")
@click.option("--memory-fraction", type=float, help="That vLLM may use.  [default: 0.9]")
@click.option("--pattern", help="Sparsity that SlideSparse runs: 6:8.  [default: dense]")
@click.option("--tp", type=int, help="GPUs that share each layer.  [default: 1]")
@click.option("--batched-tokens", type=int, help="Most of one step.  [default: as vLLM's server]")
@click.option("--eager/--graphs", default=None, help="Without compiling and CUDA graphs, or with.")
@click.option("--from", "current", type=click.Path(path_type=Path), help="Options of a plan: YAML.")
@click.option("--to", "proposed", type=click.Path(path_type=Path), help="To compare with: YAML.")
@click.option("--check", is_flag=True, help="Start vLLM on this GPU, and compare: --model a,b,c.")
@click.option("--gpus", is_flag=True, help="Show the GPU table; with --gpu the sources of one.")
@click.option(
    "--cache-dir", type=click.Path(path_type=Path), help="Where measured times of GEMMs lie."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write a result file.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    current: Path | None,
    proposed: Path | None,
    check: bool,
    gpus: bool,
    cache_dir: Path | None,
    json_path: Path | None,
    quiet: bool,
    **chosen: Any,
) -> None:
    """Plan the memory of a model in vLLM, and the ceilings of its speed; needs no GPU.

    The first line says whether it fits, and by how much; exit code 0 if it does, 3 if not. With
    --from and --to two plans stand side by side; options beside them count for both.
    """
    options = {name.replace("_", "-"): value for name, value in chosen.items()}
    if gpus:
        _check_table(options, json_path, check, current, proposed)
    check_outputs(json_path, None)
    if gpus:
        from slidesparse.cli.console import make_console
        from slidesparse.cli.plan_gpus import print_gpus

        print_gpus(options["gpu"], make_console())
        return
    if check:
        if current is not None or proposed is not None:
            raise UsageError("--check and --from or --to exclude each other")
        from slidesparse.cli.plan_check import run_check

        run_check(options, json_path, quiet)
        return
    asked = _asked(options, current, proposed)
    record = _record(asked, options, cache_dir)
    if not quiet:
        from slidesparse.cli.console import make_console
        from slidesparse.cli.plan_table import print_comparison, print_plan

        show = print_plan if len(asked) == 1 else print_comparison
        show(record, make_console())
    if json_path is not None:
        from slidesparse.bench.capacity.record import write_json

        write_json(record.stamped(), json_path)
    if not record.plans[-1].fits:
        raise SystemExit(EXIT_NO_FIT)


def _check_table(
    options: Mapping[str, Any],
    json_path: Path | None,
    check: bool,
    current: Path | None,
    proposed: Path | None,
) -> None:
    """Refuse what --gpus would ignore.

    Raises:
        UsageError: names it.
    """
    if json_path is not None:
        raise UsageError("--gpus writes no result file; leave --json out")
    beside = {"check": check or None, "from": current, "to": proposed, **options, "gpu": None}
    named = [f"--{name}" for name, value in beside.items() if value is not None]
    if named:
        raise UsageError(f"--gpus shows the GPU table and plans nothing; leave {named[0]} out")


def _asked(
    options: Mapping[str, Any], current: Path | None, proposed: Path | None
) -> tuple[Asked, ...]:
    """One plan, or two.

    Raises:
        UsageError: one file without the other, or a wrong value, with its file.
    """
    from slidesparse.cli.plan_options import read_options, resolve

    if current is None and proposed is None:
        return (resolve("plan", options),)
    if current is None or proposed is None:
        here, there = ("--from", "--to") if proposed is None else ("--to", "--from")
        raise UsageError(f"{here} needs {there} beside it, the plan to compare with")
    found = []
    for name, path in (("current", current), ("proposed", proposed)):
        beside = {key: value for key, value in options.items() if value is not None}
        read = read_options(path)
        try:
            found.append(resolve(name, {**beside, **read}))
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
    return tuple(found)


def _record(
    asked: tuple[Asked, ...], options: Mapping[str, Any], cache_dir: Path | None
) -> CapacityRecord:
    from slidesparse.bench.capacity.record import CapacityRecord, plan_entry
    from slidesparse.capacity.gemm_times import GemmTimes
    from slidesparse.capacity.nearest import nearest_changes
    from slidesparse.capacity.plan import make_plan
    from slidesparse.capacity.roofline import decode, prefill

    entries = []
    for it in asked:
        settings = it.settings
        plan = make_plan(settings, it.stored)
        # Only GEMMs of 8-bit operands are ever searched.
        eight = settings.quant.eight_bit
        times = GemmTimes.of_gpu(settings.gpu, cache_dir) if eight else None
        steps = (prefill(settings, times), decode(settings, times))
        changes = nearest_changes(plan, it.stored)
        entries.append(plan_entry(it.name, it.model, plan, changes, steps, it.options))
    given = {name: value for name, value in options.items() if value is not None}
    return CapacityRecord(None, given, tuple(entries))
