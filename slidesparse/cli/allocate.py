"""slidesparse allocate: which linears get which pattern, by what each costs and what it gains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slidesparse.cli.allocate_options import Percent, SpeedTarget, Workload
from slidesparse.cli.options import DTypeName, Names, PatternList, check_writable
from slidesparse.cli.target import open_cache, refuse_fp8, target_options
from slidesparse.errors import UsageError
from slidesparse.recipe import Method

if TYPE_CHECKING:
    from slidesparse.devices import Device

PATTERNS = "2:4,4:6,6:8,8:10"
GPU_SIZES = {"sequences": 128, "probe": 8, "windows": 64, "length": 2048}
CPU_SIZES = {"sequences": 8, "probe": 4, "windows": 8, "length": 256}
METHODS = [str(method) for method in Method]


@click.command()
@click.argument("model")
@click.option("--text", required=True, help="Held-out text that perplexities are of.")
@click.option("--calibration", help="Text for statistics and sensitivities.  [default: --text]")
@click.option(
    "--max-perplexity-increase", "percent", type=Percent(), help="As fast as it gets within 5%."
)
@click.option(
    "--target-speedup",
    "target",
    type=SpeedTarget(),
    help="As good as it gets at 1.15 times dense, or as fast as uniform 6:8.",
)
@click.option(
    "--m",
    "batches",
    type=Workload(),
    default="16384",
    show_default=True,
    help="Tokens per batch, each with how many such batches there are.",
)
@click.option("--patterns", type=PatternList(), default=PATTERNS, show_default=True)
@click.option("--method", type=click.Choice(METHODS), default="sparsegpt", show_default=True)
@click.option("--dtype", type=DTypeName(), default="fp8", show_default=True, help="fp8 or int8.")
@click.option(
    "--keep", type=Names(), default="lm_head", show_default=True, help="Linears left as they are."
)
@click.option(
    "--sequences",
    type=click.IntRange(1),
    help="Of calibration text, for the statistics. [128; on the CPU 8]",
)
@click.option(
    "--probe",
    type=click.IntRange(1),
    help="Further sequences of it, for the sensitivities. [8; on the CPU 4]",
)
@click.option(
    "--windows", type=click.IntRange(1), help="Of held-out text at most. [64; on the CPU 8]"
)
@click.option("--length", type=click.IntRange(2), help="Tokens of each. [2048; on the CPU 256]")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Of the model while losses are measured; auto is as stored, float32 on a CPU and for "
    "GGUF.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--search", is_flag=True, help="Measure GEMM times that the cache lacks.")
@click.option(
    "--reuse", type=click.Path(path_type=Path), help="Take sensitivities from a --json file."
)
@click.option("--compare/--no-compare", default=True, help="Measure uniform patterns. [compare]")
@target_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Recipe to write.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write a result file.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no tables; errors only.")
def command(
    out: Path,
    json_path: Path | None,
    device: str,
    cache_dir: Path | None,
    quiet: bool,
    **given: Any,
) -> None:
    """Choose a pattern for every linear of MODEL: fastest within a loss, or best at a speed.

    MODEL is a directory, a Hugging Face id, a .gguf file or "smollm2". Linears that run as one GEMM
    (q, k and v; gate and up) share a pattern. Times come from this machine's tuning cache; losses
    are measured, one group of linears at a time and then of the whole choice.
    """
    # Whatever can be wrong with the input is found before torch is imported.
    _check(given, out, json_path)
    selected, cache = open_cache(device, cache_dir)
    refuse_fp8(given["dtype"], selected, cache.fingerprint.sm, "these linears")

    from slidesparse.bench.allocation.options import AllocationOptions
    from slidesparse.bench.allocation.record import write_json
    from slidesparse.bench.allocation.run import AllocationRun
    from slidesparse.bench.result_file import write_text
    from slidesparse.cli.console import make_console

    sparse = tuple(pattern for pattern in given.pop("patterns") if not pattern.dense)
    method = Method(given.pop("method"))
    sizes = GPU_SIZES if selected.is_gpu else CPU_SIZES
    given |= {name: given[name] or size for name, size in sizes.items()}
    options = AllocationOptions(patterns=sparse, method=method, **given)
    console = make_console()
    if not quiet:
        for line in _heading(options.model, selected, cache.fingerprint.name, given):
            console.print(line, soft_wrap=True, markup=False)
    run = AllocationRun(options, selected, cache, _silent if quiet else _shown)
    record, recipe = run.run()
    write_text(out, recipe.to_json())
    if json_path is not None:
        write_json(record, json_path)
    if not quiet:
        from slidesparse.cli.allocate_table import print_allocation

        print_allocation(record, console)
        console.print(f"recipe: {out}", soft_wrap=True, markup=False)


def _check(given: dict[str, Any], out: Path, json_path: Path | None) -> None:
    if (given["percent"] is None) == (given["target"] is None):
        raise UsageError("give one of --max-perplexity-increase 5% and --target-speedup 1.15")
    if all(pattern.dense for pattern in given["patterns"]):
        raise UsageError("--patterns names nothing but dense; use for example 2:4,6:8")
    check_writable(out)
    check_writable(json_path)
    if json_path is not None and json_path.resolve() == out.resolve():
        raise UsageError(f"--out and --json both name {out}; name two files")


def _heading(model: str, device: Device, name: str, given: dict[str, Any]) -> Iterator[str]:
    if device.is_gpu:
        yield f"Choosing patterns for {model} on {name}"
    else:
        yield (
            f"No GPU in use: choosing patterns for {model} by times of the CPU ({name}) with small "
            "defaults. The choice says nothing about a GPU."
        )
    if given["calibration"] is None:
        yield (
            "note: no --calibration, so weights are dropped by the text that perplexities are of, "
            "which makes these look better than they are"
        )


@contextmanager
def _shown(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show a phase of a run on standard error."""
    from slidesparse.cli.console import make_console
    from slidesparse.cli.progress import ProgressLine

    with ProgressLine(total, make_console(stderr=True)) as progress:
        progress.say(what)

        def step(done: str) -> None:
            progress.advance()
            progress.say(done)

        yield step


@contextmanager
def _silent(what: str, total: int) -> Iterator[Callable[[str], None]]:
    yield lambda done: None
