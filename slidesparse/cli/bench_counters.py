"""slidesparse bench decode --counters: a steady load on vLLM, with what GPU and engine do under it.

The command itself is `decode` in bench_sweep; it comes here when --counters is given.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slidesparse._version import __version__
from slidesparse.cli.bench_sweep import check_gpus
from slidesparse.cli.counters_options import LoadOptions
from slidesparse.cli.counters_run import run_load_and_end
from slidesparse.cli.options import check_outputs
from slidesparse.cli.sweep_run import one_interrupt
from slidesparse.cli.target import open_cache, refuse_fp8, require_triton
from slidesparse.errors import UsageError

if TYPE_CHECKING:
    from slidesparse.bench.counters.book import LoadBook, LoadHeading
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
    from slidesparse.models import load_model

    # Whatever can be wrong with the input is found before torch is imported.
    options.check()
    file = options.result_file
    check_outputs(file, options.csv_path)
    specs = {name: load_model(name) for name in options.models}
    for spec in specs.values():
        spec.linears(options.tp)
    device, cache = open_cache(options.device, options.cache_dir)
    _check_vllm(device)
    check_gpus(options.tp, device)
    for dtype in options.dtypes:
        refuse_fp8(dtype, device, cache.fingerprint.sm, "these models")
    require_triton()
    if options.cache_dir is not None:
        # The folders that vLLM loads lie there, too.
        os.environ["SLIDESPARSE_CACHE_DIR"] = str(options.cache_dir)

    from slidesparse.bench.counters.book import LoadHeading
    from slidesparse.bench.counters.job import due
    from slidesparse.bench.sweep.runner import Limits

    before = _before(file, options.fresh)
    load = _load(options, before)
    versions = {"slidesparse": __version__, "vllm": version_of("vllm")}
    heading = LoadHeading(load, str(device), cache.fingerprint, versions, specs)
    book = _book(heading, before, file)
    turns = due(load.turns(), book.measured)
    if not options.quiet:
        _say_first(heading, turns)
    if options.dry_run:
        _list_turns(turns)
        return
    if not turns and not options.quiet:
        click.echo(f"every cell is in {file}; --fresh measures anew", err=True)
    limits = Limits(options.build_timeout, options.cell_timeout, options.budget)
    with one_interrupt():
        run_load_and_end(turns, book, device, limits, options)


def _check_vllm(device: Device) -> None:
    """Refuse to go on where vLLM cannot serve.

    Raises:
        UsageError: it is not installed, or there is no GPU.
    """
    if find_spec("vllm") is None:
        raise UsageError("--counters needs vLLM: pip install 'slidesparse[vllm]'")
    if not device.is_gpu:
        raise UsageError(f"--counters needs a GPU, and this would run on {device}")


def _before(file: Path | None, fresh: bool) -> CountersRecord | None:
    """What an earlier run left.

    Raises:
        UsageError: the file is there and is no result file of this command, or damaged.
    """
    from slidesparse.bench.counters.record import read_json

    if file is None or fresh or not file.is_file():
        return None
    try:
        return read_json(file)
    except UsageError as error:
        raise UsageError(f"{error}; name another file, or overwrite it with --fresh") from error


def _book(heading: LoadHeading, before: CountersRecord | None, file: Path | None) -> LoadBook:
    """What was measured before, if its settings are those of now.

    Raises:
        UsageError: they are not, with what differs.
    """
    from slidesparse.bench.counters.book import LoadBook

    differences = heading.differences(before) if before is not None else []
    if differences:
        raise UsageError(
            f"{file} was measured otherwise: {'; '.join(differences)}. Name another file, or start "
            "anew with --fresh"
        )
    return LoadBook(heading, before)


def _load(options: LoadOptions, before: CountersRecord | None) -> Load:
    from slidesparse.bench.counters.job import Load
    from slidesparse.bench.counters.sampler import Source
    from slidesparse.bench.sweep.job import Mode

    seed = options.seed
    if seed is None and before is not None and isinstance(before.settings.get("seed"), int):
        seed = before.settings["seed"]
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
        seed=random.SystemRandom().randrange(2**31) if seed is None else seed,
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


def _say_first(heading: LoadHeading, turns: Sequence[Turn]) -> None:
    from slidesparse.cli.console import make_console

    console = make_console()
    for line in first_lines(heading, turns):
        console.print(line, soft_wrap=True, markup=False)


def _list_turns(turns: Sequence[Turn]) -> None:
    """Print each process with its cells."""
    cells = sum(len(turn.job.ms) for turn in turns)
    click.echo(f"{len(turns)} processes, {cells} cells:")
    for turn in turns:
        click.echo(f"  {turn}: C={','.join(map(str, turn.job.ms))}")
