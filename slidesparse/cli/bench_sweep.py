"""slidesparse bench prefill and decode: steps of a model over M, ours against stock."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from slidesparse._version import __version__
from slidesparse.cli.counters_options import (
    LOAD_ONLY,
    check_mix,
    load_options,
    read_load_options,
)
from slidesparse.cli.options import check_outputs
from slidesparse.cli.sweep_options import CPU_MODEL, GPU_MODEL, Options, sweep_options
from slidesparse.cli.sweep_run import one_interrupt, run_sweep
from slidesparse.cli.sweep_start import (
    check_boards,
    check_gpus,
    load_specs,
    make_ready,
    read_before,
    refuse_other_settings,
    say_first,
    seed_of,
)
from slidesparse.cli.target import open_cache
from slidesparse.devices import cards
from slidesparse.errors import UsageError

if TYPE_CHECKING:
    from slidesparse.bench.sweep.book import Heading
    from slidesparse.bench.sweep.plan import Sweep, Turn
    from slidesparse.bench.sweep.record import SweepRecord
    from slidesparse.cache import TuningCache
    from slidesparse.devices import Device
    from slidesparse.models import ModelSpec

VLLM, LINEAR = "vllm", "linear"


@click.command()
@sweep_options("prefill")
def prefill(**given: Any) -> None:
    """Time prefill steps of M tokens: stock, ours dense, ours by pattern, stock again."""
    _command("prefill", Options(**given))


@click.command()
@sweep_options("decode")
@load_options
@click.pass_context
def decode(context: click.Context, /, counters: bool, **given: Any) -> None:
    """Time decode steps of M sequences: stock, ours dense, ours by pattern, stock again.

    With --counters: serve a steady load of C requests and watch the GPU and the engine meanwhile.
    """
    check_mix(context, counters)
    if counters:
        from slidesparse.cli.bench_counters import measure_load

        measure_load(read_load_options(context))
        return
    steps = {name: value for name, value in given.items() if name not in LOAD_ONLY}
    _command("decode", Options(**steps))


class Chosen(NamedTuple):
    """The engine that runs.

    Args:
        name: vllm or linear.
        why: it is not the other one, where nobody asked for it; else "".
    """

    name: str
    why: str = ""


def _command(stage: str, options: Options) -> None:
    # Whatever can be wrong with the input is found before torch is imported.
    file = options.result_file
    check_outputs(file, options.csv_path, options.figure_path)
    _check_figure(options.figure_path)
    specs = load_specs(options.models or (GPU_MODEL,), options.tp)
    device, cache = open_cache(options.device, options.cache_dir)
    engine = choose_engine(options.engine, device)
    if engine.name == VLLM:
        check_gpus(options.tp, device)
    make_ready(options.dtypes, device, cache, options.cache_dir)
    if not options.models and not device.is_gpu:
        specs = load_specs((CPU_MODEL,), options.tp)

    from slidesparse.bench.sweep.book import SweepBook
    from slidesparse.bench.sweep.plan import due
    from slidesparse.bench.sweep.record import read_json
    from slidesparse.bench.sweep.runner import Limits

    before = read_before(file, options.fresh, read_json)
    sweep = _sweep(stage, options, device, tuple(specs), before)
    heading = _heading(sweep, engine, device, cache, specs)
    refuse_other_settings(heading, before, file)
    book = SweepBook(heading, before)
    turns = due(sweep.turns(), book.known)
    check_boards(book, {key for turn in turns for key in turn.keys}, file)
    if not options.quiet:
        stock = f"Stock: {heading.stock}. Timed: {heading.timed}."
        say_first([first_line(heading, engine, device), stock])
    if options.dry_run:
        _list_turns(turns, specs)
        return
    if not turns and not options.quiet:
        click.echo(f"every cell is in {file}; --fresh measures anew", err=True)
    limits = Limits(options.build_timeout, options.cell_timeout, options.budget)
    with one_interrupt():
        run_sweep(turns, book, device, limits, options)


def choose_engine(asked: str | None, device: Device) -> Chosen:
    """The engine that was asked for, or vLLM where that can run.

    Raises:
        UsageError: vLLM was asked for and cannot run.
    """
    reason = ""
    if find_spec("vllm") is None:
        reason = "vLLM is not installed"
    elif not device.is_gpu:
        reason = "vLLM needs a GPU"
    if asked == VLLM and reason:
        remedy = "run it on a GPU" if find_spec("vllm") else "pip install 'slidesparse[vllm]'"
        raise UsageError(f"--engine vllm: {reason}; {remedy}, or use --engine linear")
    if asked is not None:
        return Chosen(asked)
    return Chosen(LINEAR, reason) if reason else Chosen(VLLM)


def _sweep(
    stage: str,
    options: Options,
    device: Device,
    models: tuple[str, ...],
    before: SweepRecord | None,
) -> Sweep:
    from slidesparse.bench.sweep.job import Mode, Stage
    from slidesparse.bench.sweep.plan import Sweep

    return Sweep(
        stage=Stage(stage),
        models=models,
        dtypes=options.dtypes,
        patterns=options.patterns_on(device),
        ms=options.ms_on(device, stage),
        modes=options.modes or ((Mode.GRAPHS,) if device.is_gpu else (Mode.EAGER,)),
        tp=options.tp,
        prompt=options.prompt,
        outputs=options.outputs,
        repeats=options.repeats_on(device),
        seed=seed_of(options.seed, before),
        same_weights=options.same_weights,
    )


def _heading(
    sweep: Sweep,
    engine: Chosen,
    device: Device,
    cache: TuningCache,
    specs: dict[str, ModelSpec],
) -> Heading:
    from slidesparse.bench.sweep.book import Heading
    from slidesparse.bench.sweep.runner import ENGINES

    versions = {"slidesparse": __version__}
    if engine.name == VLLM:
        with contextlib.suppress(PackageNotFoundError):
            versions["vllm"] = version_of("vllm")
    kind = ENGINES[engine.name]
    return Heading(
        sweep=sweep,
        engine=engine.name,
        device=str(device),
        fingerprint=cache.fingerprint,
        versions=versions,
        specs=specs,
        cards=cards(device, sweep.tp if engine.name == VLLM else 1),
        stock=kind.stock,
        timed=kind.timed,
    )


def first_line(heading: Heading, engine: Chosen, device: Device) -> str:
    """What is swept where with which engine; on a CPU it says what that means."""
    it, name = heading.sweep, heading.fingerprint.name
    what = f"{it.stage} of {', '.join(it.models)}"
    why = f" ({engine.why})" if engine.why else ""
    if not device.is_gpu:
        return (
            f"No GPU in use: sweeping {what} on the CPU ({name}) with small defaults, --engine "
            f"{engine.name}{why}: reference implementations and eager torch. These figures say "
            "nothing about a GPU."
        )
    version = f" {heading.versions['vllm']}" if "vllm" in heading.versions else ""
    return f"Sweeping {what} on {name}, --engine {engine.name}{version}{why}"


def _list_turns(turns: Sequence[Turn], specs: dict[str, ModelSpec]) -> None:
    """Print each process with its cells; those with a tensor past 2^31 - 1 elements are marked."""
    from slidesparse.models import int32_overflows

    cells = sum(len(turn.job.ms) for turn in turns)
    click.echo(f"{len(turns)} processes, {cells} cells:")
    for turn in turns:
        job = turn.job
        wide = {
            found.m
            for found in int32_overflows(
                specs[job.model].linears(job.tp), job.ms, (job.variant.pattern,)
            )
        }
        marked = ",".join(f"{m} (wide)" if m in wide else str(m) for m in job.ms)
        click.echo(f"  {turn}: M={marked}")


def _check_figure(path: Path | None) -> None:
    """Refuse a figure that cannot be drawn, before anything is measured.

    Raises:
        UsageError: matplotlib is missing, or it cannot write such a file.
    """
    if path is None:
        return
    if find_spec("matplotlib") is None:
        raise UsageError("--figure needs matplotlib; pip install 'slidesparse[report]'")
    if path.suffix.lower() not in {".png", ".svg", ".pdf"}:
        raise UsageError(f"--figure {path}: end its name in .png, .svg or .pdf")
