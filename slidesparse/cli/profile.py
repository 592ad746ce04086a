"""`slidesparse profile`: the settings that would be adapted to each GPU, with reasons."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slidesparse.cli.console import make_console
from slidesparse.cli.options import check_writable
from slidesparse.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from slidesparse.gpus import GpuSpec
    from slidesparse.profile import Profile

STANDARD_OUTPUT = "-"


@click.group("profile")
def command() -> None:
    """Settings adapted to a GPU: dtype, sparse or not, memory fraction, batch, attention."""


@command.command("show", short_help="Show the settings with their reasons.")
@click.option(
    "--gpu",
    default="all",
    show_default=True,
    help="GPUs or families of them (h200,v100), all, or here: the one in this machine.",
)
@click.option("--model", default="qwen2.5-7b", show_default=True, help="Preset, folder or id.")
@click.option(
    "--context",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Tokens of a sequence that the batch is sized for.",
)
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where tuning results live.")
@click.option(
    "--json",
    "json_path",
    is_flag=False,
    flag_value=STANDARD_OUTPUT,
    help="Write JSON to a file, or print it where no file is named.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def show_command(
    gpu: str, model: str, context: int, cache_dir: Path | None, json_path: str | None, quiet: bool
) -> None:
    """Print what the tool would adapt to each GPU of its table, and why.

    Nothing is measured: sparse or not comes from tuning caches, yours and the bundled ones, where
    they have the GPU and the model; the rest from datasheets and the arithmetic of slidesparse
    plan. The last column says which.
    """
    printed = json_path == STANDARD_OUTPUT
    file = None if json_path is None or printed else Path(json_path)
    check_writable(file)
    gpus = _gpus(gpu)
    from slidesparse.models import load_model
    from slidesparse.profile import make_profile

    spec = load_model(model)
    profiles = [make_profile(each, spec, context, cache_dir) for each in gpus]
    text = json.dumps(_content(profiles), indent=1)
    if file is not None:
        from slidesparse.bench.result_file import write_text

        write_text(file, text + "\n")
    if quiet:
        return
    if printed:
        click.echo(text)
        return
    _print(profiles)


def _gpus(text: str) -> list[GpuSpec]:
    """The GPUs that --gpu names.

    Raises:
        UsageError: one is unknown (with the nearest names), or there is none here.
    """
    from slidesparse.gpu_family import gpu_family
    from slidesparse.gpus import find_gpu, gpu_keys

    if text.strip().lower() == "all":
        return [find_gpu(key) for key in gpu_keys()]
    if text.strip().lower() == "here":
        return [_here()]
    named = {key for part in text.split(",") for key in gpu_family(part)}
    return [find_gpu(key) for key in gpu_keys() if key in named]


def _here() -> GpuSpec:
    from slidesparse.devices import Device, detect, gpu_problem
    from slidesparse.gpus import gpu_keys, gpu_of

    missing = gpu_problem()
    if missing:
        raise UsageError(f"no GPU here: {missing}; name one with --gpu, for example --gpu h200")
    fingerprint = detect(Device("cuda"))
    spec = gpu_of(fingerprint)
    if spec is None:
        raise UsageError(f"{fingerprint} is not in the GPU table: {', '.join(gpu_keys())}")
    return spec


def _content(profiles: list[Profile]) -> dict[str, Any]:
    return {
        "model": profiles[0].model,
        "context": profiles[0].context,
        "profiles": [
            {
                "gpu": it.gpu.key,
                "name": it.gpu.name,
                "settings": [{**asdict(each), "provenance": each.evidence} for each in it.settings],
            }
            for it in profiles
        ],
    }


def _print(profiles: list[Profile]) -> None:
    first = profiles[0]
    console = make_console()
    console.print(
        f"Settings for {first.model}, sequences of {first.context:,} tokens, one GPU", markup=False
    )
    for profile in profiles:
        console.print()
        console.print(profile.gpu.name, style="bold", markup=False)
        console.print(_table(profile))


def _table(profile: Profile) -> Table:
    """A row per setting; what does not fit is folded, never cut."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    # Fixed widths, so that the tables of all GPUs stand below each other in line.
    for column, width in (("setting", 15), ("value", 22), ("why", None), ("evidence", 17)):
        table.add_column(column, width=width, overflow="fold")
    for it in profile.settings:
        table.add_row(*map(Text, (it.name, it.value, it.reason, it.evidence)))
    return table
