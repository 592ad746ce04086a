"""slidesparse tune: the fastest configuration of every kernel around the GEMMs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slidesparse.cli.main import end_run
from slidesparse.cli.options import DTypeName, OpList, PatternList, Seconds, TokenCounts
from slidesparse.cli.target import open_cache, refuse_fp8, require_triton, target_options
from slidesparse.errors import CacheError, UsageError
from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.pattern import Pattern
from slidesparse.problem import DType

if TYPE_CHECKING:
    from slidesparse.cache import TuningCache
    from slidesparse.candidate import ProblemResult
    from slidesparse.devices import Device
    from slidesparse.kernels.native.source import Variant
    from slidesparse.kernels.tune import TuneOptions
    from slidesparse.models import ModelSpec

PATTERNS = "dense,2:4,4:6,6:8,8:10"


@click.command()
@click.option(
    "--model",
    default="qwen2.5-7b",
    show_default=True,
    help="Preset, directory with config.json, or Hugging Face id.",
)
@click.option(
    "--dtype", type=DTypeName(), default="fp8", show_default=True, help="fp8 (E4M3) or int8."
)
@click.option("--ops", type=OpList(), help="Comma-separated operations; all unless told.")
@click.option(
    "--m",
    "tokens",
    type=TokenCounts(),
    help="Token counts. [16,64,256,1024,4096,16384; 65536 where that passes 2^31 elements]",
)
@click.option(
    "--patterns", type=PatternList(), default=PATTERNS, show_default=True, help="Lifts to tune."
)
@click.option("--tp", type=click.IntRange(min=1), default=1, help="Tensor-parallel size.")
@target_options
@click.option(
    "--effort",
    type=click.Choice(["normal", "full"]),
    default="normal",
    show_default=True,
    help="full: loops over rows, persistent grids and pipelines too.",
)
@click.option("--budget", type=Seconds(), help="Seconds for everything.")
@click.option("--resume/--fresh", default=True, help="Keep what is cached. [resume]")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), help="Of the random operands; drawn unless told."
)
@click.option(
    "--warm",
    is_flag=True,
    help="Tune nothing: compile what launches will take, and the cached native GEMMs.",
)
@click.option("--dry-run", is_flag=True, help="List problems and configurations, run nothing.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no tables; errors only.")
def command(
    model: str,
    dtype: DType,
    ops: tuple[Op, ...] | None,
    tokens: tuple[int, ...] | None,
    patterns: tuple[Pattern, ...],
    tp: int,
    device: str,
    cache_dir: Path | None,
    effort: str,
    budget: float | None,
    resume: bool,
    seed: int | None,
    warm: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Find the fastest configuration of every kernel around a model's GEMMs and cache it."""
    from slidesparse.models import load_model

    spec = load_model(model)
    spec.linears(tp)
    selected, cache = open_cache(device, cache_dir)
    refuse_fp8(dtype, selected, cache.fingerprint.sm)
    require_triton()

    from slidesparse.kernels.tune import TuneOptions
    from slidesparse.kernels.workload import model_problems, tuned_problems

    every = ops if ops is not None else tuple(Op)
    if tokens is None:
        problems = tuned_problems(spec, tp, dtype, patterns, every)
    else:
        problems = model_problems(spec, tp, dtype, patterns, tokens, ops=every)
    if not problems:
        raise UsageError(f"{spec.name} has no {', '.join(map(str, ops or ()))}; leave out --ops")
    options = TuneOptions(full=effort == "full", fresh=not resume, budget_s=budget, seed=seed)
    if dry_run:
        _print_space(problems, options)
        return
    if not selected.is_gpu:
        raise UsageError(
            "kernels are tuned on a GPU; on the CPU they run as torch references, and there is "
            "nothing to tune (--dry-run lists what would be)"
        )
    if warm:
        gemms = _cached_gemms(cache, spec, tp, dtype, patterns)
        _warm(spec.name, problems, gemms, selected, cache, quiet)
        return
    unwritable = cache.unwritable_reason()
    if unwritable:
        raise CacheError(f"cannot write the tuning cache: {unwritable}")
    _tune(spec.name, problems, selected, cache, options, quiet)


def _print_space(problems: Sequence[KernelProblem], options: TuneOptions) -> None:
    from slidesparse.kernels.config import candidates

    total = 0
    for problem in problems:
        count = len(candidates(problem, options.full))
        total += count
        click.echo(f"{problem}: {count} configurations")
    click.echo(f"{len(problems)} problems, {total} configurations; nothing was run")


def _cached_gemms(
    cache: TuningCache, spec: ModelSpec, tp: int, dtype: DType, patterns: Sequence[Pattern]
) -> list[ProblemResult]:
    """What searches filed for the layers of a model, for any M, output and scales."""
    shapes = {(layer.n, layer.k) for layer in spec.linears(tp)}
    results = (hit.result for hit in cache.entries().values())
    return [
        result
        for result in results
        if (result.problem.n, result.problem.k) in shapes
        and result.problem.dtype is dtype
        and result.problem.pattern in patterns
    ]


def _warm(
    name: str,
    problems: Sequence[KernelProblem],
    gemms: Sequence[ProblemResult],
    device: Device,
    cache: TuningCache,
    quiet: bool,
) -> None:
    import time

    from slidesparse.kernels.config import Table, load
    from slidesparse.kernels.native.program import compile_variants
    from slidesparse.kernels.warm import compile_parallel, launch_jobs

    start = time.monotonic()
    load(device.index, Table(hit.result for hit in cache.kernel_entries().values()))
    jobs = launch_jobs(problems, device)
    variants = _native_variants(gemms, cache.fingerprint.sm, quiet)
    failed = compile_parallel(jobs, device) + compile_variants(variants)
    if failed:
        raise click.ClickException(
            f"{len(failed)} of {len(jobs) + len(variants)} kernels do not compile; "
            f"for example {failed[0]}"
        )
    if not quiet:
        seconds = time.monotonic() - start
        click.echo(
            f"{len(jobs)} kernels of {name} are compiled for {cache.fingerprint.name} by Triton "
            f"and {len(variants)} native GEMM kernels by NVRTC in {seconds:.1f} s; their caches on "
            "disk have them for every process"
        )


def _native_variants(gemms: Sequence[ProblemResult], sm: int, quiet: bool) -> list[Variant]:
    """What to compile of the native GEMM; none, with a note, where it cannot be compiled."""
    from slidesparse.kernels.native.program import SM, missing
    from slidesparse.kernels.warm import native_variants

    variants = native_variants(gemms) if sm == SM else []
    reason = missing() if variants else ""
    if not reason:
        return variants
    if not quiet:
        click.echo(f"note: native GEMM kernels are not compiled: {reason}", err=True)
    return []


def _tune(
    name: str,
    problems: Sequence[KernelProblem],
    device: Device,
    cache: TuningCache,
    options: TuneOptions,
    quiet: bool,
) -> None:
    from slidesparse.cli.console import make_console
    from slidesparse.kernels.tune import Tuner

    tuner = Tuner(problems, device, cache, options)
    console = make_console()
    if quiet:
        outcome = tuner.run()
    else:
        from slidesparse.cli.tune_progress import TuneProgress

        console.print(
            f"Tuning {len(problems)} kernel problems of {name} on {cache.fingerprint.name}",
            soft_wrap=True,
            markup=False,
        )
        with TuneProgress(len(problems), make_console(stderr=True)) as progress:
            outcome = tuner.run(progress)
        from slidesparse.cli.tune_table import print_outcome

        print_outcome(outcome, console)
        console.print(
            f"{len(outcome.found)} of {len(problems)} problems in {outcome.seconds:.1f} s "
            f"({outcome.compile_seconds:.1f} s of it compiling), seed {outcome.seed}; "
            f"cache: {cache.directory}",
            soft_wrap=True,
            markup=False,
        )
    end_run(outcome.interrupted, outcome.found, outcome.skipped, "tuned")
