"""slidesparse bench agreement: does the plug-in give what stock vLLM gives?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slidesparse.cli.endings import finish, write_each
from slidesparse.cli.options import ModeList, Seconds, check_writable
from slidesparse.cli.target import open_cache, target_options
from slidesparse.errors import UsageError

if TYPE_CHECKING:
    from slidesparse.bench.agreement.plan import AgreementOptions, Prepared
    from slidesparse.bench.agreement.record import AgreementRecord
    from slidesparse.bench.agreement.run import AgreementRun

ENGINES_PER_MODE = 2
"""Stock and ours."""


@click.command()
@click.argument(
    "folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--text", required=True, help="Prose to score: a file or dataset:NAME.")
@click.option("--tokenizer", help="Directory, Hugging Face id or .gguf file.  [default: DIR's own]")
@click.option(
    "--tokens",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="Score at least so many.",
)
@click.option(
    "--length",
    type=click.IntRange(2),
    default=512,
    show_default=True,
    help="Tokens of a window, which is one step of the engine.",
)
@click.option(
    "--modes",
    type=ModeList(),
    default="graphs,eager",
    show_default=True,
    help="Mixed requests run in the first.",
)
@click.option("--tp", type=click.IntRange(min=1), default=1, help="Tensor-parallel size.")
@click.option(
    "--requests",
    type=click.IntRange(0, 100_000),
    default=500,
    show_default=True,
    help="Mixed requests that run together; 0 leaves them out.",
)
@click.option(
    "--longest",
    type=click.IntRange(2),
    default=4000,
    show_default=True,
    help="Tokens of the longest prompt among them.",
)
@click.option(
    "--outputs",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Tokens that each generates at most.",
)
@click.option(
    "--aborts",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Share of them that is aborted.",
)
@click.option(
    "--alone",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    help="How many run again one at a time.",
)
@click.option(
    "--least-agreement",
    type=click.FloatRange(0, 100),
    default=99.0,
    show_default=True,
    help="Percent of tokens for which both must find the same one likeliest.",
)
@click.option(
    "--most-perplexity",
    type=click.FloatRange(0),
    default=0.5,
    show_default=True,
    help="Percent that ours may be off stock's.",
)
@click.option(
    "--most-load",
    type=click.FloatRange(0),
    help="Percent that loading may take longer than with stock.  [default: any]",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option(
    "--timeout",
    type=Seconds(),
    default=1800.0,
    show_default=True,
    help="Seconds for what an engine is asked at a time.",
)
@target_options
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write a result file.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no tables; errors only.")
def agreement(
    folders: tuple[Path, ...],
    device: str,
    cache_dir: Path | None,
    json_path: Path | None,
    quiet: bool,
    **given: Any,
) -> None:
    """Compare the plug-in with stock vLLM on the checkpoints DIR: logits, mixed requests, loading.

    Both score the same prose and answer the same requests. The exit code is 1 where they differ
    by more than the limits, or where one of them fails.
    """
    # Whatever can be wrong with the input is found before torch is imported.
    check_writable(json_path)
    if find_spec("vllm") is None:
        raise UsageError("vLLM is not installed: pip install 'slidesparse[vllm]'")
    selected, cache = open_cache(device, cache_dir)

    from slidesparse.bench.agreement.plan import check_device
    from slidesparse.bench.agreement.run import AgreementRun

    check_device(selected)
    if cache_dir is not None:
        # The plug-in looks there in vLLM's processes.
        os.environ["SLIDESPARSE_CACHE_DIR"] = str(cache_dir)
    options = chosen(folders, given)
    measure(AgreementRun(options, selected, cache.fingerprint), json_path, quiet)


def chosen(folders: tuple[Path, ...], given: dict[str, Any]) -> AgreementOptions:
    """The options of the command line; percents become shares, a folder named twice runs once."""
    from slidesparse.bench.agreement.plan import AgreementOptions
    from slidesparse.bench.agreement.record import Limits

    load = given.pop("most_load")
    limits = Limits(
        agreement=given.pop("least_agreement") / 100,
        perplexity=given.pop("most_perplexity") / 100,
        load=None if load is None else load / 100,
    )
    return AgreementOptions(
        folders=tuple(dict.fromkeys(Path(os.path.abspath(folder)) for folder in folders)),
        limits=limits,
        **given,
    )


def measure(run: AgreementRun, json_path: Path | None, quiet: bool) -> None:
    """Run it, print and write what was measured.

    Exits with 1 if a limit is not met, a vLLM failed or the file is not written, with 130 if it was
    interrupted.
    """
    from slidesparse.bench.agreement.record import write_json
    from slidesparse.cli.console import make_console

    prepared = run.prepare()
    if not quiet:
        names = ", ".join(folder.name for folder in run.options.folders)
        line = f"Comparing the plug-in with stock vLLM on {run.fingerprint.name}: {names}"
        make_console().print(line, soft_wrap=True, markup=False)
    end: KeyboardInterrupt | None = None
    try:
        _run(run, prepared, quiet)
    except KeyboardInterrupt as error:
        end = error
    record = run.record(interrupted=end is not None)
    try:
        if not quiet:
            from slidesparse.cli.agreement_table import print_agreement

            print_agreement(record, make_console())
    finally:
        unwritten = write_each(record, (write_json, json_path))
    finish(end, unwritten, lambda: _failure(record))


def _run(run: AgreementRun, prepared: Sequence[Prepared], quiet: bool) -> None:
    from slidesparse.cli.console import make_console
    from slidesparse.cli.progress import ProgressLine

    total = ENGINES_PER_MODE * len(run.options.modes) * len(run.options.folders)
    progress = ProgressLine(total, make_console(stderr=True))
    if not quiet:
        run.notify = progress.say
    with nullcontext() if quiet else progress:
        for _ in run.run(prepared):
            progress.advance()


def _failure(record: AgreementRecord) -> str | None:
    """The first problem and how many more there are; None where all is as the limits want it."""
    from slidesparse.bench.agreement.verdict import problems

    found = problems(record)
    if not found:
        return None
    return f"{found[0]} (and {len(found) - 1} more)" if len(found) > 1 else found[0]
