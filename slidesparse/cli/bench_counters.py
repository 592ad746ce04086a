"""slidesparse bench decode --counters: a steady load on vLLM, with what GPU and engine do under it.

The command itself is `decode` in bench_sweep; it comes here when --counters is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as version_of
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from slidesparse._version import __version__
from slidesparse.cli.counters_options import LoadOptions
from slidesparse.cli.counters_run import run_load
from slidesparse.cli.options import check_outputs
from slidesparse.cli.sweep_run import one_interrupt
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
    from slidesparse.bench.counters.book import LoadHeading
    from slidesparse.bench.counters.job import Load
    from slidesparse.bench.counters.record import CountersRecord
    from slidesparse.bench.sweep.plan import Turn
    from slidesparse.devices import Device


def measure_load(options: LoadOptions) -> None:
    """Run the command.

    Raises:
        UsageError: the input is wrong, or vLLM or the GPU is missing.
        SystemExit: with 130 if interrupted, 1 if a file could not be written.
        click.ClickException: a cell failed.
    """
    # Whatever can be wrong with the input is found before torch is imported.
    options.check()
    file = options.result_file
    check_outputs(file, options.csv_path)
    specs = load_specs(options.models, options.tp)
    device, cache = open_cache(options.device, options.cache_dir)
    _check_vllm(device)
    check_gpus(options.tp, device)
    make_ready(options.dtypes, device, cache, options.cache_dir)

    from slidesparse.bench.counters.book import LoadBook, LoadHeading
    from slidesparse.bench.counters.job import due, load_key
    from slidesparse.bench.counters.record import read_json
    from slidesparse.bench.sweep.runner import Limits

    before = read_before(file, options.fresh, read_json)
    load = _load(options, before)
    versions = {"slidesparse": __version__, "vllm": version_of("vllm")}
    heading = LoadHeading(
        *(str(device), cache.fingerprint, versions, specs, cards(device, options.tp)), load
    )
    refuse_other_settings(heading, before, file)
    book = LoadBook(heading, before)
    turns = due(load.turns(), book.known)
    check_boards(book, {load_key(key) for turn in turns for key in turn.keys}, file)
    if not options.quiet:
        say_first(first_lines(heading, turns))
    if options.dry_run:
        _list_turns(turns)
        return
    if not turns and not options.quiet:
        click.echo(f"every cell is in {file}; --fresh measures anew", err=True)
    limits = Limits(options.build_timeout, options.cell_timeout, options.budget)
    with one_interrupt():
        run_load(turns, book, device, limits, options)


def _check_vllm(device: Device) -> None:
    """Refuse to go on where vLLM cannot serve.

    Raises:
        UsageError: it is not installed, or there is no GPU.
    """
    if find_spec("vllm") is None:
        raise UsageError("--counters needs vLLM: pip install 'slidesparse[vllm]'")
    if not device.is_gpu:
        raise UsageError(f"--counters needs a GPU, and this would run on {device}")


def _load(options: LoadOptions, before: CountersRecord | None) -> Load:
    from slidesparse.bench.counters.job import Load
    from slidesparse.bench.counters.sampler import Source
    from slidesparse.bench.sweep.job import Mode

    return Load(
        models=options.models,
        dtypes=options.dtypes,
        concurrencies=options.concurrency,
        modes=options.modes or (Mode.EAGER, Mode.GRAPHS),
        tp=options.tp,
        prompt=options.prompt,
        outputs=options.max_tokens,
        seconds=options.seconds,
        settle=options.settle,
        sample_ms=options.sample_ms,
        source=Source(options.counter_source),
        seed=seed_of(options.seed, before),
    )


def first_lines(heading: LoadHeading, turns: Sequence[Turn]) -> list[str]:
    """What is measured where, under which load, and how long that is expected to take."""
    from slidesparse.bench.counters.job import BUILD_S, ends, expected_seconds

    it = heading.load
    twice = " and ".join(map(str, ends(it.concurrencies)))
    builds = ", ".join(f"{BUILD_S[mode]:.0f} s to build with {mode}" for mode in it.modes)
    cells = sum(len(turn.job.ms) for turn in turns)
    return [
        f"Loading {', '.join(it.models)} on {heading.fingerprint.name}, vLLM "
        f"{heading.versions['vllm']}, the plug-in off",
        f"Each of C requests: {it.prompt} tokens of prompt, {it.outputs} generated, another one as "
        f"it ends. Windows of {it.seconds:g} s, twice that at C={twice}, where the cost of "
        f"sampling is measured; samples every {it.sample_ms} ms.",
        f"Expected: about {expected_seconds(turns) / 60:.0f} min for {cells} cells in "
        f"{len(turns)} processes (estimated: {builds}).",
    ]


def _list_turns(turns: Sequence[Turn]) -> None:
    """Print each process with its cells."""
    cells = sum(len(turn.job.ms) for turn in turns)
    click.echo(f"{len(turns)} processes, {cells} cells:")
    for turn in turns:
        click.echo(f"  {turn}: C={','.join(map(str, turn.job.ms))}")
