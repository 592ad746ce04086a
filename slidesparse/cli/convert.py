"""`slidesparse convert`: a dense checkpoint becomes a pruned and quantised standard one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slidesparse.checkpoint.files import place_of, work_of
from slidesparse.checkpoint.writer import size_text
from slidesparse.cli.console import make_console
from slidesparse.cli.main import EXIT_INTERRUPTED
from slidesparse.cli.options import Names
from slidesparse.errors import SlideSparseError, UsageError, reason_of
from slidesparse.pattern import Pattern
from slidesparse.problem import parse_dtype
from slidesparse.recipe import Method, Recipe

if TYPE_CHECKING:
    import torch

    from slidesparse.checkpoint.convert import Conversion
    from slidesparse.checkpoint.preview import Preview

SEQUENCES, LENGTH = 128, 2048
"""Of the calibration text: what Wanda and SparseGPT were published with."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_RECIPE_SAYS = ("pattern", "dtype", "method", "keep")


@click.command("convert")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option("--pattern", default="6:8", show_default=True, help="2:4, 4:6, 6:8, ... or dense.")
@click.option(
    "--dtype",
    type=click.Choice(["fp8", "int8", "none"], case_sensitive=False),
    default="fp8",
    show_default=True,
    help="Of the linears; none prunes only.",
)
@click.option(
    "--method",
    type=click.Choice([str(method) for method in Method], case_sensitive=False),
    default=str(Method.WANDA),
    show_default=True,
    help="How weights are chosen; all but magnitude need --calibration.",
)
@click.option(
    "--recipe", "recipe_path", type=click.Path(path_type=Path), help="From slidesparse allocate."
)
@click.option("--calibration", help="Text file, token ids (.json, .npy, .pt) or dataset:NAME.")
@click.option("--sequences", type=click.IntRange(1), default=SEQUENCES, show_default=True)
@click.option("--length", type=click.IntRange(2), default=LENGTH, show_default=True)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Of the calibration draw.",
)
@click.option(
    "--keep", type=Names(), default="lm_head", show_default=True, help="Linears left as they are."
)
@click.option("--permute", is_flag=True, help="Reorder input channels first, where it is exact.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:INDEX.")
@click.option("--force", is_flag=True, help="Replace DST once the conversion is complete.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and how large it gets.")
@click.pass_context
def command(
    context: click.Context,
    /,
    source: str,
    target: Path,
    calibration: str | None,
    sequences: int,
    length: int,
    seed: int,
    permute: bool,
    device: str,
    force: bool,
    dry_run: bool,
    **choices: Any,
) -> None:
    """Prune and quantise the checkpoint SRC into a new one, DST.

    SRC is a directory of safetensors, or a Hugging Face id that is in the local cache: BF16, FP16
    or W8A8 of compressed-tensors. DST loads in vLLM and transformers as it is. Run the same command
    again to go on with a conversion that was stopped.
    """
    from slidesparse.checkpoint.convert import convert
    from slidesparse.checkpoint.preview import preview

    recipe = _recipe(context, **choices)
    folder = _folder(source)
    planned = preview(folder, recipe)
    _show_plan(folder, target, recipe, planned)
    _check_target(folder, target, force)
    if calibration is not None and not planned.calibrated:
        raise UsageError(
            f"{recipe.method} to this pattern looks at no text; leave out --calibration"
        )
    if dry_run:
        return
    tokens = None
    if planned.calibrated:
        tokens = _tokens(recipe, calibration, folder, sequences, length, seed)
    progress, chosen = _Progress(planned.shards), _device(device)
    try:
        with progress.line:
            made = convert(
                folder,
                target,
                recipe,
                tokens=tokens,
                permute=permute,
                force=force,
                device=chosen,
                progress=progress,
            )
    except KeyboardInterrupt:
        click.echo("interrupted; finished shards are kept, the same command goes on", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except SlideSparseError:
        work = work_of(place_of(target))
        if work.is_dir():
            click.echo(f"{work} keeps the finished shards: the same command goes on", err=True)
        raise
    _show_result(made, recipe)


class _Progress:
    """Feeds the progress line of the console."""

    def __init__(self, total: int) -> None:
        from slidesparse.cli.progress import ProgressLine

        self.line = ProgressLine(total, make_console(stderr=True))

    def __call__(self, done: int, total: int, name: str) -> None:
        self.line.advance()
        self.line.say(f"{name} done")


def _recipe(
    context: click.Context,
    pattern: str,
    dtype: str,
    method: str,
    keep: tuple[str, ...],
    recipe_path: Path | None,
) -> Recipe:
    """The recipe of the file, or the one that the options make; not a mixture."""
    if recipe_path is not None:
        given = click.core.ParameterSource.COMMANDLINE
        both = [name for name in _RECIPE_SAYS if context.get_parameter_source(name) is given]
        if both:
            raise UsageError(f"--recipe and --{both[0]} exclude each other: the file says it")
        return Recipe.read(recipe_path)
    return Recipe(
        pattern=Pattern.parse(pattern),
        method=Method(method.lower()),
        dtype=None if dtype == "none" else parse_dtype(dtype),
        keep=keep,
    )


def _folder(source: str) -> Path:
    """The directory that SRC names, in the cache of Hugging Face if it is an id.

    Raises:
        UsageError: it names neither.
    """
    try:
        path = Path(source).expanduser()
        if path.exists() or not _HUB_ID.fullmatch(source):
            return path
    except (OSError, RuntimeError) as error:
        raise UsageError(f"cannot read {source}: {reason_of(error)}") from error
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise UsageError(
            f"there is no directory {source!r}, and the Hugging Face cache does not hold it: run "
            f"hf download {source}"
        ) from error


def _check_target(source: Path, target: Path, force: bool) -> None:
    """Refuse a destination before text is read for it; `convert` looks again."""
    from slidesparse.checkpoint.files import check_destination, place_of
    from slidesparse.checkpoint.state import STATE_FILE

    place = place_of(target)
    if not (place / STATE_FILE).exists():
        check_destination(source.resolve(), place, force)


def _tokens(
    recipe: Recipe,
    calibration: str | None,
    folder: Path,
    sequences: int,
    length: int,
    seed: int,
) -> torch.Tensor:
    if calibration is None:
        raise UsageError(
            f"{recipe.method} needs --calibration FILE with text; or use --method magnitude"
        )
    from slidesparse.accuracy.text import calibration_tokens, check_vocabulary
    from slidesparse.checkpoint.reader import CONFIG_FILE, read_json

    tokens = calibration_tokens(calibration, folder, sequences, length, seed)
    vocabulary = read_json(folder / CONFIG_FILE).get("vocab_size")
    if isinstance(vocabulary, int):
        check_vocabulary(tokens, vocabulary)
    return tokens


def _device(name: str) -> str:
    from slidesparse.devices import select_device

    return str(select_device(name))


def _show_plan(source: Path, target: Path, recipe: Recipe, planned: Preview) -> None:
    counts = [
        f"{planned.patterns[pattern]} to {pattern}"
        for pattern in sorted(planned.patterns, key=lambda it: (it.zeros, it.block))
    ]
    dtype = f"quantised to {recipe.dtype}" if recipe.dtype else "not quantised"
    lines = [
        f"{source} -> {target}",
        f"linears: {', '.join(counts) or 'none changed'} by {recipe.method}, {dtype}",
        f"kept: {_some(planned.kept)}",
        f"size: {size_text(planned.bytes)} in {planned.shards} shards",
        *([f"calibration: {recipe.method} runs the model on text"] if planned.calibrated else []),
        *(f"note: {note}" for note in planned.notes),
    ]
    console = make_console(stderr=True)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _show_result(made: Conversion, recipe: Recipe) -> None:
    resumed = f", {made.resumed} shards from an earlier start" if made.resumed else ""
    click.echo(f"wrote {made.path}{resumed}")
    if made.reports:
        worst = max(made.reports, key=lambda report: report.error)
        errors = sorted(report.error for report in made.reports)
        click.echo(
            f"relative error of {worst.measure}s: median {errors[len(errors) // 2]:.3f}, largest "
            f"{worst.error:.3f} at {worst.name}"
        )
    click.echo(f"next: slidesparse inspect {made.path}")


def _some(names: tuple[str, ...], limit: int = 4) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
